"""Dynamic sampling as in DAPO (arXiv 2503.14476): draw on until P problems have solutions that differ in outcome.

Problems that are all right or all wrong are thrown away and replaced, so every update learns from a full batch. All
that is drawn counts as a cost, whether it teaches or not.
"""

from collections.abc import Sequence

from grpo import Sample
from rollout import Attempt
from train import Trainer

MAX_DRAWS = 10  # batches, after which fewer problems must do


class Dapo(Trainer):
    def wanted(self, attempts: Sequence[Attempt], draw: int) -> int:
        varied = sum(bool(a.solutions) and not a.zero_variance for a in attempts)
        return self.options.run.problems if varied < self.options.run.problems and draw + 1 < MAX_DRAWS else 0

    def samples(self, solved: Sequence[Attempt]) -> list[Sample]:
        """Learn from the first P problems that vary: the others do not count in the denominators, either."""
        return super().samples([a for a in solved if not a.zero_variance][: self.options.run.problems])
