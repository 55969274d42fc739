"""Meta-awareness: how well do the predictions of a policy fit what it then does, on problems it never trained on?

    pass rate   correlation, error, Brier score, reliability curve, expected calibration error
    length      share in the range of right solutions, correlation, error in tokens
    gate        precision, recall, F1 for zero-variance groups: as set, over all thresholds, and what an oracle reaches
    cutoff      precision, recall, F1 for wrong solutions; tokens saved, and the right answers they cost

A problem's prediction is the mean of its parsed predicted pass rates (median for lengths), as gate and cutoff take it;
problems with fewer than half parsed are left out of the first two, and neither skipped nor cut.

The oracle knows each problem's true pass rate p, but not the draws: G of them come out alike with probability
z(p) = p^G + (1-p)^G, only .85 for p = .99 and G = 16. Its best rule skips by falling z, so no gate can expect more hits
at the same share skipped. The distribution of p over problems is estimated from the counts of right solutions by
nonparametric maximum likelihood (EM over a grid of rates). All functions are pure. Run `python awareness.py`.
"""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import masa
from masa import MetaPrediction

BINS = 10  # of the reliability curve, of equal width
GRID = np.linspace(0.0, 1.0, 201)  # true pass rates that the estimate of their distribution allows
EM_STEPS = 1000


def correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Pearson's; None with fewer than two values or where one side is constant."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def brier_score(predicted: ArrayLike, right: ArrayLike, drawn: ArrayLike) -> float:
    """Mean over all solutions of (predicted pass rate - 1 if right else 0)^2; arguments are (problems,)."""
    p, c, n = (np.asarray(values, float) for values in (predicted, right, drawn))
    return float((c * (1 - p) ** 2 + (n - c) * p**2).sum() / n.sum())


def reliability_curve(predicted: ArrayLike, right: ArrayLike, drawn: ArrayLike) -> list[tuple[float, float, int]]:
    """(mean predicted, actual pass rate, solutions) of each bin that holds any, bins of equal width, from 0 up."""
    p, c, n = (np.asarray(values, float) for values in (predicted, right, drawn))
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p)
    curve = []
    for inside in (bins == b for b in range(BINS) if (bins == b).any()):
        total = n[inside].sum()
        curve.append((float((p * n)[inside].sum() / total), float(c[inside].sum() / total), int(total)))
    return curve


def calibration_error(curve: Sequence[tuple[float, float, int]]) -> float:
    """Expected calibration error: mean |predicted - actual| over the bins, weighted by their solutions."""
    return sum(n * abs(p - actual) for p, actual, n in curve) / sum(n for *_, n in curve)


# ------------------------------------------------------------------------------- zero variance, and its oracle


def zero_variance_chance(right: int, drawn: int, group: int) -> float:
    """Chance that `group` of the drawn solutions, without replacement, are all right or all wrong.

    The unbiased estimate of p^G + (1-p)^G; with group = drawn it is 1 or 0. A group larger than drawn is cut to it.
    """
    group = min(group, drawn)
    return (comb(right, group) + comb(drawn - right, group)) / comb(drawn, group)


def rate_distribution(right: ArrayLike, drawn: ArrayLike) -> NDArray:
    """Weights (len(GRID),) of the distribution of true pass rates that makes the counts likeliest."""
    pairs, times = np.unique(np.stack([right, drawn], axis=1).astype(float), axis=0, return_counts=True)
    c, n = pairs[:, :1], pairs[:, 1:]
    likelihood = GRID**c * (1 - GRID) ** (n - c)  # (different counts, grid), up to a factor for each
    weights = np.full(len(GRID), 1 / len(GRID))
    for _ in range(EM_STEPS):
        posterior = weights * likelihood
        weights = times @ (posterior / posterior.sum(axis=1, keepdims=True)) / times.sum()
    return weights


def oracle_curve(weights: NDArray, group: int) -> tuple[NDArray, NDArray]:
    """(share skipped, share skipped and of zero variance) of the oracle as it skips more and more, from 0 to all."""
    chance = GRID**group + (1 - GRID) ** group
    order = np.argsort(-chance, kind="stable")
    skipped = np.concatenate([[0.0], np.cumsum(weights[order])])
    return skipped, np.concatenate([[0.0], np.cumsum((weights * chance)[order])])


