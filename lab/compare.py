"""Comparing variants over seeds: accuracy, and what it costs to reach GRPO's.

    mean_interval       mean and 95% interval over seeds (Student's t)
    paired              the same for differences to GRPO, seed by seed: the same problems, the same start
    cost_to_hold        tokens, rollouts, operations or seconds until a variant first *holds* GRPO's final pass@1,
                        the mean of GRPO's last three evaluations: one alone is too noisy a target
    shapley_r2          how much of the final accuracy each meta reward explains

A run holds a target from the first evaluation that reaches it and from which on the mean of all evaluations, that one
included, is not below it: one lucky evaluation is not enough, nor does one unlucky later one undo it. The cost is that
of the point where the line between this evaluation and the one before crosses the target. GRPO's own cost is found by
the same rule. Figures are read from run folders; nothing here writes. Run `python compare.py FOLDER ...`.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lab.awareness import awareness
from options import OLDER_RUNS

# The .975 quantile of Student's t for 1, 2, ... degrees of freedom; beyond these the normal's is near enough.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL_QUANTILE = 1.960
COSTS = ("tokens", "rollouts", "flops", "seconds")
FINAL_EVALUATIONS = 3  # whose mean is GRPO's final pass@1, as a target
BASELINE, ORACLE = "grpo", "oracle-gate"
REWARDS = ("length", "difficulty", "notion")


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
    """The mean of the values and its 95% interval by Student's t; None of nothing."""
    count = len(values)
    if count < 2:
        return Interval(float(values[0]), None, None, 1) if count else None
    quantile = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else NORMAL_QUANTILE
    mean, half = float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def paired(values: dict[int, float], baseline: dict[int, float]) -> Interval | None:
    """The difference to the baseline, over the seeds that both have."""
    return mean_interval([value - baseline[seed] for seed, value in values.items() if seed in baseline])


