"""The policies: any causal language model, the embedded one, and a warm start for weak models.

Enter this room to train another model, or to see what the embedded policy was taught.

policy.py       the class Policy: it turns messages into token ids, draws responses and sets the precision of each pass
loading.py      load any causal language model with its tokenizer as a policy
checks.py       try a loaded model: it is sampled and trained exactly, or refused
tiny.py         the embedded policy: its demonstrations, tokenizer and training; the weights are in tiny_policy/
warm_start.py   let a weak real model imitate its own correct solutions before RL begins
"""
