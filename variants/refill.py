"""Refill: fresh problems take the place of those that the gate skips, so that every batch has P problems to solve."""

from collections.abc import Sequence

from rollout import Attempt
from train import Trainer

MAX_DRAWS = 4  # after which the batch stays smaller: a gate may refuse everything


class Refill(Trainer):
    def wanted(self, attempts: Sequence[Attempt], draw: int) -> int:
        missing = self.options.run.problems - sum(not attempt.skipped for attempt in attempts)
        return missing if draw + 1 < MAX_DRAWS else 0