def cost_to_hold(costs: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The cost at which `values`, one for each evaluation, first hold `target` (see above); None if they never do."""
    target -= 1e-9  # a mean of equal values may come out above them, by rounding
    for t, value in enumerate(values):
        if value >= target and np.mean(values[t:]) >= target:
            if t == 0 or values[t - 1] >= target:
                return float(costs[t])
            share = (target - values[t - 1]) / (value - values[t - 1])
            return float(costs[t - 1] + share * (costs[t] - costs[t - 1]))
    return None


def shapley_r2(features: ArrayLike, outcome: ArrayLike) -> list[float] | None:
    """R² of a linear model, shared out among its features: the mean gain from adding each, over all orders.

    features: (runs, k), outcome: (runs,). The shares sum to the R² of the model with all k. None with too few runs
    to fit it (k + 2), or a constant outcome.
    """
    x, y = np.asarray(features, float), np.asarray(outcome, float)
    count = x.shape[1] if x.ndim == 2 else 0
    if not count or len(y) < count + 2 or np.ptp(y) == 0:
        return None

    def r2(chosen: Sequence[int]) -> float:
        design = np.column_stack([np.ones(len(y)), x[:, list(chosen)]])
        residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        return 1 - float(residual @ residual) / float(((y - y.mean()) ** 2).sum())

    shares = []
    for feature in range(count):
        others = [other for other in range(count) if other != feature]
        gains = (
            (r2([*chosen, feature]) - r2(chosen)) / (count * math.comb(count - 1, size))
            for size in range(count)
            for chosen in combinations(others, size)
        )
        shares.append(sum(gains))
    return shares


# ------------------------------------------------------------------------------- runs


@dataclass
class Run:
    """A run folder: its variant, seed, options and the rows of metrics.jsonl."""

    path: Path
    variant: str
    seed: int
    options: dict[str, Any]
    rows: list[dict]

    def __post_init__(self) -> None:
        self.evaluated = [row for row in self.rows if row["eval_pass1"] is not None]

    def evaluations(self) -> Iterator[dict]:
        """The rows of evaluations.jsonl, oldest first; nothing if the run wrote none."""
        file = self.path / "evaluations.jsonl"
        yield from map(json.loads, file.read_text().splitlines() if file.exists() else [])

    def costs(self, name: str) -> list[float]:
        """Cumulative cost at each evaluation; nothing where it is not known.

        Seconds are those of training, without evaluations and the oracle's probes.
        """
        if name == "seconds":
            seconds = {row["step"]: row["training_s"] for row in self.evaluations()}
            steps = [row["step"] for row in self.evaluated]
            return [seconds[step] for step in steps] if seconds.keys() >= set(steps) else []
        if name == "tokens":
            return [row["tokens_solution"] + row["tokens_meta"] for row in self.evaluated]
        return [row[name] for row in self.evaluated]

    @property
    def accuracy(self) -> list[float]:
        """Held-out pass@1 at each evaluation."""
        return [row["eval_pass1"] for row in self.evaluated]


def read_run(path: Path) -> Run:
    """Raises ValueError if the folder holds no run. `ablate.py` names folders VARIANT/seed-N; else --algo is taken."""
    try:
        options = json.loads((path / "config.json").read_text())
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a run folder with config.json and metrics.jsonl: {error}") from error
    named = path.name == f"seed-{options['seed']}"
    run = Run(path, path.parent.name if named else options["algo"], options["seed"], options, rows)
    if not run.evaluated:
        raise ValueError(f"{path}: metrics.jsonl holds no evaluation yet")
    return run


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the folders and below them. Raises ValueError if there are none."""
    found = sorted({file.parent for folder in folders for file in folder.rglob("metrics.jsonl")})
    if not found:
        raise ValueError(f"found no metrics.jsonl in {', '.join(map(str, folders))}")
    return [read_run(path) for path in found]


def by_variant(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """variant -> seed -> run, GRPO first, then as found. Raises ValueError for two runs of one variant and seed."""
    grouped: dict[str, dict[int, Run]] = {BASELINE: {}} if any(run.variant == BASELINE for run in runs) else {}
    for run in runs:
        other = grouped.setdefault(run.variant, {}).setdefault(run.seed, run)
        if other is not run:
            raise ValueError(
                f"{other.path} and {run.path} are both {run.variant} with seed {run.seed}: compare them apart"
            )
    return grouped


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """All that is compared: {"variants": {name: figures}, "shapley": ..., "baseline": is GRPO among them?}."""
    variants = by_variant(runs)
    baseline = variants.get(BASELINE, {})
    final = {name: {seed: run.accuracy[-1] for seed, run in seeds.items()} for name, seeds in variants.items()}
    budget = {
        seed: min(group[seed].costs("tokens")[-1] for group in variants.values() if seed in group)
        for seed in {run.seed for run in runs}
    }
    equal = {name: {s: _at_budget(run, budget[s]) for s, run in seeds.items()} for name, seeds in variants.items()}
    result: dict[str, Any] = {"baseline": bool(baseline), "variants": {}}
    for name, seeds in variants.items():
        result["variants"][name] = {
            "seeds": sorted(seeds),
            "steps": sorted(run.rows[-1]["step"] for run in seeds.values()),
            "pass1": mean_interval(list(final[name].values())),
            "difference": paired(final[name], final.get(BASELINE, {})),
            "pass1_equal_tokens": mean_interval(list(equal[name].values())),
            "difference_equal_tokens": paired(equal[name], equal.get(BASELINE, {})),
            "tokens": float(np.mean([run.costs("tokens")[-1] for run in seeds.values()])),
            "meta_share": _meta_share(seeds),
            "awareness": last_awareness(list(seeds.values())),
            "cost": {cost: cost_ratio(seeds, baseline, cost) for cost in COSTS} if baseline else {},
        }
    oracle = result["variants"].get(ORACLE, {}).get("cost", {})
    for figures in result["variants"].values():
        for cost, found in figures["cost"].items():
            found["of_oracle"] = _share_of_saving(found, oracle.get(cost, {}))
    with_meta = [
        run for run in runs if run.options["predictions"] and run.evaluated[-1]["eval_reward_length"] is not None
    ]
    features = [[run.evaluated[-1][f"eval_reward_{name}"] for name in REWARDS] for run in with_meta]
    shares = shapley_r2(features, [run.accuracy[-1] for run in with_meta])
    result["shapley"] = dict(zip(REWARDS, shares, strict=True)) if shares else None
    result["shapley_runs"] = len(with_meta)
    return result


def last_awareness(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The figures of awareness.py of the runs' last evaluations together; None without predictions in them."""
    problems = [problem for run in runs for row in list(run.evaluations())[-1:] for problem in row["problems"]]
    if not problems:
        return None
    o = OLDER_RUNS | runs[0].options
    thresholds = {
        name: o[name] for name in ("gate_std", "gate_margin", "gate_easy", "cutoff_multiplier", "max_new_tokens")
    }
    found = awareness(problems, group=o["samples"], **thresholds)
    return found if "pass_rate" in found else None


def _at_budget(run: Run, tokens: float) -> float:
    """pass@1 when so many tokens were generated, on the line between evaluations."""
    return float(np.interp(tokens, run.costs("tokens"), run.accuracy))


def _meta_share(seeds: dict[int, Run]) -> float:
    last = [run.rows[-1] for run in seeds.values()]
    meta = sum(row["tokens_meta"] for row in last)
    return meta / max(1, meta + sum(row["tokens_solution"] for row in last))


def cost_ratio(seeds: dict[int, Run], baseline: dict[int, Run], cost: str) -> dict[str, Any]:
    """GRPO's cost to hold its final pass@1, over the variant's: the factor by which the variant is cheaper.

    "held": in how many of "seeds" the variant holds it at all.  "ratio": over these, the geometric mean and its
    interval.  Where some seeds do not hold it the ratio is only of those that do, hence too kind.
    """
    shared = [seed for seed in seeds if seed in baseline and seeds[seed].costs(cost) and baseline[seed].costs(cost)]
    logs, held = [], 0
    for seed in shared:
        grpo, run = baseline[seed], seeds[seed]
        target = float(np.mean(grpo.accuracy[-FINAL_EVALUATIONS:]))
        ours = cost_to_hold(run.costs(cost), run.accuracy, target)
        theirs = cost_to_hold(grpo.costs(cost), grpo.accuracy, target)
        held += ours is not None
        if ours and theirs:  # 0 where the start already holds it: nothing to compare
            logs.append(math.log(theirs / ours))
    found = mean_interval(logs)
    if found is None:
        ratio = None
    elif found.low is None or found.high is None:
        ratio = Interval(math.exp(found.mean), None, None, 1)
    else:
        ratio = Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.count)
    return {"held": held, "seeds": len(shared), "ratio": ratio}


def _share_of_saving(found: dict, oracle: dict) -> float | None:
    """Of the cost that the oracle's gate saves, the share that this variant saves; None if the oracle saves nothing."""
    if not found.get("ratio") or not oracle.get("ratio") or oracle["ratio"].mean <= 1:
        return None
    return (1 - 1 / found["ratio"].mean) / (1 - 1 / oracle["ratio"].mean)


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, rows) of each table, as text."""
    variants = result["variants"].items()
    head = "variant, seeds, steps, pass@1, minus GRPO, at equal tokens, minus GRPO, tokens, in predictions".split(", ")
    accuracy = [
        [
            name,
            str(len(v["seeds"])),
            _span(v["steps"]),
            _text(v["pass1"]),
            _text(v["difference"]) if name != BASELINE else "",
            _text(v["pass1_equal_tokens"]),
            _text(v["difference_equal_tokens"]) if name != BASELINE else "",
            f"{v['tokens'] / 1e6:.3f} M",
            f"{v['meta_share']:.0%}",
        ]
        for name, v in variants
    ]
    if not result["baseline"]:
        head, accuracy = _without(head, "minus GRPO", [head, *accuracy])
    found = [("Accuracy on held-out problems: mean over seeds [95% interval]", head, accuracy)]
    if result["baseline"]:
        rows = [
            [
                name,
                f"{v['cost']['tokens']['held']} of {v['cost']['tokens']['seeds']}",
                *(_text(v["cost"][cost]["ratio"]) for cost in COSTS),
                "" if (share := v["cost"]["tokens"]["of_oracle"]) is None else f"{share:.0%}",
            ]
            for name, v in variants
            if name != BASELINE
        ]
        head = ["variant", "seeds that hold it", *(f"{cost}, x fewer" for cost in COSTS), "of the oracle's saving"]
        found.append(("Cost until GRPO's final pass@1 is held: GRPO's over the variant's", head, rows))
    if result["shapley"]:
        title = f"Shapley R² of final pass@1 over the meta rewards, {result['shapley_runs']} runs"
        found.append((title, list(REWARDS), [[f"{share:.3f}" for share in result["shapley"].values()]]))
    return found + _awareness_tables({name: v["awareness"] for name, v in variants if v["awareness"]})


def _awareness_tables(known: dict[str, dict]) -> list[tuple[str, list[str], list[list[str]]]]:
    """How predictions fit what happens, and what gate and cutoff make of them: a row a variant, of all its seeds."""
    fit, acted = [], []
    for name, a in known.items():
        rate, length, gate, cutoff = a["pass_rate"], a["length"], a["gate"], a["cutoff"]
        bound, best = gate["oracle"]["same_share"], gate["oracle"]["best_f1"]
        figures = (
            rate["correlation"],
            rate["error"],
            rate["calibration_error"],
            rate["brier"],
            rate["brier_of_a_constant"],
        )
        more = (length["in_range"], length["correlation"], length["error_tokens"], a["notion_precision"])
        fit.append([name, *map(_number, figures + more)])
        gated = (gate["share"], gate["precision"], bound["precision"], gate["recall"], bound["recall"], best["f1"])
        lost = 100 * cutoff["right_lost"] / cutoff["cut"] if cutoff["cut"] else None
        acted.append([name, *map(_number, (*gated, cutoff["share"], cutoff["f1"], lost))])
    if not known:
        return []
    head = ["variant", "correlation", "error", "calibration error", "Brier", "Brier of a constant"]
    head += ["length in range", "length correlation", "length error", "notion precision"]
    head_acted = ["variant", "gated", "precision", "oracle's", "recall", "oracle's", "oracle's best F1"]
    head_acted += ["cut", "cutoff F1", "right in 100 cut"]
    return [
        ("Predictions at the last evaluation (pass rate, length, notions), all seeds together", head, fit),
        ("Gate and cutoff there; the oracle knows true pass rates and skips the same share", head_acted, acted),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _span(steps: list[int]) -> str:
    """The steps of runs, least first; two numbers tell that a mean over them mixes unlike runs."""
    return str(steps[0]) if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"


def _without(head: list[str], name: str, rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows without the columns of that name."""
    kept = [[cell for title, cell in zip(head, row, strict=True) if title != name] for row in rows]
    return kept[0], kept[1:]


def _text(interval: Interval | None) -> str:
    return "-" if interval is None else str(interval)


def markdown(result: dict[str, Any]) -> str:
    """The tables in Markdown, columns aligned."""
    blocks = []
    for title, head, rows in tables(result):
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows]]
        lines.insert(1, " | ".join("-" * width for width in widths))
        blocks.append("\n".join([f"{title}\n", *(f"| {line} |" for line in lines)]))
    return "\n\n".join(blocks)


def main() -> None:
    if not sys.argv[1:]:
        sys.exit("compare.py: expected folders with runs, such as those of ablate.py")
    try:
        print(markdown(compare(find_runs([Path(folder) for folder in sys.argv[1:]]))))
    except ValueError as error:
        sys.exit(f"compare.py: {error}")


if __name__ == "__main__":
    main()
