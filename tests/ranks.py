"""What test_parallel.py has two processes do, and one.

torchrun --standalone --nproc-per-node 2 tests/ranks.py FILE         update a small model; rank 0 writes it to FILE
torchrun --standalone --nproc-per-node 2 tests/ranks.py train N ...  run train.py with greedy draws, stop after step N
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # as pytest does

from random_models import qwen3, ragged_samples

import grpo
import rollout
import train
from engine import parallel
from engine.parallel import over_batches
from engine.run_folder import RunFolder
from grpo import Sample, UpdateOptions

StableAdamW = partial(torch.optim.AdamW, eps=1e-4)  # the usual 1e-8 turns rounding errors into whole steps
LENGTHS = {"solution": 12, "meta": 12}
CASES: dict[str, dict] = {"token-mean": {}, "dr-grpo": {"aggregation": "dr-grpo"}}
CASES |= {"small micro-batches": {"token_budget": 20}, "minibatches and KL": {"minibatches": 2, "kl_coef": 0.1}}


def updated(case: dict, shard: bool, gradient_checkpointing: bool = False, over_batches=over_batches) -> dict:
    """Return weights, optimizer state and figures after three updates and one step of imitation."""
    model, reference = qwen3(), qwen3()  # the embeddings are tied: one weight in two places
    reference.get_input_embeddings().weight.data *= 1.1
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    if shard:
        for each in (model, reference):
            parallel.shard(each, "cpu")
    options, figures = UpdateOptions(**case), []
    optimizer = StableAdamW(model.parameters(), lr=1e-3)
    # Three groups on two ranks, so these have different numbers of samples and micro-batches; then a single group.
    for batch in (ragged_samples(0, prompts=3), ragged_samples(1, prompts=3), [Sample([5, 6], [7, 8, 1], 1.0)]):
        arguments = {"max_lengths": LENGTHS, "reference": reference, "over_batches": over_batches}
        figures.append(grpo.update(model, optimizer, batch, options, **arguments))
    figures.append(grpo.imitate(model, optimizer, ragged_samples(2, 5), options, over_batches=over_batches))
    with torch.no_grad():
        weights = parallel.whole_state(dict(model.named_parameters()))
    moments = parallel.whole_state(optimizer.state_dict())
    return {"weights": weights, "moments": moments["state"], "figures": figures}


def main() -> None:
    with parallel.processes("cpu"):
        assert parallel.spread(lambda items: [item * 10 for item in items], [*range(7)]) == [*range(0, 70, 10)]
        assert parallel.spread(list, []) == [] and parallel.spread(list, [3]) == [3]
        assert parallel.largest(parallel.rank()) == parallel.world() - 1
        assert parallel.total({"all": 1.5, **({"last": 2} if parallel.rank() else {})}) == {"all": 3.0, "last": 2}
        results = {}
        for shard in (False, True):
            for name, case in CASES.items():
                results[name, shard] = updated(case, shard)
            results["gradient checkpointing", shard] = updated({}, shard, gradient_checkpointing=True)
        if parallel.rank() == 0:
            torch.save(results, sys.argv[1])


def greedy_train(stop_after: int) -> None:
    """Run train.py so that the other random numbers of another rank change nothing: only the likeliest token is drawn.

    Expert predictions are imitated two at a time, because a short run collects only a few.
    """
    log, draw_token = RunFolder.log, rollout.draw_token

    def draw_likeliest(logits, uniform, temperature, top_p):
        return draw_token(logits, uniform, temperature, 1e-6)

    def log_and_stop(self, step: int, *figures) -> None:
        log(self, step, *figures)
        if step == stop_after and parallel.rank() == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with (
        mock.patch.object(RunFolder, "log", log_and_stop),
        mock.patch.object(rollout, "draw_token", draw_likeliest),
        mock.patch.object(train, "EXPERT_BATCH", 2),
        mock.patch.object(torch.optim, "AdamW", StableAdamW),
        mock.patch.object(sys, "argv", ["train.py", *sys.argv[3:]]),
    ):
        train.main()


if __name__ == "__main__":
    greedy_train(int(sys.argv[2])) if sys.argv[1] == "train" else main()