def scores(hits: float, chosen: float, wanted: float) -> dict[str, float | None]:
    """Precision hits / chosen, recall hits / wanted, and F1; None where nothing was chosen or wanted."""
    return {
        "precision": float(hits / chosen) if chosen else None,
        "recall": float(hits / wanted) if wanted else None,
        "f1": float(2 * hits / (chosen + wanted)) if chosen + wanted else None,
    }


def oracle_gate(right: ArrayLike, drawn: ArrayLike, group: int, share: float) -> dict[str, Any]:
    """Expected scores of the oracle: skipping the same share as the gate, what gives the best F1, and every share."""
    skipped, hits = oracle_curve(rate_distribution(right, drawn), group)
    shares = np.linspace(0.05, 1.0, 20)
    best = int(np.argmax(hits / (skipped + hits[-1]))) if hits[-1] else 0
    return {
        "same_share": scores(np.interp(share, skipped, hits), share, hits[-1]),
        "best_f1": scores(hits[best], skipped[best], hits[-1]) | {"share": float(skipped[best])},
        "curve": [scores(np.interp(s, skipped, hits), s, hits[-1]) | {"share": float(s)} for s in shares],
    }


def gate_curve(edge: ArrayLike, agree: ArrayLike, chance: ArrayLike) -> list[dict[str, float | None]]:
    """The gate's scores at every margin. edge: distance of the predicted rate from 0, or from the nearer
    of 0 and 1 (NaN: never skipped).

    agree: do the predictions agree enough to be believed?  chance: of zero variance.  All (problems,).
    """
    distance, useless = np.asarray(edge, float), np.asarray(chance, float)
    margins = np.unique(distance[~np.isnan(distance)])
    curve = []
    for margin in margins:
        skip = np.asarray(agree, bool) & (distance <= margin + masa.ROUNDING)
        curve.append({"margin": float(margin), **scores(useless[skip].sum(), skip.sum(), useless.sum())})
    return curve


# ------------------------------------------------------------------------------- all of it, from an evaluation


def read_predictions(problem: dict) -> list[MetaPrediction | None]:
    """The predictions of a problem as evaluations.jsonl has them."""
    return [
        p and MetaPrediction(p["pass_rate"], p["solution_length"], tuple(p["notions"])) for p in problem["predictions"]
    ]


def awareness(
    problems: Sequence[dict],
    *,
    group: int = 16,
    gate_std: float = 0.1,
    gate_margin: float = 0.1,
    gate_easy: bool = True,
    cutoff_multiplier: float = 2.0,
    max_new_tokens: int = 8192,
) -> dict[str, Any]:
    """All figures of an evaluation's problems (see journal.transcript); None where nothing defines them.

    group: G, the solutions whose agreement a gate is to foresee.
    """
    predictions = [read_predictions(problem) for problem in problems]
    right = np.array([sum(problem["correct"]) for problem in problems])
    drawn = np.array([len(problem["correct"]) for problem in problems])
    rates = np.array([np.nan if (p := masa.predicted_pass_rate(q)) is None else p for q in predictions])
    known = ~np.isnan(rates)
    result: dict[str, Any] = {"problems": len(problems), "predicted": int(known.sum())}
    if known.any():
        curve = reliability_curve(rates[known], right[known], drawn[known])
        actual, base = right[known] / drawn[known], right[known].sum() / drawn[known].sum()
        result["pass_rate"] = {
            "correlation": correlation(rates[known], actual),
            "error": float(np.abs(rates[known] - actual).mean()),
            "brier": brier_score(rates[known], right[known], drawn[known]),
            "brier_of_a_constant": float(base * (1 - base)),  # one and the same prediction, the mean, for all
            "calibration_error": calibration_error(curve),
            "spread": float(rates[known].std()),  # 0: the same prediction for every problem
            "curve": curve,
        }
    result["length"] = _length_figures(problems, predictions)
    notions = [
        r["notion"]
        for p, q in zip(problems, predictions, strict=True)
        for r, m in zip(p["rewards"], q, strict=True)
        if m
    ]
    result["notion_precision"] = float(np.mean(notions)) if notions else None
    result["gate"] = _gate_figures(problems, predictions, rates, group, (gate_std, gate_margin, gate_easy))
    limits = [masa.length_limit(q, cutoff_multiplier, max_new_tokens) for q in predictions]
    result["cutoff"] = _cutoff_figures(problems, limits)
    return result


