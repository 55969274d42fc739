"""Measure meta-awareness: how well do a policy's predictions fit what it then does on problems it never trained on?

    python -m lab.awareness                                         # a worked example
    python -m lab.awareness runs/main/masa-efficient --solvable     # before and after training, all seeds together
    python -m lab.awareness runs/eval/evaluations.jsonl --levels 1,2

A problem's predicted pass rate is the mean of its parsed predictions and its predicted length their median, as gate and
cutoff use them. If fewer than half parsed, it has no predicted pass rate and is neither skipped nor cut.

The gate is compared with an oracle that knows each problem's true pass rate p, but not how the draws fall: G draws are
all alike with probability z(p) = p^G + (1-p)^G, which is only 0.85 for p = 0.99 and G = 16. Its best rule skips
problems by falling z, so no gate can expect more hits at the same share skipped. The distribution of p over problems is
estimated from the numbers of correct solutions by nonparametric maximum likelihood (expectation maximisation).

Left out: confidence intervals; lab/compare.py has them over seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import masa
from masa import MetaPrediction

BINS = 10  # number of calibration bins, of equal width
GRID = np.linspace(0.0, 1.0, 201)  # the true pass rates among which their distribution is estimated
EM_STEPS = 1000
Predictions = list[MetaPrediction | None]  # of one problem; None: did not parse


def correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Return Pearson's correlation; None with fewer than two values or if one side is constant."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


# Brier score and calibration error use numpy alone, because the table of ablate.py needs them without scikit-learn.


def brier_score(predicted: NDArray, correct: NDArray, drawn: NDArray) -> float:
    """Return the mean over solutions of (predicted pass rate - outcome)^2. All arguments are (problems,)."""
    return float((correct * (1 - predicted) ** 2 + (drawn - correct) * predicted**2).sum() / drawn.sum())


def calibration_error(predicted: NDArray, correct: NDArray, drawn: NDArray) -> float:
    """Return the expected calibration error: mean |predicted - actual| over the bins, weighted by their solutions."""
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], predicted)
    return float(np.abs(np.bincount(bins, weights=predicted * drawn - correct)).sum() / drawn.sum())


def reliability(predicted: ArrayLike, correct: ArrayLike, drawn: ArrayLike) -> list[tuple[float, float]]:
    """Return (mean predicted, actual pass rate) of each bin that holds a problem, in rising order."""
    from sklearn.calibration import calibration_curve

    p, c, n = np.asarray(predicted, float), np.asarray(correct, int), np.asarray(drawn, int)
    outcomes = np.repeat([1, 0], [c.sum(), (n - c).sum()])  # one entry per solution
    actual, mean_predicted = calibration_curve(outcomes, np.concatenate([p.repeat(c), p.repeat(n - c)]), n_bins=BINS)
    return list(zip(mean_predicted.tolist(), actual.tolist(), strict=True))


def zero_variance_chance(correct: int, drawn: int, group: int) -> float:
    """Return the chance that `group` of the drawn solutions, without replacement, are all correct or all wrong.

    This is the unbiased estimate of p^G + (1-p)^G. A group larger than `drawn` is reduced to `drawn`.
    """
    group = min(group, drawn)
    return (comb(correct, group) + comb(drawn - correct, group)) / comb(drawn, group)


def rate_distribution(correct: ArrayLike, drawn: ArrayLike) -> NDArray:
    """Return the weights (len(GRID),) of the distribution of true pass rates under which the counts are likeliest."""
    pairs, times = np.unique(np.stack([correct, drawn], axis=1).astype(float), axis=0, return_counts=True)
    c, n = pairs[:, :1], pairs[:, 1:]
    likelihood = GRID**c * (1 - GRID) ** (n - c)  # (distinct counts, grid), up to a constant factor per row
    weights = np.full(len(GRID), 1 / len(GRID))
    for _ in range(EM_STEPS):
        posterior = weights * likelihood
        weights = times @ (posterior / posterior.sum(axis=1, keepdims=True)) / times.sum()
    return weights


def oracle_curve(weights: NDArray, group: int) -> tuple[NDArray, NDArray]:
    """Return (share skipped, share skipped and of zero variance) as the oracle skips more and more, from 0 to all."""
    chance = GRID**group + (1 - GRID) ** group
    order = np.argsort(-chance, kind="stable")
    skipped, hits = np.cumsum(weights[order]), np.cumsum((weights * chance)[order])
    return np.append(0.0, skipped), np.append(0.0, hits)


def scores(hits: float, chosen: float, wanted: float) -> dict[str, float | None]:
    """Return precision hits / chosen, recall hits / wanted, and F1; None where the divisor is 0."""
    return {
        "precision": float(hits / chosen) if chosen else None,
        "recall": float(hits / wanted) if wanted else None,
        "F1": float(2 * hits / (chosen + wanted)) if chosen + wanted else None,
    }


def oracle_gate(correct: ArrayLike, drawn: ArrayLike, group: int, share: float) -> dict[str, Any]:
    """Return the oracle's expected scores: at the share that the gate skips, at its best F1, and at every share."""
    skipped, hits = oracle_curve(rate_distribution(correct, drawn), group)
    best = int(np.argmax(hits / (skipped + hits[-1]))) if hits[-1] else 0
    return {
        "at_same_share": scores(np.interp(share, skipped, hits), share, hits[-1]),
        "at_best_F1": scores(hits[best], skipped[best], hits[-1]) | {"share": float(skipped[best])},
        "curve": [scores(np.interp(s, skipped, hits), s, hits[-1]) for s in np.linspace(0.05, 1.0, 20)],
    }


