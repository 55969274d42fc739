"""Write a report of one or several runs: one HTML file with everything in it, no server, no network.

    python -m lab.report runs/masa-efficient-tiny-seed0             # writes report.html there
    python -m lab.report runs/main --out main.html                  # all runs below a folder, seeds together
    python -m lab.report runs/main --pictures pictures              # also the README's pictures, as SVG files

It shows the tables of lab/compare.py, learning curves against steps and tokens, predicted against actual pass rates
before and after training, the gate beside an oracle, where the tokens went, and real transcripts, the worst
mispredictions first. Whatever a model wrote is escaped. Charts are drawn by matplotlib and inlined as SVG.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter
except ImportError as error:
    raise ImportError("the report needs matplotlib and scikit-learn: pip install -r requirements-lab.txt") from error

from lab import compare
from lab.awareness import read_predictions, reliability
from lab.compare import Run
from masa import predicted_pass_rate

WORST, BEST = 6, 2  # transcripts shown of each variant
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4fa3", "#5d5d5d")  # colour-blind safe
GREY, LIGHT = "#5d6a73", "#9aa5ad"
WIDTH, HEIGHT = 4.4, 3.0  # of a chart in inches; the page scales it
CHART_STYLE: Any = {
    "svg.fonttype": "none",  # texts stay texts: smaller, and readable by screen readers
    "svg.hashsalt": "masa",  # the same data gives the same file
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 10.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e7ebee",
    "figure.constrained_layout.use": True,
}
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
MILLIONS = EngFormatter(sep=" ")  # writes 1500000 as "1.5 M"
Variants = dict[str, list[Run]]


# ------------------------------------------------------------------------------- charts


def svg(figure: Figure, label: str) -> str:
    """Return a figure as an <svg> element: no XML header, no metadata, no ids that would occur twice on a page."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>", "", file.getvalue())
    text = re.sub(r' id="[a-zA-Z.]+(2d)?_\d+"', "", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def panels(count: int, x_label: str, y_label: str, unit_square: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure of axes side by side. unit_square: both axes reach from 0 to 1."""
    figure = Figure(figsize=(WIDTH * count, HEIGHT))
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.set(xlabel=x_label, ylabel=y_label)
        if unit_square:
            ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return figure, axes


def scatter(ax: Axes, points: Sequence[tuple], colour: str) -> None:
    """Draw predicted against actual pass rates, a point for each problem; points that coincide look darker."""
    ax.plot([0, 1], [0, 1], ":", color=LIGHT)
    ax.scatter([p for p, *_ in points], [a for _, a, *_ in points], s=28, color=colour, alpha=0.3, linewidths=0)


def over_seeds(seeds: Sequence[Run], column: str, against: str) -> tuple[NDArray, NDArray]:
    """Return x (points,) and y (seeds, points) of a column of metrics.jsonl against "steps" or "tokens".

    Seeds spend different numbers of tokens; their curves are interpolated at common points, which end where the seed
    that spent the fewest ends. Both arrays are empty if no seed has the column.
    """
    curves = []
    for run in seeds:
        costs = run.costs("tokens") if against == "tokens" else [row["step"] for row in run.evaluated]
        points = [(x, row[column]) for x, row in zip(costs, run.evaluated, strict=True) if row.get(column) is not None]
        if points:
            curves.append(np.array(points, float).T)
    if not curves:
        return np.empty(0), np.empty((0, 0))
    last = min(x[-1] for x, _ in curves)
    longest = max((x for x, _ in curves), key=len)
    common = np.linspace(longest[0], last, len(longest)) if against == "tokens" else longest[longest <= last]
    return common, np.array([np.interp(common, x, y) for x, y in curves])


def draw_curves(ax: Axes, variants: Variants, column: str, against: str) -> None:
    """Draw the mean over seeds of each variant, and a band from the lowest to the highest seed."""
    if against == "tokens":
        ax.xaxis.set_major_formatter(MILLIONS)
    for i, (name, seeds) in enumerate(variants.items()):
        x, y = over_seeds(seeds, column, against)
        if len(x):
            style, colour = ".-" if i < len(COLOURS) else ".--", colour_of(variants, name)
            ax.plot(x, y.mean(axis=0), style, color=colour, label=name)
            ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def colour_of(variants: Variants, name: str) -> str:
    """Return the colour of a variant, the same in all charts of a page."""
    return COLOURS[list(variants).index(name) % len(COLOURS)]


# ------------------------------------------------------------------------------- sections of the page


@matplotlib.rc_context(CHART_STYLE)
def page(runs: Sequence[Run]) -> str:
    """Return the whole report as HTML. Raises ValueError without runs."""
    if not runs:
        raise ValueError("no runs to report on")
    variants = by_name(runs)
    models, data = ({str(run.options.get(name)) for run in runs} for name in ("model", "data"))
    sections = [
        f"<h1>MASA: {len(runs)} run{'s' * (len(runs) > 1)}</h1>",
        f"<p>{escape(', '.join(sorted(models)))} on {escape(', '.join(sorted(data)))}. All figures are of held-out "
        "problems that training never sees, with neither gate nor cutoff. If a variant has several seeds, its line is "
        "their mean and the band reaches from the lowest to the highest seed.</p>",
        results(runs),
        learning(runs, variants),
        self_knowledge(variants),
        gates(variants),
        where_tokens_went(variants),
        transcripts(variants),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MASA report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def by_name(runs: Sequence[Run]) -> Variants:
    """Return the runs of each variant."""
    return {name: list(seeds.values()) for name, seeds in compare.by_variant(runs).items()}


def results(runs: Sequence[Run]) -> str:
    """Return the tables of the comparison, and what could not be compared."""
    result = compare.compare(runs)
    body = ""
    for title, head, rows in compare.tables(result):
        heads = "".join(f"<th>{escape(name)}</th>" for name in head)
        lines = (f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        body += f'<p>{escape(title)}</p><div class="scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'
    return section("Results", "", body + "".join(f"<p>{escape(note)}</p>" for note in result["notes"]))


def section(title: str, text: str, body: str) -> str:
    """Return a section of the page; nothing if its body is empty."""
    return f"<h2>{title}</h2><p>{text}</p>{body}" if body else ""


def legend(colours: dict[str, str]) -> str:
    """Return a chip of colour for each name."""
    chips = (f'<span><i style="background:{colour}"></i>{escape(name)}</span> ' for name, colour in colours.items())
    return f'<span class="legend">{"".join(chips)}</span>'


def cards(charts: dict[str, str]) -> str:
    """Return charts, {title: SVG}, side by side where the screen is wide enough."""
    drawn = (f'<div class="card"><h3>{escape(title)}</h3>{chart}</div>' for title, chart in charts.items())
    return f'<div class="cards">{"".join(drawn)}</div>' if charts else ""


def learning(runs: Sequence[Run], variants: Variants) -> str:
    """Return the learning curves: accuracy against steps and tokens, and every meta reward that a run measured."""

    def chart(column: str, against: str, y_label: str) -> str:
        label = "training step" if against == "steps" else "generated tokens, predictions included"
        figure, [ax] = panels(1, label, y_label)
        draw_curves(ax, variants, column, against)
        return svg(figure, f"{y_label} against {label}")

    accuracy = {
        "Accuracy against steps": chart("eval_pass1", "steps", "pass@1"),
        "Accuracy against generated tokens": chart("eval_pass1", "tokens", "pass@1"),
    }
    rewards = {
        f"Reward of predictions: {name}": chart(compare.REWARD + name, "steps", "mean reward")
        for name in compare.reward_names(runs)
    }
    dashed = list(variants)[len(COLOURS) :]
    chips = legend({name + " (dashed)" * (name in dashed): colour_of(variants, name) for name in variants})
    return section("Learning", chips, cards(accuracy) + cards(rewards))


def predicted_and_actual(problems: Sequence[dict]) -> list[tuple[float, float, int, int]]:
    """Return (predicted pass rate, actual one, correct, drawn) of each problem that has a predicted pass rate."""
    rates = [predicted_pass_rate(read_predictions(problem)) for problem in problems]
    counts = [(sum(problem["correct"]), len(problem["correct"])) for problem in problems]
    return [(p, c / n, c, n) for p, (c, n) in zip(rates, counts, strict=True) if p is not None and n]


def before_and_after(runs: Sequence[Run]) -> list[list[tuple[float, float, int, int]]]:
    """Return `predicted_and_actual` of the first and of the last evaluation, all seeds together."""
    parts = slice(1), slice(-1, None)
    ends = [[row for run in runs for row in run.evaluations[part]] for part in parts]
    return [predicted_and_actual([problem for row in rows for problem in row["problems"]]) for rows in ends]


def self_knowledge(variants: Variants) -> str:
    """Return charts of predicted against actual pass rates at the first and last evaluation, and their calibration."""
    x_label, y_label, body = "predicted pass rate", "actual pass rate", ""
    for name, runs in variants.items():
        before, after = before_and_after(runs)
        if not after:
            continue
        charts, colour = {}, colour_of(variants, name)
        curves, [curve_ax] = panels(1, x_label, y_label, unit_square=True)
        curve_ax.plot([0, 1], [0, 1], ":", color=GREY)
        for title, points, shade, style in (("before", before, GREY, ".--"), ("after", after, colour, ".-")):
            figure, [ax] = panels(1, x_label, y_label, unit_square=True)
            scatter(ax, points, shade)
            charts[f"{name}: {title} training"] = svg(figure, f"{y_label} against {x_label}, {name}, {title} training")
            if points:
                predicted, _, correct, drawn = zip(*points, strict=True)
                curve_ax.plot(*zip(*reliability(predicted, correct, drawn), strict=True), style, color=shade)
        body += cards(charts | {f"{name}: reliability": svg(curves, f"reliability curve, {name}")})
    text = (
        "Each point is a held-out problem: the pass rate predicted before solving it, and the actual one. The "
        "reliability curve averages problems with similar predictions; on the dotted line, what is predicted is what "
        "happens. Grey and dashed: before training."
    )
    return section("Does it know itself?", text, body)


def gates(variants: Variants) -> str:
    """Return charts of the gate's precision and recall over all margins, beside those of an oracle."""
    charts = {}
    for name, runs in variants.items():
        found = compare.last_awareness(runs) if runs[0].options["predictions"] else None
        if not found:
            continue
        figure, [ax] = panels(1, "recall", "precision", unit_square=True)
        for points, style, colour in (
            (found["oracle"]["curve"], "--", LIGHT),
            (found["gate"]["curves"]["all"], ".-", GREY),
            (found["gate"]["curves"]["agreeing"], ".-", colour_of(variants, name)),
            ([found["gate"]], "o", "black"),
        ):
            known = [(p["recall"], p["precision"]) for p in points if None not in (p["recall"], p["precision"])]
            ax.plot([recall for recall, _ in known], [precision for _, precision in known], style, color=colour)
        charts[name] = svg(figure, f"precision against recall of the gate, {name}")
    text = (
        "The gate is to find problems whose solutions come out all correct or all wrong. Each point is a margin, at "
        "the last evaluation. Coloured: predictions must agree, as in training, and the black point is the margin in "
        "use. Grey: they need not agree. Dashed: an oracle that knows the true pass rates, but not how the draws fall."
    )
    return section("The gate, and the best that any gate could do", text, cards(charts))


def where_tokens_went(variants: Variants) -> str:
    """Return bars of the tokens generated in training, mean over seeds."""

    def tokens(column: str) -> NDArray:
        return np.array([np.mean([run.rows[-1].get(column, 0) for run in runs]) for runs in variants.values()])

    wasted = tokens("tokens_zero_variance")
    kinds = {
        "in solutions of problems with both outcomes": ("#0072b2", tokens("tokens_solution") - wasted),
        "in solutions of problems all correct or all wrong": ("#b8c4ce", wasted),
        "in predictions": ("#e69f00", tokens("tokens_meta")),
    }
    figure = Figure(figsize=(WIDTH, 0.8 + 0.3 * len(variants)))
    ax, start = figure.subplots(), np.zeros(len(variants))
    for colour, width in kinds.values():
        bars = ax.barh(list(variants), width, left=start, color=colour)
        start = start + width
    ax.bar_label(bars, [f"{total / 1e6:.3g} M" for total in start], padding=3)
    ax.set(xlabel="generated tokens", ylim=(len(variants) - 0.5, -0.5), xlim=(0, 1.2 * start.max() or 1))
    ax.xaxis.set_major_formatter(MILLIONS)
    text = "Mean over seeds. If the solutions to a problem come out all correct or all wrong, they teach nothing."
    chips = legend({kind: colour for kind, (colour, _) in kinds.items()})
    bars_of = {"Generated in training": svg(figure, "generated tokens by use")}
    return section("Where the tokens went", text + chips, cards(bars_of))


def transcripts(variants: Variants) -> str:
    """Return problems of the last evaluation of each variant's first seed; variants trained to predict come first."""
    body = ""
    for name, runs in sorted(variants.items(), key=lambda item: not item[1][0].options["predictions"]):
        problems = runs[0].evaluations[-1]["problems"] if runs[0].evaluations else []
        pairs = [(abs(p - a), p, problem) for problem in problems for p, a, *_ in predicted_and_actual([problem])]
        pairs.sort(key=lambda pair: -pair[0])
        shown = "".join(transcript(*pair) for pair in pairs[:WORST] + pairs[WORST:][-BEST:])
        title = escape(f"{name}, seed {runs[0].seed}, the last evaluation")
        if shown:
            body += f"<details{'' if body else ' open'}><summary>{title}</summary>{shown}</details>"
    text = (
        "What was predicted and what happened, word for word: the problems whose pass rate was predicted worst, then "
        f"the {BEST} predicted best, with one correct and one wrong solution each."
    )
    return section("Transcripts", text, body)


def transcript(gap: float, predicted: float, problem: dict) -> str:
    """Return one problem, its pass rate mispredicted by `gap`, with its predictions and solutions side by side."""
    answers = [json.dumps(row, ensure_ascii=False) if row else "(did not parse)" for row in problem["predictions"]]
    lengths = [length for length, right in zip(problem["lengths"], problem["correct"], strict=True) if right]
    facts = f"correct solutions have {min(lengths)} to {max(lengths)} tokens" if lengths else ""
    solutions = "".join(
        f'<div class="facts">{label}</div><pre class="{kind}">{escape(problem[f"{kind}_solution"])}</pre>'
        for kind, label in (("right", "a correct solution"), ("wrong", "a wrong solution"))
        if problem[f"{kind}_solution"] is not None
    )
    return (
        f'<div class="card transcript"><span class="gap">off by {gap:.2f}</span>'
        f'<div class="problem">{escape(problem["problem"])}</div>'
        f'<div class="facts">answer {escape(problem["answer"])}, level {problem["level"]}</div><div class="cards">'
        f"<div><h3>Predicted: {predicted:.0%} correct</h3><pre>{escape(chr(10).join(answers))}</pre></div>"
        f"<div><h3>Happened: {sum(problem['correct'])} of {len(problem['correct'])} correct</h3>"
        f'<div class="facts">{facts}</div>{solutions}</div></div></div>'
    )


# ------------------------------------------------------------------------------- the command


@matplotlib.rc_context(CHART_STYLE)
def pictures(runs: Sequence[Run]) -> dict[str, str]:
    """Return the README's pictures, {file name: SVG}: learning curves, and what each variant knows of itself."""
    variants = by_name(runs)
    figure, axes = panels(2, "", "pass@1")
    for ax, against, label in zip(axes, ("steps", "tokens"), ("training step", "generated tokens"), strict=True):
        draw_curves(ax, variants, "eval_pass1", against)
        ax.set(title=f"pass@1 against {against}", xlabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    found = {"learning.svg": svg(figure, "pass@1 against steps and tokens")}
    for name, seeds in variants.items():
        if seeds[0].options["predictions"]:
            figure, axes = panels(2, "predicted pass rate", "actual pass rate", unit_square=True)
            for ax, title, points in zip(axes, ("before", "after"), before_and_after(seeds), strict=True):
                scatter(ax, points, colour_of(variants, name))
                ax.set(title=f"{title} training")
            found[f"awareness-{name}.svg"] = svg(figure, f"actual against predicted pass rates of {name}")
    return found


def write(runs: Sequence[Run], file: Path) -> None:
    """Write the report of the runs to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(runs), encoding="utf-8", errors="backslashreplace")  # a model may write half a surrogate pair


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a report of runs as one HTML file.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--out", type=Path, help="the file to write (default: report.html in the first folder)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also write the README's pictures there, as SVG")
    options = parser.parse_args()
    file = options.out or options.folders[0] / "report.html"
    try:
        runs = compare.find_runs(options.folders)
        write(runs, file)
    except ValueError as error:
        sys.exit(f"lab.report: {error}")
    print(f"wrote {file}")
    for name, drawn in pictures(runs).items() if options.pictures else ():
        options.pictures.mkdir(parents=True, exist_ok=True)
        (options.pictures / name).write_text(drawn, encoding="utf-8")
        print(f"wrote {options.pictures / name}")


if __name__ == "__main__":
    main()
