"""Use predictions at inference: predict first, then decide how many solutions each problem gets for a majority vote.

    python -m lab.spend                 # a worked example
    python -m lab.spend runs/eval       # written by eval.py --out

    same for all     each problem gets k solutions, and the most frequent answer is given; nothing is predicted
    limit            each solution stops at twice the predicted length, and then has no answer
    shared out       also, k solutions per problem are shared out in proportion to the predicted p(1 - p)
    hopeless none    also, problems predicted to be all wrong get no solution, and so no answer

All ways but the first pay for the tokens of the predictions. The solutions of a vote are picked at random among those
drawn, which had no limit; a solution under a limit is the same one cut short.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

import masa
from lab.awareness import aligned, evaluations, read_predictions
from problems.kinds import VOTE_PICKS, majority

WAYS = ("same for all", "limit", "shared out", "hopeless none")


def vote(problem: dict, k: int, limit: int | None = None, seed: int = 0) -> tuple[float, float]:
    """Return (share of correct majority votes, tokens) for k solutions, averaged over VOTE_PICKS random choices.

    problem: a row of evaluations.jsonl with `votes`.  limit: longer solutions have no answer and cost the limit.
    Raises ValueError if fewer than k solutions were drawn.
    """
    lengths, correct, rng = np.array(problem["lengths"]), np.array(problem["correct"]), np.random.default_rng(seed)
    if k > len(lengths):
        raise ValueError(f"expected at most {len(lengths)} solutions, as many as were drawn, found {k}")
    cap = limit or max(lengths)
    votes, costs = np.where(lengths <= cap, problem["votes"], -1), np.minimum(lengths, cap)
    picks = [rng.permutation(len(lengths))[:k] for _ in range(VOTE_PICKS)]
    right = [majority(votes[picked].tolist(), correct[picked].tolist()) for picked in picks]
    return fmean(right), fmean(costs[picked].sum() for picked in picks)


def plan(way: str, problems: Sequence[dict], k: int) -> list[int]:
    """Return how many solutions each problem gets, of k times as many as there are problems.

    They are shared out by largest remainder; each problem gets at least one, unless it is predicted to be all wrong and
    `way` is "hopeless none", and at most as many as were drawn. Without a predicted p, p(1 - p) counts as 1/4.
    """
    if way in ("same for all", "limit"):
        return [k] * len(problems)
    predictions = [read_predictions(problem) for problem in problems]
    rates = [masa.predicted_pass_rate(answers) for answers in predictions]
    scores = np.array([0.25 if p is None else p * (1 - p) for p in rates]) + 1e-9  # not all zero
    quotas, most = k * len(problems) * scores / scores.sum(), np.array([len(p["votes"]) for p in problems])
    counts = np.ones(len(problems), int)
    for _ in range((k - 1) * len(problems)):  # one at a time to the problem that is furthest below its quota
        counts[np.argmax(np.where(counts < most, quotas - counts, -np.inf))] += 1
    if way == "hopeless none":
        counts[[masa.should_skip(answers, easy=False) for answers in predictions]] = 0
    return counts.tolist()


def curves(problems: Sequence[dict], cutoff: float = 2.0) -> dict[str, dict[int, tuple[float, float]]]:
    """Return {way: {k: (accuracy, generated tokens per problem)}} at a mean of k = 1, 2, 4 ... solutions per problem.

    cutoff: all ways but the first stop solutions at this multiple of the predicted length, and pay for the predictions.
    Without predictions there is only the first.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for way in WAYS if any(problem["predictions"] for problem in problems) else WAYS[:1]:
        acts, found[way] = way != "same for all", {}
        limits = [masa.length_limit(read_predictions(p), cutoff, max(p["lengths"])) if acts else None for p in problems]
        for k in (2**j for j in range(min(len(p["votes"]) for p in problems).bit_length())):
            votes = [vote(*case) for case in zip(problems, plan(way, problems, k), limits, strict=True)]
            tokens = fmean(cost + acts * p["tokens_meta"] for p, (_, cost) in zip(problems, votes, strict=True))
            found[way][k] = fmean(right for right, _ in votes), tokens
    return found


def table(problems: Sequence[dict]) -> str:
    """Return a line for each way to spend: accuracy, and tokens per problem."""
    rows = []
    for way, points in curves(problems).items():
        cells = {str(k): f"{accuracy:.3f} for {tokens:.0f}" for k, (accuracy, tokens) in points.items()}
        rows.append({"solutions per problem": way} | cells)
    return aligned(rows)


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
    parser = argparse.ArgumentParser("python -m lab.spend", description="Print accuracy of votes for tokens.")
    parser.add_argument("paths", nargs="*", type=Path, help="evaluations.jsonl of eval.py --out, or folders with some")
    if not (paths := parser.parse_args().paths):
        return example()
    found = [evaluation for path in paths for evaluation in evaluations(path, every=True).items()]
    if not found or any("votes" not in problem for _, problems in found for problem in problems):
        sys.exit(f"lab.spend: {' '.join(map(str, paths))}: expected evaluations.jsonl of eval.py --out, with votes")
    for name, problems in found:
        print(f"{name}: accuracy for tokens per problem\n{table(problems)}\n")


if __name__ == "__main__":
    main()
