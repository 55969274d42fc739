"""The oracle gate: skip exactly what many extra solutions show to be all right or all wrong.

The tokens and seconds of these trials are not counted. So this is no method, but a bound: the most that any gate could
save with perfect predictions.
"""

import dataclasses
import time
from collections.abc import Sequence

from rollout import Attempt, solve
from train import Trainer

TRIALS = 32  # solutions to each problem that only the oracle sees


class OracleGate(Trainer):
    def choose(self, attempts: Sequence[Attempt], step: int, draw: int) -> None:
        started = time.monotonic()
        tried = [Attempt(attempt.problem) for attempt in attempts]
        sampling = dataclasses.replace(self.options.sampling, samples=TRIALS)
        solve(self.policy, tried, sampling, self.stream(step, f"oracle {draw}"))
        for attempt, trial in zip(attempts, tried, strict=True):
            attempt.skipped = trial.zero_variance
        self.counters["training_ms"] -= round(1000 * (time.monotonic() - started))
