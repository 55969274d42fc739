"""A report of one or several runs: one HTML file with everything in it, no server, no network.

    python report.py runs/masa-efficient-tiny-seed0                 # writes report.html there
    python report.py runs/main --out main.html                      # all runs below a folder, seeds together
    python report.py runs/main --pictures pictures                  # those of the README too

Learning curves against steps and tokens, predicted against actual pass rates before and after training, where the
tokens went, and real transcripts, the worst mispredictions first. Whatever a model wrote is escaped.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from lab import charts, compare
from lab.awareness import read_predictions, reliability_curve
from lab.charts import COLOURS, Line
from lab.compare import Run
from masa import predicted_pass_rate, render_meta

WORST, BEST = 6, 2  # transcripts shown of each variant
TOKEN_KINDS = ("in solutions that differ in outcome", "in solutions all right or all wrong", "in predictions")
TOKEN_COLOURS = ("#0072b2", "#b8c4ce", "#e69f00")
AWARENESS = ("length", "difficulty", "notion")

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2328; background: #f6f7f8; margin: 0; }
main { max-width: 1100px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.2rem; margin: 40px 0 4px; }
h3 { font-size: 1rem; margin: 0 0 6px; } p { margin: 4px 0 12px; color: #4a555d; max-width: 75ch; }
.grid-of { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
.grid-of.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); margin-bottom: 16px; }
.card { background: #fff; border: 1px solid #dde2e6; border-radius: 8px; padding: 14px; min-width: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 12px; font-size: .88rem; }
.legend i { display: inline-block; width: 16px; height: 12px; border-radius: 3px; margin-right: 6px; }
.scroll { overflow-x: auto; margin: 8px 0 20px; background: #fff; border: 1px solid #dde2e6; border-radius: 8px; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid #eceff1; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { color: #4a555d; font-weight: 600; white-space: normal; vertical-align: bottom; min-width: 4.6em; }
svg { width: 100%; height: auto; display: block; }
summary { cursor: pointer; font-weight: 600; padding: 8px 0; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 8px 10px; font-size: .88rem; }
.bars div { display: flex; } .bars i { display: block; height: 18px; align-self: center; }
.transcript { margin: 0 0 16px; } .transcript .grid-of { margin: 10px 0 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .82rem/1.45 ui-monospace, monospace; margin: 4px 0 10px;
  background: #f6f7f8; border-radius: 6px; padding: 8px 10px; }
.problem { font-weight: 600; overflow-wrap: anywhere; white-space: pre-wrap; }
.facts { font-size: .88rem; color: #4a555d; } .right { border-left: 3px solid #009e73; }
.wrong { border-left: 3px solid #d55e00; } .gap { float: right; font-weight: 600; color: #d55e00; }
.gap.small { color: #00795a; }
"""


