"""Charts as inline SVG, in a few functions: lines with bands, a scatter on the unit square; and stacked bars.

Each returns a string to stand in an HTML page, or in a picture of its own (`picture`); texts are escaped. Left out:
everything a plotting library has that the report does not need.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 360, 250  # of the drawing, in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 10, 38  # margins
STYLE = """svg text { font: 11px system-ui, sans-serif; fill: #4a555d; }
svg .grid { stroke: #e7ebee; } svg .guide { fill: none; stroke: #9aa5ad; stroke-dasharray: 3 4; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }"""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4fa3", "#5d5d5d")  # told apart by all


@dataclass
class Line:
    """A curve: x and y of the same length, and a band from low to high around it if there is one."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default_factory=list)
    high: Sequence[float] = field(default_factory=list)
    dashed: bool = False


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about so many."""
    span = high - low or 1.0
    step = 10 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """1500000 -> "1.5M", 0.25 -> "0.25"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


class _Frame:
    """Axes: where a point of the data stands in the drawing, and the grid."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str) -> None:
        (self.x0, x1), (self.y0, y1) = x, y
        self.x_scale = (WIDTH - LEFT - RIGHT) / ((x1 - self.x0) or 1.0)
        self.y_scale = (HEIGHT - TOP - BOTTOM) / ((y1 - self.y0) or 1.0)
        self.parts = [
            *(self._x_tick(value) for value in ticks(*x)),
            *(self._y_tick(value) for value in ticks(*y)),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"),
            f'<g transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">',
            _text(0, 0, y_label, "middle") + "</g>",
        ]

    def at(self, x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - self.x0) * self.x_scale, HEIGHT - BOTTOM - (y - self.y0) * self.y_scale

    def path(self, x: Sequence[float], y: Sequence[float]) -> str:
        return " ".join(f"{px:.1f},{py:.1f}" for px, py in map(self.at, x, y))

    def _x_tick(self, value: float) -> str:
        px, bottom = self.at(value, self.y0)
        line = f'<line class="grid" x1="{px:.1f}" y1="{TOP}" x2="{px:.1f}" y2="{bottom:.1f}"/>'
        return line + _text(px, bottom + 15, short(value), "middle")

    def _y_tick(self, value: float) -> str:
        px, py = self.at(self.x0, value)
        line = f'<line class="grid" x1="{px:.1f}" y1="{py:.1f}" x2="{WIDTH - RIGHT}" y2="{py:.1f}"/>'
        return line + _text(px - 6, py + 4, short(value), "end")

    def svg(self, label: str) -> str:
        drawn = "".join(self.parts)
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{drawn}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def line_chart(
    lines: Sequence[Line], x_label: str, y_label: str, unit_square: bool = False, diagonal: bool = False
) -> str:
    """Curves with their bands. unit_square: both axes from 0 to 1; diagonal: drawn too, as for a reliability curve."""
    lines = [line for line in lines if len(line.x)]
    xs = [x for line in lines for x in line.x] or [0.0, 1.0]
    ys = [y for line in lines for values in (line.y, line.low, line.high) for y in values] or [0.0, 1.0]
    room = 0.05 * ((max(ys) - min(ys)) or 0.1)
    y_range = (0.0, 1.0) if unit_square else (min(ys) - room, max(ys) + room)
    frame = _Frame((0.0, 1.0) if unit_square else (min(xs), max(xs)), y_range, x_label, y_label)
    if diagonal:
        frame.parts.append(f'<polyline class="guide" points="{frame.path((0, 1), (0, 1))}"/>')
    for line in lines:
        if len(line.low):
            band = f"{frame.path(line.x, line.low)} {frame.path(line.x[::-1], line.high[::-1])}"
            frame.parts.append(f'<polygon points="{band}" fill="{line.colour}" opacity=".15"/>')
    for line in lines:
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        points = frame.path(line.x, line.y)
        frame.parts.append(f'<polyline class="line" points="{points}" stroke="{line.colour}"{dash}/>')
        marks = (frame.at(x, y) for x, y in zip(line.x, line.y, strict=True))
        frame.parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.4" fill="{line.colour}"/>' for px, py in marks]
    return frame.svg(f"{y_label} against {x_label}: {', '.join(line.name for line in lines)}")


def scatter(points: Sequence[tuple[float, float]], colour: str, x_label: str, y_label: str) -> str:
    """Points of the unit square and its diagonal; where several fall together the colour is deeper."""
    frame = _Frame((0.0, 1.0), (0.0, 1.0), x_label, y_label)
    frame.parts.append(f'<polyline class="guide" points="{frame.path((0, 1), (0, 1))}"/>')
    for px, py in (frame.at(x, y) for x, y in points):
        frame.parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}" opacity=".3"/>')
    return frame.svg(f"{y_label} against {x_label}, {len(points)} problems")


def picture(panels: Sequence[tuple[str, str]], names: Sequence[tuple[str, str]] = ()) -> str:
    """Charts side by side under their titles, as an SVG file of its own; names: (name, colour), a legend below."""
    parts = []
    for i, (title, chart) in enumerate(panels):
        parts.append(f'<text class="title" x="{i * WIDTH + LEFT}" y="16">{escape(title)}</text>')
        parts.append(chart.replace("<svg ", f'<svg x="{i * WIDTH}" y="22" width="{WIDTH}" height="{HEIGHT}" ', 1))
    width, height = WIDTH * len(panels), HEIGHT + 26 + 20 * bool(names)
    for i, (name, colour) in enumerate(names):
        x = LEFT + i * (width - LEFT) / len(names)
        parts.append(f'<rect x="{x:.0f}" y="{height - 19}" width="14" height="10" fill="{colour}"/>')
        parts.append(_text(x + 19, height - 10, name))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{STYLE} .title {{ font-weight: 600; }}</style><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def stacked_bars(bars: Sequence[tuple[str, Sequence[float]]], colours: Sequence[str]) -> str:
    """A horizontal bar for each (name, parts) with its total, as HTML: names and numbers keep their size on a phone."""
    most = max((sum(parts) for _, parts in bars), default=0.0) or 1.0
    rows = []
    for name, parts in bars:
        pieces = "".join(
            f'<i style="width:{100 * part / most:.2f}%;background:{colour}" title="{short(round(part))}"></i>'
            for part, colour in zip(parts, colours, strict=True)
        )
        total = short(float(f"{sum(parts):.3g}"))
        rows.append(f"<span>{escape(name)}</span><div>{pieces}</div><span>{total}</span>")
    return f'<div class="bars">{"".join(rows)}</div>'
