"""Which problems a batch is spent on, and how many solutions each gets: ways beside the gate.

A group of solutions teaches through its variance, p(1 - p) at a pass rate p: nothing at 0 and 1, most at one half.
A prediction of p is cheap, so it can do more than skip:

    choose   predict several times as many problems as fit, solve those of largest predicted p(1 - p)
    share    give the problems of a batch solutions in proportion to predicted p(1 - p)

`train.py` switches them by --select and --share-samples, and two ways to compare with that predict nothing:
--dynamic-sampling (DAPO, arXiv 2503.14476: draw on until the batch is full of groups that vary) and --oracle-gate (skip
exactly what many uncounted solutions show to be all right or all wrong; with --select, choose by what they show).
Run `python selection.py` for an example.
"""

import heapq
import time
from collections.abc import Sequence

import costs
import masa
from attempts import Attempt, probe, solve
from masa import MetaPrediction

MAX_DRAWS = 10  # --dynamic-sampling gives up after so many batches


def predicted_variance(predictions: Sequence[MetaPrediction | None]) -> float:
    """p(1 - p) at the mean predicted pass rate p; when too few predictions parsed, its largest value, 1/4."""
    rate = masa.predicted_pass_rate(predictions)
    return 0.25 if rate is None else rate * (1 - rate)


def most_informative(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` largest scores, in order; the first of equals."""
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def share_out(scores: Sequence[float], total: int, unit: int, most: int) -> list[int]:
    """`total` solutions shared out in proportion to the scores, in multiples of `unit`, from `unit` to `most` each.

    One unit goes at a time to the problem that has least for its score, (count + unit / 2) / score. The sum is
    `total` rounded down to units, unless the bounds forbid it. Raises ValueError unless 0 < unit <= most.
    """
    if not 0 < unit <= most:
        raise ValueError(f"expected 0 < unit <= most, found unit={unit}, most={most}")
    counts = [unit] * len(scores)
    waiting = [(1.5 * unit / max(score, 1e-9), i) for i, score in enumerate(scores) if 2 * unit <= most]
    heapq.heapify(waiting)
    for _ in range(total // unit - len(scores)):
        if not waiting:
            break
        _, i = heapq.heappop(waiting)
        counts[i] += unit
        if counts[i] + unit <= most:
            heapq.heappush(waiting, ((counts[i] + unit / 2) / max(scores[i], 1e-9), i))
    return counts


def choose(attempts: Sequence[Attempt], count: int) -> None:
    """Gate all but the `count` problems of largest predicted p(1 - p); those that explore go first."""
    scores = [1.0 if a.exploring else -1.0 if a.gated else predicted_variance(a.predictions) for a in attempts]
    gate_others(attempts, most_informative(scores, count))


def gate_others(attempts: Sequence[Attempt], chosen: Sequence[int]) -> None:
    """Gate all attempts but those of the chosen indices, which stay as they are."""
    for i, attempt in enumerate(attempts):
        attempt.gated = attempt.gated or i not in chosen


def share(attempts: Sequence[Attempt], samples: int) -> None:
    """Share out `samples` solutions a problem, among those neither gated nor exploring, by predicted p(1 - p).

    In quarters of `samples`, or twos if they are larger; each problem gets one of them at least, 2 x `samples` at most.
    """
    sharing = [attempt for attempt in attempts if not (attempt.gated or attempt.exploring)]
    scores = [predicted_variance(attempt.predictions) for attempt in sharing]
    counts = share_out(scores, samples * len(sharing), max(2, samples // 4), 2 * samples)
    for attempt, count in zip(sharing, counts, strict=True):
        attempt.samples = count


# ------------------------------------------------------------------------------- to compare with, in the training loop


def ask_oracle(trainer, attempts: Sequence[Attempt], step: int, round_: int, count: int) -> None:
    """Gate what is all right or all wrong over --oracle-gate solutions, whose tokens and seconds do not count.

    With --select informative also all but the `count` problems of largest p(1 - p) over these solutions.
    """
    started = time.monotonic()
    stream = trainer.generator(step, f"oracle {round_}")
    rates = probe(trainer.policy, attempts, trainer.options.oracle_gate, trainer.how, stream)
    for attempt, rate in zip(attempts, rates, strict=True):
        attempt.gated = rate in (0.0, 1.0)
    if trainer.options.select == "informative":
        gate_others(attempts, most_informative([rate * (1 - rate) for rate in rates], count))
    trainer.counters["training_ms"] -= costs.milliseconds_since(started)


def draw_on(trainer, attempts: list[Attempt], solved: list[Attempt], step: int) -> list[Attempt]:
    """DAPO's dynamic sampling: the first P problems that vary, drawing until there are so many.

    Adds what it draws to `attempts` and `solved`: its tokens count, whether it teaches or not.
    """
    o = trainer.options
    for draw in range(1, MAX_DRAWS):
        if sum(not attempt.zero_variance for attempt in solved) >= o.problems:
            break
        more = trainer.predict_and_gate(step, draw)
        kept = [attempt for attempt in more if not attempt.gated]
        solve(trainer.policy, kept, o.samples, trainer.how, trainer.generator(step, f"solve {draw}"))
        attempts += more
        solved += kept
    return [attempt for attempt in solved if not attempt.zero_variance][: o.problems]


def main() -> None:
    rates = [0.0, 0.125, 0.5, 0.75, 1.0]
    scores = [predicted_variance([MetaPrediction(rate, 40, ())]) for rate in rates]
    print("predicted pass rates", rates)
    print("p(1 - p)            ", scores)
    print("the three problems chosen:", most_informative(scores, 3))
    print("80 solutions shared out in fours, 4 to 32 each:", share_out(scores, 80, 4, 32))
    print("all alike, everybody gets the same:", share_out([0.25] * 5, 80, 4, 32))


if __name__ == "__main__":
    main()
