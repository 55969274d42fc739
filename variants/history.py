"""History: skip problems whose own past solutions say that the next ones will be all alike.

A table of what became of each problem is free and never wrong, but it needs problems that come back: it is the rival
of reading on a finite set and over several epochs (GRESO, arXiv 2506.02177, is of this kind). On fresh problems it
knows nothing. With beliefs that are read (--variant read), these are what it expects before the first solution.
"""

from collections.abc import Sequence

from grpo import Sample
from masa import PASS_RATE_SCALE
from rollout import Attempt
from train import Trainer

LEAST = 0.8  # probability that the next solutions are all alike, from which on a problem is skipped


def alike_after(prior: Sequence[float], right: int, wrong: int, samples: int) -> float:
    """Return the probability that the next solutions are all right or all wrong, after these outcomes.

    prior: the weights of the true pass rates 0/8, 1/8, ... 8/8 before any outcome (9,); Bayes' rule does the rest.
    """
    rates = [count / PASS_RATE_SCALE for count in range(PASS_RATE_SCALE + 1)]
    weights = [weight * p**right * (1 - p) ** wrong for weight, p in zip(prior, rates, strict=True)]
    alike = [weight * (p**samples + (1 - p) ** samples) for weight, p in zip(weights, rates, strict=True)]
    return sum(alike) / sum(weights)


class History(Trainer):
    def choose(self, attempts: Sequence[Attempt], step: int, draw: int) -> None:
        for a in (a for a in attempts if not a.explores and step >= self.options.gate.efficient_from):
            right, wrong = (self.counters[f"{outcome}: {a.problem.text}"] for outcome in ("right", "wrong"))
            if right + wrong:
                prior = [0.01 + probability for probability in a.belief] or [1.0] * (PASS_RATE_SCALE + 1)
                a.skipped = alike_after(prior, right, wrong, self.options.sampling.samples) >= LEAST

    def samples(self, solved: Sequence[Attempt]) -> list[Sample]:
        """Note what became of the problems; checkpoints hold all counters, so a resumed run remembers."""
        for a in solved:
            self.counters[f"right: {a.problem.text}"] += sum(a.correct)
            self.counters[f"wrong: {a.problem.text}"] += len(a.correct) - sum(a.correct)
        return super().samples(solved)
