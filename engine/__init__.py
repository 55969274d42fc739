"""The engine: the same tokens and gradients as the plain core, faster or on more devices, and what a run leaves behind."""
