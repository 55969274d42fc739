"""Write a report of one or several runs: one HTML file with everything in it, no server, no network.

    python -m lab.report runs/masa-efficient-tiny-seed0             # writes report.html there
    python -m lab.report runs/main --out main.html                  # all runs below a folder, seeds together
    python -m lab.report runs/main --pictures pictures              # also the README's pictures, as SVG files

It shows what training has changed, the options, the tables of lab/compare.py, curves against steps and tokens, what is
said and what is read against actual pass rates, where the tokens went, and real transcripts, the worst mispredictions
first. Charts are drawn by matplotlib and inlined as SVG; the page itself is lab/report.html, a template of Jinja, which
escapes whatever a model wrote.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from datetime import date
from html import escape
from io import StringIO
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import matplotlib
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter
except ImportError:
    sys.exit("lab.report needs more packages: pip install -r requirements-lab.txt")

from engine.command_line import as_flags
from lab import compare
from lab.awareness import WAYS, cells, correlation, counts, reliability
from lab.compare import Run

WORST, BEST = 6, 2  # transcripts shown of each variant
COLOURS = 8  # those of report.mplstyle, which colour-blind readers can tell apart
LIGHT = "#9aa5ad"
LINES = {"said": ".-", "read": "--"}
DOT = 7  # area of the dot of one problem, in square points
# The columns of metrics.jsonl that are drawn step by step, three in a row; docs/glossary.md explains them.
STEP_CURVES = "entropy mean_length grad_norm gated_frac wrongly_cut_frac zero_variance_frac".split()
WIDTH, HEIGHT = 4.4, 3.0  # of a chart in inches; the page scales it
ROOM = Path(__file__).parent  # also holds the page's template and styles
MILLIONS = EngFormatter(sep=" ")  # writes 1500000 as "1.5 M"
PANELS = (
    ("before training: said", "said", slice(1)),  # the first evaluation
    ("after training: said", "said", slice(-1, None)),  # the last
    ("after training: read", "read", slice(-1, None)),
)
Variants = dict[str, list[Run]]


# ------------------------------------------------------------------------------- charts


def svg(figure: Figure, label: str) -> Markup:
    """Return a figure as an <svg> element: no XML header, no metadata, no ids that would occur twice on a page."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = re.sub(r'(?s)^.*?(?=<svg)|<metadata>.*?</metadata>| id="[a-zA-Z.]+(2d)?_\d+"', "", file.getvalue())
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def panels(count: int, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """Make a figure of axes side by side."""
    figure = Figure(figsize=(WIDTH * count, HEIGHT))
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def over_seeds(seeds: Sequence[Run], column: str, against: str) -> tuple[NDArray, NDArray]:
    """Return x (points,) and y (seeds, points) of a column of metrics.jsonl against "step" or "tokens".

    Seeds spend different numbers of tokens; their curves are interpolated at the points of the seed that ends first.
    Both arrays are empty if no seed has the column.
    """
    known = [[(row[against], row[column]) for row in run.rows if row.get(column) is not None] for run in seeds]
    curves = [np.array(curve, float).T for curve in known if curve]
    common = min((x for x, _ in curves), key=lambda x: x[-1], default=np.empty(0))
    return common, np.array([np.interp(common, x, y) for x, y in curves])


def learning_curves(variants: Variants, y_label: str, charts: dict[str, tuple[str, str]]) -> Figure:
    """Draw charts, {title: (column, against)}: means over seeds, and bands from the lowest to the highest seed."""
    figure, axes = panels(len(charts), "training step", y_label)
    for ax, (title, (column, against)) in zip(axes, charts.items(), strict=True):
        ax.set(title=title)
        if against == "tokens":
            ax.set(xlabel="generated tokens, predictions included")
            ax.xaxis.set_major_formatter(MILLIONS)
        for i, (name, runs) in enumerate(variants.items()):
            x, y = over_seeds(runs, column, against)
            if len(x):
                style, colour = "-" if i < COLOURS else "--", colour_of(name, variants)
                marker = "." if column.startswith("eval_") else ""  # else there is a point for each step
                ax.plot(x, y.mean(axis=0), style, marker=marker, color=colour, label=name)
                ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def step_charts(variants: Variants) -> list[Markup]:
    """Draw what happened in each training step, as far as any run has it."""
    rows = [row for runs in variants.values() for run in runs for row in run.rows]
    known = [name for name in STEP_CURVES if any(row.get(name) is not None for row in rows)]
    triples = [{name: (name, "step") for name in known[i : i + 3]} for i in range(0, len(known), 3)]
    return [svg(learning_curves(variants, "in training", charts), ", ".join(charts)) for charts in triples]


def headline(runs: Sequence[Run]) -> str:
    """Return what training has changed, over all seeds of a variant."""
    before, after = (fmean(run.evaluated()[i] for run in runs) for i in (0, -1))
    tokens = fmean(run.rows[-1]["tokens"] for run in runs)
    steps = max(run.rows[-1]["step"] for run in runs)
    return f"pass@1 {before:.3f} before training, {after:.3f} after {steps} steps and {tokens / 1e6:.3g} M tokens"


def colour_of(name: str, variants: Variants) -> str:
    """Return the colour of a variant, the same in all charts of a page."""
    return f"C{list(variants).index(name)}"


def predicted_and_actual(way: str, problems: Sequence[dict]) -> NDArray:
    """Return what is "said" or "read", what is true, correct, drawn: (4, problems), without those that have none."""
    rates, (correct, drawn) = np.array([WAYS[way](problem) for problem in problems], float), counts(problems)
    return np.array([rates, correct / drawn, correct, drawn])[:, ~np.isnan(rates)]


def accuracy_chart(variants: Variants) -> Markup:
    """Draw held-out pass@1 against steps and tokens."""
    charts = {"pass@1 against steps": ("eval_pass1", "step"), "pass@1 against tokens": ("eval_pass1", "tokens")}
    return svg(learning_curves(variants, "pass@1", charts), " and ".join(charts))


def rate_curves(variants: Variants) -> Figure:
    """Draw mean pass rates at each evaluation, over all seeds, and how what is said and read correlates with them."""
    figure, [means, correlations] = panels(2, "training step", "")
    means.set(title="mean: said, read (dashed), actual (dotted)")
    correlations.set(title="correlation: said, read (dashed)")
    for name, runs in variants.items():
        problems: dict[int, list[dict]] = {}
        for row in (row for run in runs for row in run.evaluations if row["problems"]):
            problems.setdefault(row["step"], []).extend(row["problems"])
        colour = colour_of(name, variants)
        means.plot([*problems], [np.divide(*counts(some)).mean() for some in problems.values()], ":", color=colour)
        for way, style in LINES.items():
            rates = [predicted_and_actual(way, some)[:2] for some in problems.values()]
            means.plot([*problems], [p.mean() if len(p) else math.nan for p, _ in rates], style, color=colour)
            known = np.array([correlation(*both) for both in rates], float)
            correlations.plot([*problems], known, style, color=colour, label=name if way == "said" else None)
    figure.legend(*correlations.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def awareness_chart(name: str, variants: Variants) -> Markup:
    """Draw what is said, before and after training, and what is read against actual pass rates, all seeds together."""
    charts: dict[str, NDArray] = {}
    for title, way, part in PANELS:
        rows = [row for run in variants[name] for row in run.evaluations[part]]
        points = predicted_and_actual(way, [problem for row in rows for problem in row["problems"]])
        charts |= {title: points} if points.size else {}
    figure, axes = panels(len(charts), "predicted pass rate", "actual pass rate")
    for ax, (title, points) in zip(axes, charts.items(), strict=True):
        ax.set(title=title, xlim=(-0.15, 1.15), ylim=(-0.15, 1.15))  # room for the large dots in the corners
        ax.plot([0, 1], [0, 1], ":", color=LIGHT)
        places, times = np.unique(points[:2].round(2), axis=1, return_counts=True)
        for count in np.unique(times):  # dots of one size at once: the file then holds their shape once
            x, y = places[:, times == count]
            ax.scatter(x, y, s=DOT * count, color=colour_of(name, variants), alpha=0.4, linewidths=0)
        ax.plot(*reliability(points[0], *points[2:])[:2], ".-", color=colour_of(name, variants))
    return svg(figure, f"actual against predicted pass rates of {name}: {', '.join(charts)}")


def tokens_chart(variants: Variants) -> Markup:
    """Draw bars of the tokens generated in training, mean over seeds, divided by what they went into."""
    figure = Figure(figsize=(2 * WIDTH, 1.4 + 0.3 * len(variants)))
    ax = figure.subplots()
    for column, colour, rest in (  # each bar is drawn over the one before, and shows the rest of it
        ("tokens", "#e69f00", "in predictions"),
        ("tokens_solution", "#0072b2", "in solutions of problems with both outcomes"),
        ("tokens_zero_variance", "#b8c4ce", "in solutions of problems all correct or all wrong"),
    ):
        widths = [fmean(run.rows[-1][column] for run in runs) for runs in variants.values()]
        bars = ax.barh(list(variants), widths, color=colour, label=rest)
        if column == "tokens":
            ax.bar_label(bars, [f"{width / 1e6:.3g} M" for width in widths], padding=3)
    ax.set(xlabel="generated tokens")
    ax.margins(x=0.1)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(MILLIONS)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return svg(figure, "generated tokens by use")


# ------------------------------------------------------------------------------- the page and the pictures


def transcripts(run: Run) -> list[dict[str, Any]]:
    """Return problems of the last evaluation: the WORST whose pass rate was predicted worst, then the BEST ones."""
    found = []
    for problem in (problem for row in run.evaluations[-1:] for problem in row["problems"]):
        said, read = (rate(problem) for rate in WAYS.values())
        if (predicted := read if said is None else said) is not None:
            lengths = list(compress(problem["lengths"], problem["correct"]))
            gap = abs(predicted - fmean(problem["correct"]))
            found.append(problem | {"gap": gap, "said": said, "read": read, "correct_lengths": lengths})
    found.sort(key=lambda problem: -problem["gap"])
    return found[:WORST] + found[WORST:][-BEST:]


@matplotlib.rc_context(fname=ROOM / "report.mplstyle")
def page(runs: Sequence[Run]) -> str:
    """Return the whole report as HTML."""
    variants, (tables, notes) = compare.by_variant(runs), compare.compare(runs)
    rewards = {f"reward: {name}": (column, "step") for column, name in compare.reward_columns(runs).items()}
    known = compare.last_awareness(variants)
    first = sorted((group[0] for group in variants.values()), key=lambda run: not run.options["predictions"])
    template = Environment(loader=FileSystemLoader(ROOM), autoescape=True, trim_blocks=True).get_template("report.html")
    return template.render(
        runs=runs,
        date=date.fromtimestamp(max((run.path / "metrics.jsonl").stat().st_mtime for run in runs)),
        headlines={name: headline(group) for name, group in variants.items()},
        options={f"{run.variant}, seed {run.seed}": " ".join(as_flags(run.options)) for run in runs},
        tables={title: cells(rows) for title, rows in tables.items()},
        notes=notes,
        accuracy=accuracy_chart(variants),
        rewards=rewards and svg(learning_curves(variants, "mean reward", rewards), "rewards of predictions"),
        rates=known and svg(rate_curves(variants), "predicted and actual pass rates while training"),
        steps=step_charts(variants),
        awareness={name: awareness_chart(name, variants) for name in known},
        tokens=tokens_chart(variants),
        transcripts={f"{run.variant}, seed {run.seed}": shown for run in first if (shown := transcripts(run))},
        dumps=lambda row: json.dumps(row, ensure_ascii=False),
    )


@matplotlib.rc_context(fname=ROOM / "report.mplstyle")
def pictures(runs: Sequence[Run]) -> dict[str, str]:
    """Return the README's pictures, {file name: SVG}: learning curves, and what each variant knows of itself."""
    variants = compare.by_variant(runs)
    known = compare.last_awareness(variants)
    charts = {f"awareness-{name}.svg": awareness_chart(name, variants) for name in known}
    return {"learning.svg": accuracy_chart(variants), **charts}


def main() -> None:
    parser = argparse.ArgumentParser("python -m lab.report", description="Write a report of runs as one HTML file.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--out", type=Path, help="the file to write (default: report.html in the first folder)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also write the README's pictures there, as SVG")
    options = parser.parse_args()
    file = options.out or options.folders[0] / "report.html"
    try:
        runs = compare.find_runs(options.folders)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(runs), encoding="utf-8", errors="backslashreplace")  # a model may write half a character
    except ValueError as error:
        sys.exit(f"lab.report: {error}")
    print(f"wrote {file}")
    for name, drawn in pictures(runs).items() if options.pictures else ():
        options.pictures.mkdir(parents=True, exist_ok=True)
        (options.pictures / name).write_text(drawn, encoding="utf-8")
        print(f"wrote {options.pictures / name}")


if __name__ == "__main__":
    main()