def _length_figures(problems: Sequence[dict], predictions: Sequence[list[MetaPrediction | None]]) -> dict[str, Any]:
    """Over problems with a right solution: how do predicted lengths fit those of right solutions?"""
    predicted, actual, inside = [], [], []
    for problem, answers in zip(problems, predictions, strict=True):
        lengths = [n for n, right in zip(problem["lengths"], problem["correct"], strict=True) if right]
        parsed = [answer.solution_length for answer in answers if answer]
        if lengths and parsed:
            predicted.append(np.median(parsed))
            actual.append(np.median(lengths))
            inside += [min(lengths) <= length <= max(lengths) for length in parsed]
    return {
        "in_range": float(np.mean(inside)) if inside else None,
        "correlation": correlation(predicted, actual),
        "error_tokens": float(np.abs(np.subtract(predicted, actual)).mean()) if predicted else None,
    }


def _gate_figures(
    problems: Sequence[dict],
    predictions: Sequence[list[MetaPrediction | None]],
    rates: NDArray,
    group: int,
    thresholds: tuple[float, float, bool],
) -> dict[str, Any]:
    """thresholds: the last arguments of `masa.should_skip`."""
    gate_std, _, gate_easy = thresholds
    right = [sum(problem["correct"]) for problem in problems]
    drawn = [len(problem["correct"]) for problem in problems]
    chance = np.array([zero_variance_chance(c, n, group) for c, n in zip(right, drawn, strict=True)])
    skip = np.array([masa.should_skip(answers, *thresholds) for answers in predictions])
    agree = [masa.should_skip(answers, gate_std, 1.0) for answers in predictions]  # a margin of 1 holds every mean
    edge = np.minimum(rates, 1 - rates) if gate_easy else rates
    curves = {"agreeing": gate_curve(edge, agree, chance), "all": gate_curve(edge, ~np.isnan(edge), chance)}
    skipped = [problem for problem, gated in zip(problems, skip, strict=True) if gated]
    return {
        **scores(chance[skip].sum(), skip.sum(), chance.sum()),
        "share": float(skip.mean()),
        "zero_variance_frac": float(chance.mean()),
        "best_f1": max(
            (point for curve in curves.values() for point in curve), key=lambda p: p["f1"] or 0, default=None
        ),
        "oracle": oracle_gate(right, drawn, group, float(skip.mean())),
        "tokens_saved": sum(sum(problem["lengths"]) for problem in skipped),
        "tokens": sum(sum(problem["lengths"]) for problem in problems),
        "tokens_predicting": sum(problem["tokens_meta"] for problem in problems),
        "right_lost": sum(sum(problem["correct"]) for problem in skipped),
        "right": sum(right),
        "curves": curves,
    }


def _cutoff_figures(problems: Sequence[dict], limits: Sequence[int]) -> dict[str, Any]:
    """How well does a limit tell wrong solutions (they should be cut) from right ones?"""
    lengths = np.array([n for problem in problems for n in problem["lengths"]])
    correct = np.array([right for problem in problems for right in problem["correct"]], bool)
    limit = np.repeat(limits, [len(problem["lengths"]) for problem in problems])
    cut = lengths > limit
    return {
        **scores((cut & ~correct).sum(), cut.sum(), (~correct).sum()),
        "share": float(cut.mean()),
        "tokens_saved": int((lengths - limit)[cut].sum()),
        "right_lost": int((cut & correct).sum()),
        "cut": int(cut.sum()),
    }


def main() -> None:
    print("Four problems, 16 solutions each, predicted .5 .5 1 0, right 8 of 16, 4, 16, 0")
    predicted, right, drawn = [0.5, 0.5, 1.0, 0.0], [8, 4, 16, 0], [16] * 4
    curve = reliability_curve(predicted, right, drawn)
    print("reliability curve (predicted, actual, solutions):", curve)
    print("calibration error (0 + 32 x .125 + 0) / 64 =", calibration_error(curve))
    print("Brier score (16 x .25 + 16 x .25 + 0 + 0) / 64 =", brier_score(predicted, right, drawn))
    print(
        "a gate that skips the last two is right both times; an oracle that knows the true rates expects",
        oracle_gate(right, drawn, 16, 0.5)["same_share"],
    )
    print(f"if one of them truly had .99, its 16 would vary once in seven times: {1 - 0.99**16:.2f}")


if __name__ == "__main__":
    main()