def page(runs: Sequence[Run]) -> str:
    """The whole report. Raises ValueError without runs."""
    if not runs:
        raise ValueError("no runs to report on")
    variants = {name: list(seeds.values()) for name, seeds in compare.by_variant(runs).items()}
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(variants)}
    dashed = {name: i >= len(COLOURS) for i, name in enumerate(variants)}
    first = runs[0].options
    data = sorted({run.options["data"] for run in runs})
    sections = [
        f"<h1>MASA: {len(runs)} run{'s' * (len(runs) > 1)}</h1>",
        f"<p>{escape(first['model'])} on {escape(', '.join(data))}. Figures are of held-out problems that training "
        "never sees, neither gated nor cut. Where a variant has several seeds, a line is their mean and its "
        "band reaches from the lowest to the highest seed.</p>",
        tables(runs),
        learning_curves(variants, colours, dashed),
        predictions(variants, colours),
        gates(variants, colours),
        where_tokens_went(variants),
        transcripts(variants),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MASA report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{charts.STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def tables(runs: Sequence[Run]) -> str:
    """The comparison, as compare.py has it."""
    parts = ["<h2>Results</h2>"]
    for title, head, rows in compare.tables(compare.compare(runs)):
        cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        heads = "".join(f"<th>{escape(name)}</th>" for name in head)
        parts.append(f'<p>{escape(title)}</p><div class="scroll"><table><tr>{heads}</tr>{cells}</table></div>')
    return "".join(parts)


def legend(colours: dict[str, str], dashed: dict[str, bool] | None = None) -> str:
    """A chip of colour for each name, striped where its line is dashed."""

    def chip(name: str, colour: str) -> str:
        stripes = f"repeating-linear-gradient(90deg, {colour} 0 4px, #fff 4px 6px)"
        return f'<span><i style="background:{stripes if dashed and dashed[name] else colour}"></i>{escape(name)}</span>'

    return f'<div class="legend">{"".join(chip(name, colour) for name, colour in colours.items())}</div>'


def card(title: str, body: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{body}</div>'


def over_seeds(name: str, colour: str, dashed: bool, seeds: Sequence[Run], figure: str, against: str) -> Line:
    """The mean of a figure over seeds, and the band from the lowest to the highest. Against steps or tokens.

    Seeds spend different tokens; their curves are read off at common points, as far as the thriftiest seed goes.
    """

    def points(run: Run) -> tuple[list[float], list[float]]:
        rows = [(i, row) for i, row in enumerate(run.evaluated) if row[figure] is not None]
        costs = run.costs("tokens")
        return [costs[i] if against == "tokens" else row["step"] for i, row in rows], [row[figure] for _, row in rows]

    each = [found for found in map(points, seeds) if found[0]]
    if not each:
        return Line(name, colour, [], [])
    count = max(len(x) for x, _ in each)
    last = min(x[-1] for x, _ in each)
    common = (
        np.linspace(each[0][0][0], last, count) if against == "tokens" else np.array(max((x for x, _ in each), key=len))
    )
    common = common[common <= last]
    values = np.array([np.interp(common, x, y) for x, y in each])  # (seeds, points)
    band = (values.min(axis=0), values.max(axis=0)) if len(each) > 1 else ([], [])
    return Line(name, colour, list(common), list(values.mean(axis=0)), list(band[0]), list(band[1]), dashed)


def learning_curves(variants: dict[str, list[Run]], colours: dict[str, str], dashed: dict[str, bool]) -> str:
    def chart(figure: str, against: str, x_label: str, y_label: str) -> str:
        lines = [over_seeds(n, colours[n], dashed[n], seeds, figure, against) for n, seeds in variants.items()]
        return charts.line_chart(lines, x_label, y_label)

    cards = [
        card("Accuracy against steps", chart("eval_pass1", "steps", "step", "pass@1")),
        card(
            "Accuracy against generated tokens", chart("eval_pass1", "tokens", "tokens, predictions included", "pass@1")
        ),
    ]
    parts = [f'<h2>Learning</h2>{legend(colours, dashed)}<div class="grid-of two">{"".join(cards)}</div>']
    known = any(
        row["eval_reward_length"] is not None for runs in variants.values() for run in runs for row in run.evaluated
    )
    if known:
        charts_of = {name: chart(f"eval_reward_{name}", "steps", "step", "reward") for name in AWARENESS}
        cards = [card(f"Reward of predictions: {name}", drawn) for name, drawn in charts_of.items()]
        parts.append(f'<div class="grid-of">{"".join(cards)}</div>')
    return "".join(parts)


def predicted_and_actual(problems: Sequence[dict]) -> list[tuple[float, float, int, int]]:
    """(predicted pass rate, actual, right, drawn) of each problem with a prediction."""
    found = []
    for problem in problems:
        predicted = predicted_pass_rate(read_predictions(problem))
        if predicted is not None and problem["correct"]:
            right, drawn = sum(problem["correct"]), len(problem["correct"])
            found.append((predicted, right / drawn, right, drawn))
    return found


def first_and_last(runs: Sequence[Run]) -> tuple[list, list]:
    """What `predicted_and_actual` finds in the first and in the last evaluation, all seeds together."""
    before, after = [], []
    for run in runs:
        if evaluations := list(run.evaluations()):
            before += predicted_and_actual(evaluations[0]["problems"])
            after += predicted_and_actual(evaluations[-1]["problems"])
    return before, after


def pass_rates(found: Sequence[tuple], colour: str) -> str:
    """A scatter of what `predicted_and_actual` found."""
    points = [(predicted, actual) for predicted, actual, *_ in found]
    return charts.scatter(points, colour, "predicted pass rate", "actual pass rate")


def predictions(variants: dict[str, list[Run]], colours: dict[str, str]) -> str:
    """Predicted against actual pass rate at the first and the last evaluation, and how well calibrated both are."""
    parts = [
        "<h2>Does it know itself?</h2><p>Each point is a held-out problem: the pass rate predicted before solving, and "
        "the actual one. In the reliability curve problems of like predictions stand together; on the dotted "
        "line what is predicted happens. Grey and dashed: before training.</p>"
    ]
    for name, runs in variants.items():
        before, after = first_and_last(runs)
        if not after:
            continue
        cards = []
        for title, found, colour in (("before training", before, "#5d6a73"), ("after training", after, colours[name])):
            cards.append(card(f"{name}: {title}", pass_rates(found, colour)))
        lines = []
        for title, found, colour in (("before", before, "#9aa5ad"), ("after", after, colours[name])):
            predicted, _, right, drawn = zip(*found, strict=True) if found else ((), (), (), ())
            curve = reliability_curve(predicted, right, drawn) if found else []
            lines.append(
                Line(title, colour, [p for p, *_ in curve], [a for _, a, _ in curve], dashed=title == "before")
            )
        chart = charts.line_chart(lines, "predicted pass rate", "actual pass rate", unit_square=True, diagonal=True)
        cards.append(card(f"{name}: reliability", chart))
        parts.append(f'<div class="grid-of" style="margin-bottom:16px">{"".join(cards)}</div>')
    return "".join(parts) if len(parts) > 1 else ""


def gates(variants: dict[str, list[Run]], colours: dict[str, str]) -> str:
    """Precision against recall of the gate, over all margins, and of the oracle that knows the true pass rates."""
    cards = []
    for name, runs in variants.items():
        found = compare.last_awareness(runs) if runs[0].options["predictions"] else None
        if not found:
            continue
        gate = found["gate"]
        in_use = [gate] if gate["precision"] is not None and gate["recall"] is not None else []
        lines = [
            _precision_recall("oracle", "#9aa5ad", gate["oracle"]["curve"], dashed=True),
            _precision_recall("any predictions", "#5d6a73", gate["curves"]["all"]),
            _precision_recall("predictions that agree", colours[name], gate["curves"]["agreeing"]),
            _precision_recall("in use", "#000000", in_use),
        ]
        cards.append(card(name, charts.line_chart(lines, "recall", "precision", unit_square=True)))
    if not cards:
        return ""
    return (
        "<h2>The gate, and what any gate could do</h2><p>For problems whose solutions come out all right or all wrong, "
        "at the last evaluation: each point is a margin. Coloured: predictions must agree, as in use (black). Grey: "
        "they need not. Dashed: an oracle that knows the true pass rates, but not how the draws fall.</p>"
        f'<div class="grid-of">{"".join(cards)}</div>'
    )


def _precision_recall(name: str, colour: str, points: Sequence[dict], dashed: bool = False) -> Line:
    known = [point for point in points if point["precision"] is not None and point["recall"] is not None]
    return Line(name, colour, [p["recall"] for p in known], [p["precision"] for p in known], dashed=dashed)


def where_tokens_went(variants: dict[str, list[Run]]) -> str:
    def share(runs: Sequence[Run], of: Callable[[dict], float]) -> float:
        return float(np.mean([of(run.rows[-1]) for run in runs]))

    bars = []
    for name, runs in variants.items():
        useless = share(runs, lambda row: row["tokens_zero_variance"])
        useful = share(runs, lambda row: row["tokens_solution"]) - useless
        bars.append((name, (useful, useless, share(runs, lambda row: row["tokens_meta"]))))
    chart = charts.stacked_bars(bars, TOKEN_COLOURS)
    return (
        "<h2>Where the tokens went</h2><p>Generated while training, mean over seeds. Solutions to a problem that come "
        "out all right or all wrong teach nothing.</p>"
        + legend(dict(zip(TOKEN_KINDS, TOKEN_COLOURS, strict=True)))
        + f'<div class="card">{chart}</div>'
    )


def transcripts(variants: dict[str, list[Run]]) -> str:
    """Problems of the last evaluation of each variant's first seed, the worst mispredictions first.

    Variants that were trained to predict come first.
    """
    parts: list[str] = []
    for name, runs in sorted(variants.items(), key=lambda item: not item[1][0].options["predictions"]):
        evaluations = list(runs[0].evaluations())
        problems = evaluations[-1]["problems"] if evaluations else []
        ranked = sorted(
            (-abs(rate - actual), i) for i, p in enumerate(problems) for rate, actual, *_ in predicted_and_actual([p])
        )
        if not ranked:
            continue
        shown = ranked[:WORST] + ranked[WORST:][-BEST:]
        cards = "".join(transcript(problems[i], -gap) for gap, i in shown)
        what = f"{name}, seed {runs[0].seed}, step {evaluations[-1]['step']}"
        is_open = " open" if not parts else ""
        parts.append(f"<details{is_open}><summary>{escape(what)}</summary>{cards}</details>")
    if not parts:
        return ""
    return (
        "<h2>Transcripts</h2><p>What was predicted, and what happened, word for word: the problems whose pass rate "
        f"was mispredicted worst, then the {BEST} predicted best. One right and one wrong solution each, where "
        "there is one.</p>" + "".join(parts)
    )


def transcript(problem: dict, gap: float) -> str:
    """One problem: its predictions on one side, its solutions on the other."""
    predicted = "\n".join(render_meta(answer) if answer else "(did not parse)" for answer in read_predictions(problem))
    rate = predicted_pass_rate(read_predictions(problem)) or 0.0
    lengths = [length for length, right in zip(problem["lengths"], problem["correct"], strict=True) if right]
    shortest, longest = (min(lengths), max(lengths)) if lengths else (0, 0)
    right_lengths = f"{shortest}{f' to {longest}' * (longest > shortest)} tokens when right" if lengths else ""
    solutions = "".join(
        f'<div class="facts">{label}</div><pre class="{kind}">{escape(problem[f"{kind}_solution"])}</pre>'
        for kind, label in (("right", "a right solution"), ("wrong", "a wrong solution"))
        if problem[f"{kind}_solution"] is not None
    )
    small = " small" if gap < 0.15 else ""
    return (
        f'<div class="card transcript"><span class="gap{small}">off by {gap:.2f}</span>'
        f'<div class="problem">{escape(problem["problem"])}</div>'
        f'<div class="facts">answer {escape(problem["answer"])}, level {problem["level"]}</div>'
        '<div class="grid-of two">'
        f"<div><h3>Predicted: {rate:.0%} right</h3><pre>{escape(predicted)}</pre></div>"
        f"<div><h3>Happened: {sum(problem['correct'])} of {len(problem['correct'])} right</h3>"
        f'<div class="facts">{right_lengths}</div>{solutions}</div></div></div>'
    )


def pictures(runs: Sequence[Run]) -> dict[str, str]:
    """The pictures of the README, {file name: SVG}: learning curves, and what MASA-efficient knows of itself."""
    variants = {name: list(seeds.values()) for name, seeds in compare.by_variant(runs).items()}
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(variants)}

    def curves(against: str, x_label: str) -> str:
        lines = [over_seeds(n, colours[n], False, seeds, "eval_pass1", against) for n, seeds in variants.items()]
        return charts.line_chart(lines, x_label, "pass@1")

    panels = [("pass@1 against steps", curves("steps", "step"))]
    panels += [("pass@1 against generated tokens", curves("tokens", "tokens, predictions included"))]
    found = {"learning.svg": charts.picture(panels, list(colours.items()))}
    for name, seeds in variants.items():
        if not seeds[0].options["predictions"]:
            continue
        panels = []
        for title, pairs in zip(("before training", "after training"), first_and_last(seeds), strict=True):
            panels.append((title, pass_rates(pairs, colours[name])))
        found[f"awareness-{name}.svg"] = charts.picture(panels)
    return found


def write(runs: Sequence[Run], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(runs), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a report of runs as one HTML file.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument("--out", type=Path, help="the file to write (default: report.html in the first folder)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the pictures of the README there, as SVG")
    options = parser.parse_args()
    file = options.out or options.folders[0] / "report.html"
    try:
        runs = compare.find_runs(options.folders)
        write(runs, file)
    except ValueError as error:
        sys.exit(f"report.py: {error}")
    print(f"written to {file}")
    for name, svg in pictures(runs).items() if options.pictures else ():
        options.pictures.mkdir(parents=True, exist_ok=True)
        (options.pictures / name).write_text(svg, encoding="utf-8")
        print(f"written to {options.pictures / name}")


if __name__ == "__main__":
    main()