# ------------------------------------------------------------------------------- the rows of evaluations.jsonl


def read_rows(file: Path) -> list[dict]:
    """Return the objects of a JSONL file. Raises ValueError if it cannot be read."""
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected one JSON object on each line: {error}") from error


def read_predictions(problem: dict) -> Predictions:
    """Rebuild the predictions of a problem, whatever fields MetaPrediction has today.

    A field that the row lacks becomes None, and one that MetaPrediction lacks is dropped; `field_notes` says so.
    Without a pass rate or a length, which gate and cutoff need, a prediction counts as not parsed.
    """

    def rebuild(row: dict | None) -> MetaPrediction | None:
        if not row or row.get("pass_rate") is None or row.get("solution_length") is None:
            return None
        names = [field.name for field in fields(MetaPrediction)]
        values: dict[str, Any] = {k: tuple(v) if isinstance(v := row.get(k), list) else v for k in names}
        return MetaPrediction(**values)

    return [rebuild(row) for row in problem["predictions"]]


def field_notes(problems: Sequence[dict]) -> list[str]:
    """Return a sentence for each field in which the stored predictions differ from MetaPrediction."""
    rows = [row for problem in problems for row in problem["predictions"] if row]
    known = {field.name for field in fields(MetaPrediction)}
    lacking = {name: sum(name not in row for row in rows) for name in sorted(known.union(*rows))}
    return [
        f"{count} of {len(rows)} predictions have no {name}; they were made before it existed."
        if name in known
        else f"Predictions have a field {name} that MetaPrediction does not know; it is ignored."
        for name, count in lacking.items()
        if count or name not in known
    ]


def awareness(
    problems: Sequence[dict], *, group: int = 16, gate: str = "hopeless", gate_margin: float = 0.1, cutoff: float = 2.0
) -> dict[str, Any]:
    """Return all figures of an evaluation's problems (rows of evaluations.jsonl); None where undefined.

    group: G, the number of solutions whose agreement the gate predicts.  gate, gate_margin, cutoff: as in training. A
    gate that is "off" is judged as "hopeless" and a cutoff of 0.0 as 2.0: by what they would have done.
    """
    predictions = [read_predictions(problem) for problem in problems]
    rates = np.array([np.nan if (p := masa.predicted_pass_rate(q)) is None else p for q in predictions])
    correct = np.array([sum(problem["correct"]) for problem in problems])
    drawn = np.array([len(problem["correct"]) for problem in problems])
    rewards = [r for p, q in zip(problems, predictions, strict=True) for r, m in zip(p["rewards"], q, strict=True) if m]
    gate_figures = _gate_figures(problems, predictions, rates, group, gate == "both", gate_margin)
    return {
        "problems": len(problems),
        "problems_predicted": int((~np.isnan(rates)).sum()),
        "pass@1": float((correct / drawn).mean()),
        "pass_rate": _pass_rate_figures(rates, correct, drawn),
        "length": _length_figures(problems, predictions),
        "rewards": {  # means over the predictions that parsed
            name: fmean(row[name] for row in rewards if name in row)
            for name in dict.fromkeys(name for row in rewards for name in row)
        },
        "gate": gate_figures,
        "oracle": oracle_gate(correct, drawn, group, gate_figures["share_skipped"]),
        "cutoff": _cutoff_figures(problems, predictions, cutoff or 2.0),
        "notes": field_notes(problems),
    }


