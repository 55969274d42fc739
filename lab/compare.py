"""Compare variants over seeds: accuracy, and what it costs to reach the accuracy of GRPO.

    python -m lab.compare runs/main                              # the tables that ablate.py prints
    python -m lab.compare runs/main --columns zero_variance_frac,mean_length --first 20 --last 20

The cost to accuracy is what a variant spends until it *holds* GRPO's final pass@1, the mean of GRPO's last three
evaluations, since a single one is too noisy a target. A run holds a target from the first evaluation that reaches it,
provided that the mean of this and all later evaluations is not below it: one lucky evaluation is not enough, and an
unlucky one later does not undo it. The cost is that of the point where the line from the previous evaluation crosses
the target. GRPO's own cost follows the same rule.

This file only reads run folders, and needs no package but numpy, because ablate.py prints its tables.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lab.awareness import awareness, flatten, read_rows, show

# The 0.975 quantile of Student's t for 1, 2, ... 30 degrees of freedom; the last serves for all above (normal: 1.960).
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
COSTS = {"tokens": "tokens", "rollouts": "rollouts", "flops": "FLOPs", "seconds": "seconds"}  # name -> label
# The figures of lab/awareness.py in the table of gate and cutoff, and what begins those not in that of predictions.
ACTED = (
    *("gate: share skipped", "gate: precision", "oracle: at same share: precision", "gate: recall"),
    *("oracle: at same share: recall", "oracle: at best F1: F1"),
    *("cutoff: share cut", "cutoff: F1", "cutoff: correct in 100 cut"),
)
NOT_PREDICTIONS = ("gate", "oracle", "cutoff", "problems", "pass@1")
FINAL_EVALUATIONS = 3  # GRPO's final pass@1, the target, is the mean of the last three
BASELINE, ORACLE = "grpo", "oracle-gate"
REWARD = "eval_reward_"  # the columns of metrics.jsonl that hold meta rewards begin with this
Table = tuple[str, list[str], list[list[str]]]  # title, head, rows


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; low and high are None with fewer than two values."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.low is None else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the mean of the values and its 95% interval by Student's t; None without values."""
    count = len(values)
    if count < 2:
        return Interval(float(values[0]), None, None, 1) if count else None
    quantile = T_QUANTILES[min(count - 2, len(T_QUANTILES) - 1)]
    mean, half = float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def paired(values: dict[int, float], baseline: dict[int, float]) -> Interval | None:
    """Return the mean difference to the baseline over the seeds that both have."""
    return mean_interval([value - baseline[seed] for seed, value in values.items() if seed in baseline])


