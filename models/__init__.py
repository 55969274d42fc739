"""Models: loading any causal language model, the embedded policy, and a warm start for weak ones."""
