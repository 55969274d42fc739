"""Compare variants over seeds: accuracy, and what it costs to reach the accuracy of GRPO, or of another baseline.

    python -m lab.compare runs/main                              # the tables that ablate.py prints
    python -m lab.compare runs/main --baseline dapo              # compared with DAPO instead
    python -m lab.compare runs/main --columns zero_variance_frac,mean_length --first 20 --last 20

The cost to accuracy is what a variant spends until it *holds* the final pass@1 of this baseline, the mean of its last
three evaluations, since a single one is too noisy a target. A run holds a target from the first evaluation that reaches
it, provided that the mean of this and all later evaluations is not below it: one lucky evaluation is not enough, and an
unlucky one later does not undo it. The cost is that of the point where the line from the previous evaluation crosses
the target. The baseline's own cost follows the same rule.

This file only reads run folders, and needs no package but numpy, because ablate.py prints its tables.
"""

import argparse
import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.run_folder import read_config, read_rows
from lab.awareness import ON_PAPER, WAYS, Row, aligned, awareness, figure_rows

# The 0.975 quantile of Student's t for 1, 2, ... 30 degrees of freedom; the last serves for all above (normal: 1.960).
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
COSTS = ("tokens", "flops")  # columns of metrics.jsonl
FINAL_EVALUATIONS = 3  # the baseline's final pass@1, the target, is the mean of the last three
BASELINE, ORACLE = "grpo", "oracle-gate"
# Figures of training steps that are averaged over the last ones; docs/glossary.md explains them.
IN_TRAINING = """entropy mean_length grad_norm zero_variance_frac gated_frac cutoff_frac gate_precision gate_recall
wrongly_cut_frac eval_mean_length""".split()
LAST_STEPS = 20
REWARD = "eval_reward_"  # the columns of metrics.jsonl that hold meta rewards begin with this


class Interval(NamedTuple):
    """A mean of `n` values with its 95% interval, which is unbounded if there is only one."""

    n: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.n > 1 else "")


def mean_interval(values: Collection[float]) -> Interval | None:
    """Return the mean of the values and its 95% interval by Student's t; None without values."""
    if not values:
        return None
    count, mean, half = len(values), fmean(values), math.inf
    if count > 1:
        half = T_QUANTILES[min(count - 2, len(T_QUANTILES) - 1)] * stdev(values) / math.sqrt(count)
    return Interval(count, mean, mean - half, mean + half)


def paired(values: dict[int, float], baseline: dict[int, float]) -> Interval | None:
    """Return the mean difference to the baseline over the seeds that both have."""
    return mean_interval([value - baseline[seed] for seed, value in values.items() if seed in baseline])