def _pass_rate_figures(rates: NDArray, correct: NDArray, drawn: NDArray) -> dict[str, float | None]:
    """Compare predicted with actual pass rates; nothing if no problem has a predicted one (NaN)."""
    known = ~np.isnan(rates)
    p, c, n = rates[known], correct[known], drawn[known]
    if not known.any():
        return {}
    return {
        "correlation": correlation(p, c / n),
        "mean_error": float(np.abs(p - c / n).mean()),
        "calibration_error": calibration_error(p, c, n),
        "Brier_score": brier_score(p, c, n),
        "Brier_score_of_a_constant": float(c.sum() / n.sum() * (1 - c.sum() / n.sum())),  # the mean, for every problem
        "spread": float(p.std()),  # 0: the same prediction for every problem
    }


def _length_figures(problems: Sequence[dict], predictions: Sequence[Predictions]) -> dict[str, float | None]:
    """Compare predicted with correct lengths, over the problems that have a correct solution."""
    predicted, actual, inside = [], [], []
    for problem, answers in zip(problems, predictions, strict=True):
        lengths = [n for n, right in zip(problem["lengths"], problem["correct"], strict=True) if right]
        parsed = [answer.solution_length for answer in answers if answer]
        if lengths and parsed:
            predicted.append(np.median(parsed))
            actual.append(np.median(lengths))
            inside += [min(lengths) <= length <= max(lengths) for length in parsed]
    return {
        "share_within_correct_lengths": float(np.mean(inside)) if inside else None,
        "correlation": correlation(predicted, actual),
        "mean_error_in_tokens": float(np.abs(np.subtract(predicted, actual)).mean()) if predicted else None,
    }


def _gate_figures(
    problems: Sequence[dict], predictions: Sequence[Predictions], rates: NDArray, group: int, both: bool, margin: float
) -> dict[str, Any]:
    """Score the gate against the chance that each problem's group has zero variance. both: it skips near 1, too."""
    tokens = np.array([sum(problem["lengths"]) for problem in problems])
    correct = np.array([sum(problem["correct"]) for problem in problems])
    chance = np.array([zero_variance_chance(sum(p["correct"]), len(p["correct"]), group) for p in problems])
    skip = np.array([masa.should_skip(q, margin=margin, easy=both) for q in predictions])
    distance = np.minimum(rates, 1 - rates) if both else rates

    def curve(allowed: NDArray) -> list[dict[str, float | None]]:
        margins = np.unique(distance[~np.isnan(distance)])
        chosen = [(float(m), allowed & (distance <= m + masa.ROUNDING)) for m in margins]
        return [{"margin": m, **scores(chance[skip].sum(), skip.sum(), chance.sum())} for m, skip in chosen]

    agree = np.array([masa.should_skip(q, margin=1.0) for q in predictions])  # a margin of 1 admits every mean
    curves = {"agreeing": curve(agree), "all": curve(~np.isnan(distance))}
    return {
        "share_skipped": float(skip.mean()),
        **scores(chance[skip].sum(), skip.sum(), chance.sum()),
        "at_best_margin": max(curves["agreeing"] + curves["all"], key=lambda point: point["F1"] or 0, default=None),
        "zero_variance_share": float(chance.mean()),
        "tokens_saved": int(tokens[skip].sum()),
        "tokens_of_solutions": int(tokens.sum()),
        "tokens_of_predictions": sum(problem["tokens_meta"] for problem in problems),
        "correct_solutions_lost": int(correct[skip].sum()),
        "correct_solutions": int(correct.sum()),
        "curves": curves,
    }


def _cutoff_figures(problems: Sequence[dict], predictions: Sequence[Predictions], multiplier: float) -> dict[str, Any]:
    """Score the length limit by how well it tells wrong solutions, which should be cut, from correct ones."""
    lengths = np.array([n for problem in problems for n in problem["lengths"]])
    correct = np.array([right for problem in problems for right in problem["correct"]], bool)
    limits = [masa.length_limit(answers, multiplier, int(lengths.max())) for answers in predictions]
    limit = np.repeat(limits, [len(problem["lengths"]) for problem in problems])
    cut = lengths > limit
    return {
        "share_cut": float(cut.mean()),
        **scores((cut & ~correct).sum(), cut.sum(), (~correct).sum()),
        "tokens_saved": int((lengths - limit)[cut].sum()),
        "correct_solutions_lost": int((cut & correct).sum()),
        "correct_in_100_cut": float(100 * correct[cut].mean()) if cut.any() else None,
    }