def cost_to_hold(costs: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return the cost at which `values`, one per evaluation, first hold `target`; None if they never do."""
    target -= 1e-9  # rounding may put the mean of equal values above each of them
    for t, value in enumerate(values):
        if value >= target and np.mean(values[t:]) >= target:
            if t == 0 or values[t - 1] >= target:
                return float(costs[t])
            share = (target - values[t - 1]) / (value - values[t - 1])
            return float(costs[t - 1] + share * (costs[t] - costs[t - 1]))
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

    def r2(chosen: Sequence[int]) -> float:
        design = np.column_stack([np.ones(len(y)), x[:, list(chosen)]])
        residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        return 1 - float(residual @ residual) / float(((y - y.mean()) ** 2).sum())

    gains = np.zeros(count)
    for order in permutations(range(count)):
        for size, feature in enumerate(order):
            gains[feature] += r2(order[: size + 1]) - r2(order[:size])
    return list(gains / math.factorial(count))


# ------------------------------------------------------------------------------- runs


@dataclass
class Run:
    """A run folder: its variant, seed, options and the rows of metrics.jsonl."""

    path: Path
    variant: str
    seed: int
    options: dict[str, Any]
    rows: list[dict]

    @cached_property
    def evaluated(self) -> list[dict]:
        """The rows of the steps that evaluated."""
        return [row for row in self.rows if row.get("eval_pass1") is not None]

    @cached_property
    def evaluations(self) -> list[dict]:
        """The rows of evaluations.jsonl, oldest first; empty if the run wrote none."""
        file = self.path / "evaluations.jsonl"
        return read_rows(file) if file.exists() else []

    @property
    def accuracy(self) -> list[float]:
        """Held-out pass@1 at each evaluation."""
        return [row["eval_pass1"] for row in self.evaluated]

    def costs(self, name: str) -> list[float]:
        """Return the cumulative cost at each evaluation; empty if the run did not record it.

        Seconds are those of training, without evaluations and the oracle's uncounted solutions.
        """
        if name == "tokens":
            return [row["tokens_solution"] + row["tokens_meta"] for row in self.evaluated]
        seconds = {row["step"]: row["training_s"] for row in self.evaluations}
        costs: list[Any] = [seconds.get(row["step"]) if name == "seconds" else row.get(name) for row in self.evaluated]
        return [] if None in costs else costs


def read_run(path: Path) -> Run:
    """Read a run folder, named VARIANT/seed-N by ablate.py; otherwise --algo is taken as its variant.

    Raises ValueError if the folder holds no run of this version with an evaluation.
    """
    try:
        options = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a run folder with config.json and metrics.jsonl: {error}") from error
    if isinstance(options.get("gate"), bool):
        raise ValueError(f"{path}/config.json: found gate = {options['gate']}, expected off, hopeless or both")
    named = path.name == f"seed-{options['seed']}"
    rows = read_rows(path / "metrics.jsonl")
    run = Run(path, path.parent.name if named else options["algo"], options["seed"], options, rows)
    if not run.evaluated:
        raise ValueError(f"{path}: metrics.jsonl holds no evaluation yet")
    return run


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in the folders and below them. Raises ValueError if there are none."""
    paths = sorted({file.parent for folder in folders for file in folder.rglob("metrics.jsonl")})
    if not paths:
        raise ValueError(f"found no metrics.jsonl in {', '.join(map(str, folders))}")
    return [read_run(path) for path in paths]


def by_variant(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Return variant -> seed -> run, GRPO first. Raises ValueError for two runs of one variant and seed."""
    grouped: dict[str, dict[int, Run]] = {BASELINE: {}} if any(run.variant == BASELINE for run in runs) else {}
    for run in runs:
        other = grouped.setdefault(run.variant, {}).setdefault(run.seed, run)
        if other is not run:
            raise ValueError(
                f"{other.path} and {run.path} are both {run.variant} with seed {run.seed}: compare them separately"
            )
    return grouped


def reward_names(runs: Sequence[Run]) -> list[str]:
    """Return the meta rewards that the held-out evaluations of any run hold, by their columns in metrics.jsonl."""
    columns = dict.fromkeys(name for run in runs for row in run.evaluated for name in row if row[name] is not None)
    return [name.removeprefix(REWARD) for name in columns if name.startswith(REWARD)]


def lacking(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each run without a column that other runs have, such as one begun before it existed."""
    columns = {run.path: {name for row in run.rows for name in row} for run in runs}
    every = set().union(*columns.values())
    return [
        f"{path}: metrics.jsonl has no {', '.join(sorted(every - own))}; figures that need it leave this run out."
        for path, own in columns.items()
        if every - own
    ]


# ------------------------------------------------------------------------------- the comparison


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Return {"variants": {name: figures}, "baseline": whether GRPO is among them, "shapley", "notes"}."""
    variants = by_variant(runs)
    baseline = variants.get(BASELINE, {})
    final = {name: {seed: run.accuracy[-1] for seed, run in seeds.items()} for name, seeds in variants.items()}
    # Equal tokens: what the cheapest variant of the same seed generated. pass@1 is interpolated between evaluations.
    budget = {seed: min(run.costs("tokens")[-1] for run in runs if run.seed == seed) for seed in {r.seed for r in runs}}
    equal = {
        name: {s: float(np.interp(budget[s], run.costs("tokens"), run.accuracy)) for s, run in seeds.items()}
        for name, seeds in variants.items()
    }
    result: dict[str, Any] = {"baseline": bool(baseline), "variants": {}}
    for name, seeds in variants.items():
        last = [run.rows[-1] for run in seeds.values()]
        tokens = fmean(row["tokens_solution"] + row["tokens_meta"] for row in last)
        result["variants"][name] = {
            "seeds": sorted(seeds),
            "steps": sorted(row["step"] for row in last),
            "pass1": mean_interval(list(final[name].values())),
            "difference": paired(final[name], final.get(BASELINE, {})),
            "pass1_equal_tokens": mean_interval(list(equal[name].values())),
            "difference_equal_tokens": paired(equal[name], equal.get(BASELINE, {})),
            "tokens": tokens,
            "meta_share": fmean(row["tokens_meta"] for row in last) / max(1, tokens),
            "awareness": last_awareness(list(seeds.values())),
            "cost": {cost: cost_ratio(seeds, baseline, cost) for cost in COSTS} if baseline else {},
        }
    oracle = result["variants"].get(ORACLE, {}).get("cost", {})
    for figures in result["variants"].values():
        for cost, ratio in figures["cost"].items():
            ratio["share_of_oracle"] = _share_of_saving(ratio["ratio"], oracle.get(cost, {}).get("ratio"))
    names = reward_names(runs)
    ends = [run.evaluated[-1] for run in runs if run.options["predictions"]]
    ends = [row for row in ends if all(row.get(REWARD + name) is not None for name in names)]
    shares = shapley_r2([[row[REWARD + name] for name in names] for row in ends], [row["eval_pass1"] for row in ends])
    result["shapley"] = dict(zip(names, shares, strict=True)) if shares else None
    known = {name: v["awareness"] for name, v in result["variants"].items() if v["awareness"]}
    notes = lacking(runs) + [f"{name}: {note}" for name, figures in known.items() for note in figures["notes"]]
    return result | {"shapley_runs": len(ends), "notes": notes}


def last_awareness(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the figures of lab/awareness.py over the runs' last evaluations together; None if they predict nothing."""
    problems = [problem for run in runs for row in run.evaluations[-1:] for problem in row["problems"]]
    options = runs[0].options
    settings = {name: options[name] for name in ("gate", "gate_margin", "cutoff") if name in options}
    figures = awareness(problems, group=options["samples"], **settings) if problems else {}
    return figures if figures.get("pass_rate") else None


def cost_ratio(seeds: dict[int, Run], baseline: dict[int, Run], cost: str) -> dict[str, Any]:
    """Return by which factor the variant is cheaper: GRPO's cost to hold GRPO's final pass@1, over the variant's.

    "held": in how many of "seeds" the variant holds it at all.  "ratio": the geometric mean over these, with its
    interval. Seeds that never hold it are not in the ratio, which flatters the variant.
    """
    shared = [seed for seed in seeds if seed in baseline and seeds[seed].costs(cost) and baseline[seed].costs(cost)]
    logs, held = [], 0
    for seed in shared:
        grpo, run = baseline[seed], seeds[seed]
        target = fmean(grpo.accuracy[-FINAL_EVALUATIONS:])
        ours = cost_to_hold(run.costs(cost), run.accuracy, target)
        theirs = cost_to_hold(grpo.costs(cost), grpo.accuracy, target)
        held += ours is not None
        if ours and theirs:  # 0 if the start already holds it: nothing to compare
            logs.append(math.log(theirs / ours))
    ratio = mean_interval(logs)
    if ratio:
        low, high = (None if end is None else math.exp(end) for end in (ratio.low, ratio.high))
        ratio = Interval(math.exp(ratio.mean), low, high, ratio.count)
    return {"held": held, "seeds": len(shared), "ratio": ratio}


def _share_of_saving(ratio: Interval | None, oracle: Interval | None) -> float | None:
    """Return the variant's saving as a share of the saving of the oracle's gate; None if that saves nothing."""
    return (1 - 1 / ratio.mean) / (1 - 1 / oracle.mean) if ratio and oracle and oracle.mean > 1 else None


# ------------------------------------------------------------------------------- tables


def tables(result: dict[str, Any]) -> list[Table]:
    """Return the comparison as tables of text, a row for each variant."""
    accuracy, cost, predictions, acted = [], [], [], []
    for name, v in result["variants"].items():
        steps, compared = v["steps"], result["baseline"] and name != BASELINE
        row = {"variant": name, "seeds": len(v["seeds"])}
        row["steps"] = str(steps[0]) if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
        row["pass@1"] = v["pass1"]
        row |= {"pass@1 minus GRPO's": v["difference"]} if compared else {}
        row["pass@1 at equal tokens"] = v["pass1_equal_tokens"]
        row |= {"the same minus GRPO's": v["difference_equal_tokens"]} if compared else {}
        row |= {"tokens": f"{v['tokens'] / 1e6:.3f} M", "of these in predictions": f"{v['meta_share']:.0%}"}
        accuracy.append(row)
        if compared:
            tokens = v["cost"]["tokens"]
            row = {"variant": name, "seeds that hold it": f"{tokens['held']} of {tokens['seeds']}"}
            row |= {f"x fewer {label}": v["cost"][key]["ratio"] for key, label in COSTS.items()}
            share = tokens["share_of_oracle"]
            cost.append(row | {"share of the oracle's saving": None if share is None else f"{share:.0%}"})
        if v["awareness"]:
            flat = flatten(v["awareness"])
            others = {label: value for label, value in flat.items() if not label.startswith(NOT_PREDICTIONS)}
            predictions.append({"variant": name} | others)
            acted.append({"variant": name} | {label: flat[label] for label in ACTED})
    titled = {
        "Accuracy on held-out problems: mean over seeds [95% interval]": accuracy,
        "Cost until GRPO's final pass@1 is held: GRPO's cost divided by the variant's": cost,
        f"Share of final pass@1 that each meta reward explains: Shapley R², {result['shapley_runs']} runs": [
            result["shapley"] or {}
        ],
        "Predictions at the last evaluation, all seeds together": predictions,
        "Gate and cutoff at the last evaluation; the oracle knows true pass rates and skips the same share": acted,
    }
    return [_table(title, rows) for title, rows in titled.items() if any(rows)]


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Write rows of {column: value} as text; a column that a row lacks stays blank."""
    head = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    cells = [[row.get(name, "") for name in head] for row in rows]
    return title, head, [[str(c) if isinstance(c, str | Interval) else show(c) for c in row] for row in cells]


def column_table(runs: Sequence[Run], columns: Sequence[str], parts: dict[str, slice], each: bool = False) -> Table:
    """Average columns of metrics.jsonl over the seeds and the given parts of the training steps of each variant.

    each: a row for each run instead of each variant.  Raises ValueError for a column that no run has.
    """
    if unknown := set(columns).difference(*(row for run in runs for row in run.rows)):
        raise ValueError(f"--columns: found {', '.join(unknown)}, expected columns of metrics.jsonl")
    groups = {name: list(seeds.values()) for name, seeds in by_variant(runs).items()}
    rows: list[dict[str, Any]] = []
    for name, group in {str(run.path): [run] for run in runs}.items() if each else groups.items():
        rows.append({"variant": name})
        for column, (label, part) in product(columns, parts.items()):
            steps = [row for run in group for row in [row for row in run.rows if row["step"]][part]]
            values = [row[column] for row in steps if isinstance(row.get(column), int | float)]
            rows[-1][f"{column}, {label}"] = float(fmean(values)) if values else None
    return _table("Mean over seeds and steps", rows)


def markdown(result: dict[str, Any]) -> str:
    """Write the comparison in Markdown: the tables, and what could not be compared."""
    return "\n\n".join([*map(aligned, tables(result)), *result["notes"]])


def aligned(table: Table) -> str:
    """Write a table in Markdown with aligned columns."""
    title, head, rows = table
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows]]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join([f"{title}\n", *(f"| {line} |" for line in lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the runs of variants over seeds.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--columns", help="instead, average these columns of metrics.jsonl, separated by commas")
    parser.add_argument("--first", type=int, help="with --columns: over the first N training steps")
    parser.add_argument("--last", type=int, help="with --columns: over the last N steps")
    parser.add_argument("--step", type=int, help="with --columns: at step N")
    parser.add_argument("--each", action="store_true", help="with --columns: for each run, not for each variant")
    o = parser.parse_args()
    parts = {f"first {o.first} steps": slice(o.first)} if o.first else {}
    parts |= {f"last {o.last} steps": slice(-o.last, None)} if o.last else {}
    parts |= {f"step {o.step}": slice(o.step - 1, o.step)} if o.step else {}
    try:
        runs = find_runs(o.folders)
        if o.columns:
            print(aligned(column_table(runs, o.columns.split(","), parts or {"all steps": slice(None)}, o.each)))
        else:
            print(markdown(compare(runs)))
    except ValueError as error:
        sys.exit(f"lab.compare: {error}")


if __name__ == "__main__":
    main()