def cost_to_hold(costs: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return the cost at which `values`, one per evaluation, first hold `target`; None if they never do."""
    target -= 1e-9  # rounding may put the mean of equal values above each of them
    for t, value in enumerate(values):
        if value >= target and np.mean(values[t:]) >= target:
            around = slice(max(t - 1, 0), t + 1)  # the evaluation before is below the target, or there is none
            return float(np.interp(target, values[around], costs[around]))
    return None


def shapley_r2(features: ArrayLike, outcome: ArrayLike) -> list[float] | None:
    """Share out the R² of a linear model among its features: each one's mean gain when added, over all orders.

    features: (runs, k), outcome: (runs,). The shares sum to the R² of the model with all k features. Return None with
    fewer than k + 2 runs, which are needed to fit it, or if the outcome is constant.
    """
    x, y = np.asarray(features, float), np.asarray(outcome, float)
    count = x.shape[1] if x.ndim == 2 else 0
    if not count or len(y) < count + 2 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(axis=0), y - y.mean()
    products, onto = x.T @ x, x.T @ y  # small, however many rows there are

    def r2(chosen: Sequence[int]) -> float:
        weights = np.linalg.lstsq(products[np.ix_(chosen, chosen)], onto[[*chosen]], rcond=None)[0]
        return float(onto[[*chosen]] @ weights / (y @ y))

    gains = np.zeros(count)
    for order in permutations(range(count)):
        gains[list(order)] += np.diff([0.0, *(r2(order[:size]) for size in range(1, count + 1))])
    return list(gains / math.factorial(count))


# ------------------------------------------------------------------------------- runs


@dataclass
class Run:
    """A run folder: its variant, seed, options, and the rows of metrics.jsonl with a column more, all `tokens`."""

    path: Path
    variant: str
    seed: int
    options: dict[str, Any]
    rows: list[dict]

    @cached_property
    def evaluations(self) -> list[dict]:
        """The rows of evaluations.jsonl, oldest first; empty if the run wrote none."""
        return read_rows(self.path / "evaluations.jsonl")

    def evaluated(self, column: str = "eval_pass1") -> list[Any]:
        """Return a column of metrics.jsonl, by default held-out pass@1, at each evaluation; None if it is missing."""
        return [row.get(column) for row in self.rows if row.get("eval_pass1") is not None]


def read_run(path: Path) -> Run:
    """Read a run folder, named VARIANT/seed-N by ablate.py; otherwise --algo is taken as its variant.

    Raises ValueError if the folder holds no run with an evaluation.
    """
    options, rows = read_config(path), read_rows(path / "metrics.jsonl")
    if not options or all(row.get("eval_pass1") is None for row in rows):
        raise ValueError(f"{path}: expected a run folder with config.json, and metrics.jsonl with an evaluation in it")
    rows = [row | {"tokens": row["tokens_solution"] + row["tokens_meta"]} for row in rows]
    variant = path.parent.name if path.name == f"seed-{options['seed']}" else options["algo"]
    return Run(path, variant, options["seed"], options, rows)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in the folders and below them. Raises ValueError if there are none."""
    paths = sorted({file.parent for folder in folders for file in folder.rglob("metrics.jsonl")})
    if not paths:
        raise ValueError(f"found no metrics.jsonl in {', '.join(map(str, folders))}")
    return [read_run(path) for path in paths]


def by_variant(runs: Sequence[Run], baseline: str = BASELINE) -> dict[str, list[Run]]:
    """Return the runs of each variant, the baseline first. Raises ValueError for two runs of one variant and seed."""
    grouped: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.variant != baseline):
        group = grouped.setdefault(run.variant, [])
        if twin := next((other for other in group if other.seed == run.seed), None):
            raise ValueError(f"{twin.path} and {run.path} are both {run.variant} with seed {run.seed}")
        group.append(run)
    return grouped


def reward_columns(runs: Sequence[Run]) -> dict[str, str]:
    """Return {column of metrics.jsonl: name} of the meta rewards that the held-out evaluations of any run hold."""
    columns = dict.fromkeys(name for run in runs for row in run.rows for name in row if row[name] is not None)
    return {column: column.removeprefix(REWARD) for column in columns if column.startswith(REWARD)}