# ------------------------------------------------------------------------------- the command


def flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Return nested figures as {plain label: number}: {"gate": {"share_cut": 0.1}} as {"gate: share cut": 0.1}."""
    flat: dict[str, float | None] = {}
    for name, value in figures.items():
        label = prefix + name.replace("_", " ")
        if isinstance(value, dict):
            flat |= flatten(value, f"{label}: ")
        elif value is None or isinstance(value, int | float):
            flat[label] = value
    return flat


def table(columns: dict[str, dict[str, Any]]) -> str:
    """Return the results of `awareness` as text: a line for each figure, a column for each evaluation."""
    flat = [flatten(figures) for figures in columns.values()]
    labels = dict.fromkeys(label for figures in flat for label in figures)
    lines = [f"[{number}] {name}" for number, name in enumerate(columns, 1)]
    lines.append(" " * 40 + "".join(f"{f'[{number}]':>12}" for number in range(1, len(columns) + 1)))
    lines += [f"{label:<40}" + "".join(f"{show(found.get(label)):>12}" for found in flat) for label in labels]
    return "\n".join(lines + [note for figures in columns.values() for note in figures["notes"]])


def show(value: float | None) -> str:
    """Write a figure with three decimals, a count without, and "-" where there is none."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def evaluations(path: Path, every: bool = False) -> dict[str, list[dict]]:
    """Return {name: problems} of a file, or of all files below a folder, where the seeds of a step are pooled.

    Of a training run only the first and the last evaluation, unless `every`. Raises ValueError if there is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("evaluations.jsonl"))
    found: dict[str, list[dict]] = {}
    for rows in map(read_rows, files):
        for row in rows if every or any("model" in row for row in rows) else rows[:1] + rows[1:][-1:]:
            name = f"{row['model']} on {row['data']}" if "model" in row else f"step {row['step']}"
            found.setdefault(f"{path}, {name}", []).extend(row["problems"])
    if not found:
        raise ValueError(f"{path}: found no evaluations.jsonl with an evaluation in it")
    return found


def example() -> None:
    print("Four problems, 16 solutions each, predicted 0.5 0.5 1 0, correct 8 of 16, 4, 16, 0")
    predicted, correct, drawn = np.array([0.5, 0.5, 1.0, 0.0]), np.array([8, 4, 16, 0]), np.full(4, 16)
    print("calibration error (|16 - 12| + 0 + 0) / 64 =", calibration_error(predicted, correct, drawn))
    print("Brier score (16 x 0.25 + 16 x 0.25 + 0 + 0) / 64 =", brier_score(predicted, correct, drawn))
    print("A gate that skips the last two is right both times. An oracle that knows the true pass rates expects")
    print(oracle_gate(correct, drawn, 16, 0.5)["at_same_share"])
    print(f"If one of them truly had 0.99, its 16 would vary once in seven times: {1 - 0.99**16:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how well predictions fit what happened on held-out problems.")
    parser.add_argument("paths", nargs="*", type=Path, help="evaluations.jsonl, a run, or a folder of runs to pool")
    parser.add_argument("--every", action="store_true", help="show all evaluations of a run, not the first and last")
    parser.add_argument("--levels", default="", help="keep only problems of these levels, such as 1,2")
    parser.add_argument("--solvable", action="store_true", help="leave out problems that no solution shown here solves")
    parser.add_argument("--group", type=int, default=16, help="G, whose zero variance the gate is to predict")
    parser.add_argument("--gate", choices=("hopeless", "both"), default="hopeless", help="which ends the gate skips")
    options = parser.parse_args()
    if not options.paths:
        return example()
    try:
        found = {name: rows for path in options.paths for name, rows in evaluations(path, options.every).items()}
    except ValueError as error:
        sys.exit(f"lab.awareness: {error}")
    solved = {problem["problem"] for rows in found.values() for problem in rows if any(problem["correct"])}
    levels = options.levels.split(",") if options.levels else []
    columns = {}
    for name, rows in found.items():
        rows = [p for p in rows if p["problem"] in solved] if options.solvable else rows
        rows = [p for p in rows if str(p["level"]) in levels] if levels else rows
        if rows:
            columns[name] = awareness(rows, group=options.group, gate=options.gate)
    if not columns:
        sys.exit("lab.awareness: found no evaluation of these problems")
    print(table(columns))


if __name__ == "__main__":
    main()
