"""Use predictions at inference: predict first, then decide how many solutions each problem gets for a majority vote.

    python -m lab.spend                                   # a worked example
    python -m lab.spend runs/eval/evaluations.jsonl       # written by eval.py --out

    same for all     each problem gets k solutions, and the most frequent answer is given; nothing is predicted
    limit            each solution stops at twice the predicted length, and then has no answer
    shared out       also, k solutions per problem are shared out in proportion to the predicted p(1 - p)
    hopeless none    also, problems predicted to be all wrong get no solution, and so no answer

All ways but the first pay for the tokens of the predictions. The solutions of a vote are picked at random among those
drawn, which had no limit; a solution under a limit is the same one cut short.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

import masa
from lab.awareness import read_predictions, read_rows
from problems.kinds import VOTE_PICKS, majority


def vote(problem: dict, k: int, limit: int | None = None, seed: int = 0) -> tuple[float, float]:
    """Return (share of correct majority votes, tokens) for k solutions, averaged over VOTE_PICKS random choices.

    problem: a row of evaluations.jsonl with `votes`.  limit: longer solutions have no answer and cost the limit.
    Raises ValueError if fewer than k solutions were drawn.
    """
    drawn = len(problem["votes"])
    if k > drawn:
        raise ValueError(f"expected at most {drawn} solutions, as many as were drawn, found {k}")
    lengths, cap, rng = problem["lengths"], limit or max(problem["lengths"]), np.random.default_rng(seed)
    picks = [rng.permutation(drawn)[:k] for _ in range(VOTE_PICKS)]
    votes = [[problem["votes"][i] if lengths[i] <= cap else -1 for i in picked] for picked in picks]
    right = [majority(v, [problem["correct"][i] for i in picked]) for v, picked in zip(votes, picks, strict=True)]
    return fmean(right), fmean(sum(min(lengths[i], cap) for i in picked) for picked in picks)


Plan = Callable[[Sequence[dict], int], list[int]]  # (problems, mean number of solutions k) -> solutions per problem


def same_for_all(problems: Sequence[dict], k: int) -> list[int]:
    """Give each problem k solutions."""
    return [k] * len(problems)


def shared_out(problems: Sequence[dict], k: int) -> list[int]:
    """Share out k solutions per problem in proportion to the predicted p(1 - p), by largest remainder.

    Each problem gets at least one and at most as many as were drawn. Without a predicted p, p(1 - p) counts as 1/4.
    """
    rates = [masa.predicted_pass_rate(read_predictions(problem)) for problem in problems]
    scores = np.array([0.25 if p is None else p * (1 - p) for p in rates]) + 1e-9  # not all zero
    quotas, most = k * len(problems) * scores / scores.sum(), np.array([len(p["votes"]) for p in problems])
    counts = np.ones(len(problems), int)
    for _ in range((k - 1) * len(problems)):  # one at a time to the problem that is furthest below its quota
        counts[np.argmax(np.where(counts < most, quotas - counts, -np.inf))] += 1
    return counts.tolist()


def hopeless_none(problems: Sequence[dict], k: int) -> list[int]:
    """Share out the same, but give nothing to problems that the gate expects to be all wrong."""
    hopeless = [masa.should_skip(read_predictions(problem), easy=False) for problem in problems]
    return [0 if skip else count for skip, count in zip(hopeless, shared_out(problems, k), strict=True)]


def curve(problems: Sequence[dict], plan: Plan, cutoff: float | None = None) -> list[dict[str, float]]:
    """Return accuracy and generated tokens per problem at a mean of 1, 2, 4 ... solutions per problem.

    cutoff: stop each solution at this multiple of its predicted length, and pay for the predictions.
    """
    points: list[dict[str, float]] = []
    limits = [masa.length_limit(read_predictions(p), cutoff, max(p["lengths"])) if cutoff else None for p in problems]
    for k in (2**j for j in range(len(problems[0]["votes"]).bit_length())):
        votes = [vote(*case) for case in zip(problems, plan(problems, k), limits, strict=True)]
        tokens = fmean(tokens for _, tokens in votes) + (fmean(p["tokens_meta"] for p in problems) if cutoff else 0)
        points.append({"samples": k, "tokens": tokens, "accuracy": fmean(right for right, _ in votes)})
    return points


def curves(problems: Sequence[dict], cutoff: float = 2.0) -> dict[str, list[dict[str, float]]]:
    """Return the curve of each way to spend; without predictions there is only one."""
    found = {"same for all": curve(problems, same_for_all)}
    if any(problem["predictions"] for problem in problems):
        plans = {"limit": same_for_all, "shared out": shared_out, "hopeless none": hopeless_none}
        found |= {name: curve(problems, plan, cutoff) for name, plan in plans.items()}
    return found


def table(problems: Sequence[dict]) -> str:
    """Return a line for each way to spend: accuracy, and tokens per problem."""
    found = curves(problems)
    lines = [f"{'solutions per problem':<24}" + "".join(f"{p['samples']:>16}" for p in found["same for all"])]
    for name, points in found.items():
        cells = (f"{point['accuracy']:.3f} for {point['tokens']:.0f}" for point in points)
        lines.append(f"{name:<24}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def example() -> None:
    print("Three problems, predicted and really 8, 3 and 0 of 8 correct; 20 tokens a solution, 5 a prediction.")
    print("With one solution each, (1 + 3/8 + 0) / 3 = 0.46 are correct. Accuracy for tokens per problem:")
    problems = []
    for right in (8, 3, 0):
        prediction = {"pass_rate": right / 8, "solution_length": 20, "notions": []}
        drawn = {"correct": [1] * right + [0] * (8 - right), "votes": [0] * right + list(range(1, 9 - right))}
        problems.append({"predictions": [prediction], "lengths": [20] * 8, "tokens_meta": 5} | drawn)
    print(table(problems))


def main() -> None:
    try:
        for row in [row for path in sys.argv[1:] for row in read_rows(Path(path))]:
            if not all("votes" in problem for problem in row["problems"]):
                raise ValueError("found problems without votes, expected evaluations.jsonl of eval.py --out")
            print(f"{row['model']} on {row['data']}: accuracy for tokens per problem\n{table(row['problems'])}\n")
    except ValueError as error:
        sys.exit(f"lab.spend: {error}")
    if not sys.argv[1:]:
        example()


if __name__ == "__main__":
    main()