def lacking(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each run without a column that other runs have, such as one begun before it existed."""
    columns = {run.path: set().union(*run.rows) for run in runs}
    absent = {path: sorted(set().union(*columns.values()) - own) for path, own in columns.items()}
    sentence = "{}: metrics.jsonl has no {}; figures that need it leave this run out."
    return [sentence.format(path, ", ".join(names)) for path, names in absent.items() if names]


# ------------------------------------------------------------------------------- the comparison


def compare(runs: Sequence[Run], baseline: str = BASELINE) -> tuple[dict[str, list[Row]], list[str]]:
    """Return the comparison as tables, {title: rows}, and sentences on what could not be compared."""
    variants, columns = by_variant(runs, baseline), reward_columns(runs)
    predicting = [run for run in runs if run.options["predictions"]]
    changes, change_shares = changes_explained(predicting, [*columns.values()])
    in_training = [column for column in IN_TRAINING if any(row.get(column) is not None for r in runs for row in r.rows)]
    last = column_table(runs, in_training, {"": slice(-LAST_STEPS, None)}) if in_training else []
    tables = {
        f"Held-out pass@1, and how many times fewer tokens and flops than {baseline} a variant needs to reach and hold "
        f"the final pass@1 of {baseline} (mean [95% interval])": accuracy_rows(variants, baseline),
        f"What explains how a problem's pass rate changes between two evaluations (Shapley R², {changes} changes, not "
        "independent; version 1 of the paper: notion 67.1%, difficulty 23.1%, length 8.4%, step 1.4%)": [change_shares],
        f"Predictions at the last evaluation, all seeds together. {ON_PAPER}": figure_rows(last_awareness(variants)),
        f"Training, mean over the last {LAST_STEPS} steps": last,
    }
    return {title: rows for title, rows in tables.items() if any(rows)}, lacking(runs)


def changes_explained(runs: Sequence[Run], rewards: Sequence[str]) -> tuple[int, Row]:
    """Explain how each held-out problem changes between any two evaluations of a run.

    Returns the number of changes, and the R² of a linear model of the change in pass rate with the shares of it that
    the changes of its mean rewards and of the step have (Shapley). Problems that lack a reward are left out.
    """

    def table(evaluation: dict) -> NDArray:  # (problems, len(rewards) + 2)
        rows = []
        for problem in evaluation["problems"]:
            means = [fmean(r.get(name, math.nan) for r in problem["rewards"] or [{}]) for name in rewards]
            rows.append([*means, evaluation["step"], fmean(problem["correct"])])
        return np.array(rows, float).reshape(-1, len(rewards) + 2)

    pairs = [pair for run in runs for pair in combinations(map(table, run.evaluations), 2)]
    changes = np.concatenate([table({"problems": []}), *(later - earlier for earlier, later in pairs)])
    changes = changes[~np.isnan(changes).any(axis=1)]
    gains = shapley_r2(changes[:, :-1], changes[:, -1])
    if not gains or not (r2 := sum(gains)):
        return len(changes), {}
    shares = {name: f"{gain / r2:.1%}" for name, gain in zip([*rewards, "step"], gains, strict=True)}
    return len(changes), {"R²": r2} | shares


def accuracy_rows(variants: dict[str, list[Run]], baseline: str) -> list[Row]:
    """Return accuracy and its cost, a row for each variant, and beside the baseline columns that compare it with that.

    "At equal tokens": at what the cheapest variant of the same seed generated, interpolated between evaluations.
    """
    runs = [run for group in variants.values() for run in group]
    budget = {run.seed: min(other.rows[-1]["tokens"] for other in runs if other.seed == run.seed) for run in runs}

    def final(group: Sequence[Run]) -> dict[int, float]:
        return {run.seed: run.evaluated()[-1] for run in group}

    def equal(group: Sequence[Run]) -> dict[int, float]:
        return {r.seed: float(np.interp(budget[r.seed], r.evaluated("tokens"), r.evaluated())) for r in group}

    base, rows = variants.get(baseline, []), []
    oracle, _ = cost_ratio(variants.get(ORACLE, []), base, "tokens")
    for name, group in variants.items():
        last = [run.rows[-1] for run in group]
        steps, tokens = sorted(row["step"] for row in last), fmean(row["tokens"] for row in last)
        row: Row = {
            "variant": name,
            "seeds": len(group),
            "steps": str(steps[0]) if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}",
            "pass@1": mean_interval(final(group).values()),
            "pass@1 at equal tokens": mean_interval(equal(group).values()),
            "tokens": f"{tokens / 1e6:.3f} M",
            "of these in predictions": f"{fmean(row['tokens_meta'] for row in last) / max(1, tokens):.0%}",
        }
        if base and name != baseline:
            ratios = {cost: cost_ratio(group, base, cost) for cost in COSTS}
            ratio, row["seeds that hold the baseline's pass@1"] = ratios["tokens"]
            row |= {f"x fewer {cost}": ratios[cost][0] for cost in COSTS}
            # The saving of a variant, as a share of that of the oracle's gate, if this saves anything
            share = (1 - 1 / ratio.mean) / (1 - 1 / oracle.mean) if ratio and oracle and oracle.mean > 1 else None
            row["share of the oracle's saving"] = None if share is None else f"{share:.0%}"
            row["pass@1 minus the baseline's"] = paired(final(group), final(base))
            row["the same at equal tokens"] = paired(equal(group), equal(base))
        rows.append(row)
    return rows


def last_awareness(variants: dict[str, list[Run]]) -> dict[str, dict[str, Row]]:
    """Return the figures of lab/awareness.py over the last evaluations of each variant in which something is known."""
    found = {}
    for name, runs in variants.items():
        problems = [problem for run in runs for row in run.evaluations[-1:] for problem in row["problems"]]
        if any(rate(problem) is not None for rate in WAYS.values() for problem in problems):
            settings = {option: runs[0].options[option] for option in ("gate", "gate_margin", "cutoff")}
            found[name] = awareness(problems, group=runs[0].options["samples"], **settings)
    return found


def level_rows(variants: dict[str, list[Run]], level: float, baseline: str) -> list[Row]:
    """Return how many times fewer tokens than the baseline a variant needs to hold a pass@1; how many seeds hold it."""
    ratios = {name: cost_ratio(group, variants.get(baseline, []), "tokens", level) for name, group in variants.items()}
    return [{"variant": name, "x fewer tokens": ratio, "hold it": held} for name, (ratio, held) in ratios.items()]


def cost_ratio(
    runs: Sequence[Run], baseline: Sequence[Run], cost: str, level: float | None = None
) -> tuple[Interval | None, str]:
    """Return by which factor a variant is cheaper, and "3 of 5": how many seeds hold `level` or the baseline's pass@1.

    The factor is the baseline's cost to hold that pass@1 over the variant's: the geometric mean over the seeds that
    hold it, with its interval. Seeds that never hold it are not in the factor, which flatters the variant.
    """
    costs = []  # of the baseline and of the variant, seed by seed
    for run, base in ((run, base) for run in runs for base in baseline if run.seed == base.seed):
        target = fmean(base.evaluated()[-FINAL_EVALUATIONS:]) if level is None else level
        costs.append([cost_to_hold(r.evaluated(cost), r.evaluated(), target) for r in (base, run)])
    # A cost of 0: the start already holds the target, and there is nothing to compare.
    ratio = mean_interval([math.log(theirs / ours) for theirs, ours in costs if theirs and ours])
    held = sum(ours is not None for _, ours in costs)
    return ratio and Interval(ratio.n, *map(math.exp, ratio[1:])), f"{held} of {len(costs)}"


# ------------------------------------------------------------------------------- tables


def column_table(runs: Sequence[Run], columns: Sequence[str], parts: dict[str, slice], each: bool = False) -> list[Row]:
    """Average columns of metrics.jsonl over the seeds and the given parts of the training steps of each variant.

    each: a row for each run instead of each variant.  Raises ValueError for a column that no run has.
    """
    if unknown := set(columns).difference(*(row for run in runs for row in run.rows)):
        raise ValueError(f"--columns: found {', '.join(unknown)}, expected columns of metrics.jsonl")
    table: list[Row] = []
    for name, group in {str(run.path): [run] for run in runs}.items() if each else by_variant(runs).items():
        table.append({"variant": name})
        for column in columns:
            for label, part in parts.items():
                steps = [row for run in group for row in [row for row in run.rows if row["step"]][part]]
                values = [row[column] for row in steps if isinstance(row.get(column), int | float)]
                table[-1][f"{column}, {label}" if label else column] = float(fmean(values)) if values else None
    return table


def markdown(result: tuple[dict[str, list[Row]], list[str]]) -> str:
    """Write the result of `compare` in Markdown."""
    tables, notes = result
    return "\n\n".join([f"{title}\n\n{aligned(rows)}" for title, rows in tables.items()] + notes)


def main() -> None:
    parser = argparse.ArgumentParser("python -m lab.compare", description="Compare the runs of variants over seeds.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--baseline", default=BASELINE, help="the variant to compare with (default: %(default)s)")
    parser.add_argument("--columns", help="instead, average these columns of metrics.jsonl, separated by commas")
    parser.add_argument("--first", type=int, help="with --columns: over the first N training steps")
    parser.add_argument("--last", type=int, help="with --columns: over the last N steps")
    parser.add_argument("--step", type=int, help="with --columns: at step N")
    parser.add_argument("--each", action="store_true", help="with --columns: for each run, not for each variant")
    parser.add_argument("--level", type=float, help="instead, how many times fewer tokens it takes to hold this pass@1")
    o = parser.parse_args()
    parts = {f"first {o.first} steps": slice(o.first)} if o.first else {}
    parts |= {f"last {o.last} steps": slice(-o.last, None)} if o.last else {}
    parts |= {f"step {o.step}": slice(o.step - 1, o.step)} if o.step else {}
    try:
        runs = find_runs(o.folders)
        if o.baseline not in {BASELINE, *(run.variant for run in runs)}:
            raise ValueError(f"--baseline: found {o.baseline}, expected one of {', '.join(by_variant(runs))}")
        if o.columns:
            print(aligned(column_table(runs, o.columns.split(","), parts or {"all steps": slice(None)}, o.each)))
        elif o.level is not None:
            print(aligned(level_rows(by_variant(runs, o.baseline), o.level, o.baseline)))
        else:
            print(markdown(compare(runs, o.baseline)))
    except ValueError as error:
        sys.exit(f"lab.compare: {error}")


if __name__ == "__main__":
    main()
