"""Dynamic sampling as in DAPO (arXiv 2503.14476): draw on until P problems have solutions that differ in outcome.

The solutions of problems that are all right or all wrong are thrown away and replaced, so every update learns from a
full batch. All that is drawn counts as a cost, whether it teaches or not.

With `--algo masa` (MASA + DAPO, which version 2 of the paper tries) the predictions of every problem drawn are learned
from. That is our choice: nothing else would teach a policy to predict that all solutions will be alike.
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
        """Keep all predictions, and the solutions of the first P problems that vary: others are in no denominator."""
        varied = [i for i, attempt in enumerate(solved) if not attempt.zero_variance][: self.options.run.problems]
        return [s for s in super().samples(solved) if s.kind == "meta" or s.group in varied]
