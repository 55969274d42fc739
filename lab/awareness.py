"""Measure meta-awareness: how well does what a policy says of itself, and what it believes, fit what it then does?

    python -m lab.awareness                                         # a worked example
    python -m lab.awareness runs/main/masa-efficient                # before and after training, all seeds together
    python -m lab.awareness runs/eval --levels 1,2                  # written by eval.py --out

The problems are held out. What is *said* of a problem is the mean pass rate and the median length of its predictions
that parsed, as gate and cutoff use them; if fewer than half did, nothing is said, and the problem is neither skipped
nor cut. What is *read* is the mean of its belief; the gate by what is read is that of masa-read with the same --gate.

Both gates are compared with an oracle that knows each problem's true pass rate p, but not how the draws fall: G draws
are all alike with probability z(p) = p^G + (1-p)^G, which is only 0.85 for p = 0.99 and G = 16. Its best rule skips
problems by falling z, so no gate can expect more hits at the same share skipped. The distribution of p over problems is
estimated from the numbers of correct solutions by nonparametric maximum likelihood (expectation maximisation).

Left out: confidence intervals; lab/compare.py has them over seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain, compress
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import masa
from engine.run_folder import read_rows
from eval import pass_at_k
from masa import MetaPrediction

READ_AT = 0.95  # problems whose solutions are believed all alike with this probability are skipped (--algo masa-read)
BINS = 10  # number of calibration bins, of equal width
GRID = np.linspace(0.0, 1.0, 201)  # the true pass rates among which their distribution is estimated
EM_STEPS = 1000
ON_PAPER = "Gate and cutoff: what they would have done. No problem was skipped here, and no solution cut."
Predictions = list[MetaPrediction | None]  # of one problem; None: did not parse
Row = dict[str, Any]  # of a table: {column: value}


def correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Return Pearson's correlation; None with fewer than two values or if one side is constant."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and np.ptp(x) and np.ptp(y) else None


def brier_score(predicted: NDArray, correct: NDArray, drawn: NDArray) -> float:
    """Return the mean over solutions of (predicted pass rate - outcome)^2. All arguments are (problems,)."""
    return float((correct * (1 - predicted) ** 2 + (drawn - correct) * predicted**2).sum() / drawn.sum())


def reliability(predicted: NDArray, correct: NDArray, drawn: NDArray) -> NDArray:
    """Return the mean predicted pass rate, the actual one and the solutions of each bin that holds any: (3, bins)."""
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], predicted)
    sums = np.array([np.bincount(bins, weights=each) for each in (predicted * drawn, correct, drawn)])
    sums = sums[:, sums[2] > 0]
    return np.array([*sums[:2] / sums[2], sums[2]])


def calibration_error(predicted: NDArray, correct: NDArray, drawn: NDArray) -> float:
    """Return the expected calibration error: mean |predicted - actual| over the bins, weighted by their solutions."""
    said, actual, solutions = reliability(predicted, correct, drawn)
    return float(np.abs(said - actual) @ solutions / solutions.sum())


def zero_variance_chance(correct: int, drawn: int, group: int) -> float:
    """Return the chance that `group` of the drawn solutions, without replacement, are all correct or all wrong.

    This is the unbiased estimate of p^G + (1-p)^G. A group larger than `drawn` is reduced to `drawn`.
    """
    one_right, one_wrong = (pass_at_k(drawn, count, min(group, drawn)) for count in (correct, drawn - correct))
    return 2 - one_right - one_wrong


def rate_distribution(correct: ArrayLike, drawn: ArrayLike) -> NDArray:
    """Return the weights (len(GRID),) of the distribution of true pass rates under which the counts are likeliest."""
    pairs, times = np.unique(np.stack([correct, drawn], axis=1), axis=0, return_counts=True)
    c, n = pairs[:, :1], pairs[:, 1:]
    likelihood = GRID**c * (1 - GRID) ** (n - c)  # (distinct counts, grid), up to a constant factor per row
    weights = np.full(len(GRID), 1 / len(GRID))
    for _ in range(EM_STEPS):  # the mean over problems of their posterior distributions
        weights *= times / times.sum() / (likelihood @ weights) @ likelihood
    return weights


def scores(hits: float, chosen: float, wanted: float) -> dict[str, float | None]:
    """Return precision hits / chosen, and recall hits / wanted; None where the divisor is 0."""
    return {
        "precision": float(hits / chosen) if chosen else None,
        "recall": float(hits / wanted) if wanted else None,
    }


def oracle_gate(weights: NDArray, group: int, share: float) -> Row:
    """Return what the oracle scores if it skips this share of problems. weights: of true pass rates (len(GRID),)."""
    chance = GRID**group + (1 - GRID) ** group
    order = np.argsort(-chance, kind="stable")
    skipped, hits = np.cumsum(weights[order]), np.cumsum((weights * chance)[order])
    return scores(np.interp(share, [0.0, *skipped], [0.0, *hits]), share, hits[-1])


# ------------------------------------------------------------------------------- the rows of evaluations.jsonl


def read_predictions(problem: dict) -> Predictions:
    """Rebuild the predictions of a problem, whatever fields MetaPrediction has today.

    A field that a row lacks becomes None. Without a pass rate or a length a prediction counts as not parsed.
    """
    answers: Predictions = []
    for row in problem["predictions"]:
        values = {field.name: (row or {}).get(field.name) for field in fields(MetaPrediction)}
        acts = values["pass_rate"] is not None and values["solution_length"] is not None
        answers.append(MetaPrediction(**values | {"notions": tuple(values["notions"] or ())}) if acts else None)
    return answers


def said_rate(problem: dict) -> float | None:
    return masa.predicted_pass_rate(read_predictions(problem))


def read_rate(problem: dict) -> float | None:
    return masa.expected_pass_rate(problem["belief"]) if problem.get("belief") else None


WAYS = {"said": said_rate, "read": read_rate}


def counts(problems: Sequence[dict]) -> tuple[NDArray, NDArray]:
    """Return how many solutions of each problem are correct, and how many were drawn."""
    return np.array([sum(p["correct"]) for p in problems]), np.array([len(p["correct"]) for p in problems])


def awareness(
    problems: Sequence[dict], *, group: int = 16, gate: str = "hopeless", gate_margin: float = 0.1, cutoff: float = 2.0
) -> dict[str, Row]:
    """Return all figures of an evaluation's problems (rows of evaluations.jsonl); None where undefined.

    group: G, the number of solutions whose agreement the gate predicts.  gate, gate_margin, cutoff: as in training. A
    gate that is "off" is judged as "hopeless" and a cutoff of 0.0 as 2.0: by what they would have done.
    """
    (correct, drawn), both = counts(problems), gate == "both"
    predictions = [read_predictions(problem) for problem in problems]
    rates = {way: np.array([rate(p) for p in problems], float) for way, rate in WAYS.items()}  # NaN: none
    ways = [way for way in WAYS if not np.isnan(rates[way]).all()]
    skip = {
        "said": [masa.should_skip(answers, margin=gate_margin, easy=both) for answers in predictions],
        "read": [bool(p.get("belief")) and masa.probability_alike(p["belief"], both) >= READ_AT for p in problems],
    }
    rewards = [r for p, q in zip(problems, predictions, strict=True) for r, m in zip(p["rewards"], q, strict=True) if m]
    return {
        "problems": {
            "held_out": len(problems),
            "predicted": int((~np.isnan(rates["said"])).sum()),
            "pass@1": float((correct / drawn).mean()),
        },
        **{way: _pass_rate_figures(rates[way], correct, drawn) for way in ways},
        "length": _length_figures(problems, predictions),
        # Means over the predictions that parsed and have this reward: a run may have begun before it existed.
        "rewards": {n: fmean(row[n] for row in rewards if n in row) for n in dict.fromkeys(chain(*rewards))},
        **{f"gate, {way}": _gate_figures(np.array(skip[way]), correct, drawn, group) for way in ways},
        "cutoff": _cutoff_figures(problems, predictions, cutoff or 2.0),
    }


def _pass_rate_figures(rates: NDArray, correct: NDArray, drawn: NDArray) -> Row:
    """Compare predicted with actual pass rates, where there is a predicted one (not NaN)."""
    known = ~np.isnan(rates)
    p, c, n = rates[known], correct[known], drawn[known]
    return {
        "correlation": correlation(p, c / n),
        "correlation_among_solvable": correlation(p[c > 0], (c / n)[c > 0]),
        "mean_error": float(np.abs(p - c / n).mean()),
        "calibration_error": calibration_error(p, c, n),
        "Brier_score": brier_score(p, c, n),
        "Brier_score_of_a_constant": brier_score(c.sum() / n.sum(), c, n),  # the mean, for every problem
        "spread": float(p.std()),  # 0: the same prediction for every problem
    }


def _length_figures(problems: Sequence[dict], predictions: Sequence[Predictions]) -> Row:
    """Compare predicted with correct lengths, over the problems that have a correct solution."""
    parsed = [[answer.solution_length for answer in answers if answer] for answers in predictions]
    correct = [list(compress(problem["lengths"], problem["correct"])) for problem in problems]
    pairs = [(ours, right) for ours, right in zip(parsed, correct, strict=True) if ours and right]
    if not pairs:
        return {}
    predicted, actual = [np.median(ours) for ours, _ in pairs], [np.median(right) for _, right in pairs]
    return {
        "share_within_correct_lengths": fmean(min(r) <= length <= max(r) for ours, r in pairs for length in ours),
        "correlation": correlation(predicted, actual),
        "mean_error_in_tokens": float(np.abs(np.subtract(predicted, actual)).mean()),
    }


def _gate_figures(skip: NDArray, correct: NDArray, drawn: NDArray, group: int) -> Row:
    """Score a gate that skips these problems against the chance that a group of their solutions has zero variance."""
    chance = np.array([zero_variance_chance(int(c), int(n), group) for c, n in zip(correct, drawn, strict=True)])
    oracle, hopeless = oracle_gate(rate_distribution(correct, drawn), group, skip.mean()), correct == 0
    return {
        "share_skipped": float(skip.mean()),
        **scores(chance[skip].sum(), skip.sum(), chance.sum()),
        "recall_of_the_hopeless": float(skip[hopeless].mean()) if hopeless.any() else None,
        "precision_of_an_oracle": oracle["precision"],
        "recall_of_an_oracle": oracle["recall"],
    }


def _cutoff_figures(problems: Sequence[dict], predictions: Sequence[Predictions], multiplier: float) -> Row:
    """Score the length limit by how well it tells wrong solutions, which should be cut, from correct ones."""
    lengths = np.array([n for problem in problems for n in problem["lengths"]])
    correct = np.array([right for problem in problems for right in problem["correct"]], bool)
    limits = [masa.length_limit(answers, multiplier, int(lengths.max())) for answers in predictions]
    limit = np.repeat(limits, [len(problem["lengths"]) for problem in problems])
    cut = lengths > limit
    return {
        "share_cut": float(cut.mean()),
        **scores((cut & ~correct).sum(), cut.sum(), (~correct).sum()),
        "correct_in_100_cut": float(100 * correct[cut].mean()) if cut.any() else None,
    }


# ------------------------------------------------------------------------------- tables and the command


def figure_rows(columns: dict[str, dict[str, Row]]) -> list[Row]:
    """Return results of `awareness` as the rows of a table: a row for each figure, a column for each result's name."""
    flat = {
        column: {f"{part}: {name}": value for part, figures in parts.items() for name, value in figures.items()}
        for column, parts in columns.items()
    }
    labels = dict.fromkeys(chain(*flat.values()))
    rows = ({column: figures.get(label) for column, figures in flat.items()} for label in labels)
    return [{"figure": label.replace("_", " ")} | row for label, row in zip(labels, rows, strict=True)]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Write a table as text, its head first: three decimals, "-" for None, nothing where a row lacks a column."""

    def show(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    head = list(dict.fromkeys(chain(*rows)))
    return [head] + [[show(row.get(name, "")) for name in head] for row in rows]


def aligned(rows: Sequence[Row]) -> str:
    """Write a table in Markdown with aligned columns."""
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def evaluations(path: Path, every: bool = False) -> dict[str, list[dict]]:
    """Return {name: problems} of a file, or of all files below a folder, where the seeds of a step are pooled.

    Of a training run only the first and the last evaluation, unless `every`.
    """
    found: dict[str, list[dict]] = {}
    for rows in map(read_rows, [path] if path.is_file() else sorted(path.rglob("evaluations.jsonl"))):
        for row in rows if every or any("model" in row for row in rows) else rows[:1] + rows[1:][-1:]:
            name = f"{row['model']} on {row['data']}" if "model" in row else f"step {row['step']}"
            found.setdefault(name, []).extend(row["problems"])
    return found


def example() -> None:
    print("Four problems, 16 solutions each, predicted 0.5 0.5 1 0, correct 8 of 16, 4, 16, 0")
    predicted, correct, drawn = np.array([0.5, 0.5, 1.0, 0.0]), np.array([8, 4, 16, 0]), np.full(4, 16)
    print("calibration error (|16 - 12| + 0 + 0) / 64 =", calibration_error(predicted, correct, drawn))
    print("Brier score (16 x 0.25 + 16 x 0.25 + 0 + 0) / 64 =", brier_score(predicted, correct, drawn))
    print("A gate that skips the last two is right both times. An oracle that knows the true pass rates expects")
    print(oracle_gate(rate_distribution(correct, drawn), 16, 0.5))
    print(f"If one of them truly had 0.99, its 16 would vary once in seven times: {1 - 0.99**16:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser("python -m lab.awareness", description="Print how well predictions fit.")
    parser.add_argument("path", nargs="?", type=Path, help="evaluations.jsonl, a run, or a folder of runs to pool")
    parser.add_argument("--every", action="store_true", help="show all evaluations of a run, not the first and last")
    parser.add_argument("--levels", default="", help="keep only problems of these levels, such as 1,2")
    parser.add_argument("--group", type=int, default=16, help="G, whose zero variance the gate is to predict")
    parser.add_argument("--gate", choices=("hopeless", "both"), default="hopeless", help="which ends the gate skips")
    options = parser.parse_args()
    if not options.path:
        return example()
    columns, levels = {}, options.levels.split(",") if options.levels else []
    for name, problems in evaluations(options.path, options.every).items():
        if kept := [problem for problem in problems if not levels or str(problem["level"]) in levels]:
            columns[name] = awareness(kept, group=options.group, gate=options.gate)
    if not columns:
        sys.exit(f"lab.awareness: {options.path}: found no evaluation with problems of these levels")
    print(f"{ON_PAPER}\n\n{aligned(figure_rows(columns))}")


if __name__ == "__main__":
    main()
