"""What `test_parallel.py` has two processes do, and one: updates of a small model, by rank 0 written to a file.

torchrun --standalone --nproc-per-node 2 tests/ranks.py FILE
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # as pytest has it

from random_models import qwen3
from test_grpo import sequences

import grpo
from engine import parallel
from grpo import Sequence, UpdateSettings

LENGTHS = (("solution", 12), ("meta", 6))
CASES: dict[str, dict] = {
    "token-mean": {},
    "dr-grpo": {"aggregation": "dr-grpo"},
    "small micro-batches": {"token_budget": 20},
    "minibatches and KL": {"minibatches": 2, "kl_coef": 0.1},
}


def prompted(seed: int) -> list[Sequence]:
    """Groups of different sizes, so that two ranks have different numbers of sequences and micro-batches."""
    batch = sequences(seed, count=12)
    for index, sequence in enumerate(batch):
        sequence.prompt_ids = batch[index // 5].prompt_ids
    return batch


def updated(case: dict, shard: bool, gradient_checkpointing: bool = False) -> dict:
    """Weights, optimizer state and figures after two updates and one step of cloning."""
    model, reference = qwen3(0), qwen3(1)  # its embeddings are tied: one weight in two places
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    if shard:
        for each in (model, reference):
            parallel.shard(each, torch.device("cpu"))
    settings = UpdateSettings(**{"max_lengths": LENGTHS, "max_grad_norm": 0.5} | case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    figures = [grpo.update(model, optimizer, prompted(seed), settings, reference=reference) for seed in (0, 1)]
    lonely = [Sequence([5, 6], [7, 8, 1], 1.0)]  # one rank has nothing to do
    figures.append(grpo.update(model, optimizer, lonely, settings, reference=reference))
    loss, *_ = grpo.clone(model, optimizer, sequences(2, count=5), settings)
    with torch.no_grad():
        weights = parallel.whole_state(dict(model.named_parameters()))
    moments = parallel.whole_state(optimizer.state_dict())
    return {"weights": weights, "moments": moments["state"], "figures": figures, "clone_loss": loss}


def main() -> None:
    parallel.start("cpu")
    assert parallel.gather([item * 10 for item in parallel.share(range(7))]) == [0, 10, 20, 30, 40, 50, 60]
    assert parallel.gather(parallel.share([])) == []
    assert parallel.largest(parallel.rank()) == parallel.world() - 1
    results = {}
    for shard in (False, True) if parallel.world() > 1 else (False,):
        for name, case in CASES.items():
            results[name, shard] = updated(case, shard)
        results["gradient checkpointing", shard] = updated({}, shard, gradient_checkpointing=True)
    if parallel.rank() == 0:
        torch.save(results, sys.argv[1])
    parallel.end()


if __name__ == "__main__":
    main()
