"""Pictures as inline SVG: a few kilobytes each, sharp at every size, and in the page's own colours, light or dark.

Matplotlib's pictures (`files/plots.py`) bring their own background and fonts; inside a page that follows the reader's
colour scheme they would not fit. Shapes carry classes (`c0`, `c1`, …); the page's style sheet says what these look
like.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vopd_recipes.reporting.escaping import escaped

WIDTH, HEIGHT = 400, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 390, 10, 206
# More points than pixels help nobody.
MOST_POINTS = 400
COLOURS = 13  # the methods that scripts/compare_estimators.py compares

Points = dict[int, float]


@dataclass(frozen=True)
class Line:
    """Step → value, drawn in colour number `colour`.

    `raw` is a thin line, `trend` a thick one, `dots` the same dashed, with a dot at each value.
    """

    label: str
    points: Points
    colour: int
    kind: Literal["raw", "trend", "dots"]


@dataclass(frozen=True)
class Band:
    """Step → lowest and highest value over the seeds of a method."""

    points: dict[int, tuple[float, float]]
    colour: int


def smoothed(points: Points, window: int) -> Points:
    """The running mean over `window` values, centred; over those there are at the ends."""
    values, half = list(points.values()), window // 2
    near = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return {step: sum(found) / len(found) for step, found in zip(points, near)}


def thinned(points: dict, most: int = MOST_POINTS) -> dict:
    """Every n-th point, first and last among them, so that about `most` are left."""
    stride = -(-len(points) // most) if points else 1
    return {step: value for index, (step, value) in enumerate(points.items()) if index % stride == 0} | dict(
        list(points.items())[-1:]
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values 1, 2 or 5 · 10ⁿ apart that cover [low, high]."""
    span = high - low or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / about))
    step = next(size * magnitude for size in (1, 2, 5, 10) if span / (size * magnitude) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def number(value: float, percent: bool = False) -> str:
    """A short label: 0.25, 1,200, 3e-06; or a percentage."""
    if percent:
        return f"{100 * value:.3g} %"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("-", "−")
    return f"{value:,.4g}".replace("-", "−")


@dataclass(frozen=True)
class _Frame:
    """Where a step and a value are in the picture."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (step - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - self.low) / (self.high - self.low)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)


def line_chart(title: str, lines: Sequence[Line], bands: Sequence[Band] = (), *, percent: bool = False) -> str:
    """Values over steps, or nothing where no line has a value.

    Args:
        title: of the picture, for those who cannot see it too.
        lines: thin ones first, they are drawn in order.
        bands: behind the lines.
        percent: label the values as shares.
    """
    lines = [Line(line.label, thinned(line.points), line.colour, line.kind) for line in lines if line.points]
    if not lines:
        return ""
    frame, marks = _frame(lines, bands)
    shapes = [_axes(frame, marks, percent)]
    for band in bands:
        edge = list(thinned(band.points).items())
        outline = [(step, high) for step, (_, high) in edge] + [(step, low) for step, (low, _) in reversed(edge)]
        shapes.append(f'<polygon class="band c{band.colour % COLOURS}" points="{frame.path(outline)}"/>')
    for line in lines:
        style = f"{line.kind} c{line.colour % COLOURS}"
        label = f' data-label="{escaped(line.label)}"' if line.kind != "raw" else ""
        shapes.append(f'<polyline class="{style}"{label} points="{frame.path(line.points.items())}"/>')
        if line.kind == "dots" or len(line.points) == 1:
            dot = f'<circle class="dot c{line.colour % COLOURS}" r="3"'
            shapes += [
                f'{dot} cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}"/>' for step, value in line.points.items()
            ]
    corners = f"{frame.first:g} {frame.last:g} {frame.low:g} {frame.high:g} {_LEFT} {_RIGHT} {_TOP} {_BOTTOM}"
    percentage = ' data-percent="1"' if percent else ""
    return (
        f"<figure><figcaption>{escaped(title)}</figcaption>"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)}" '
        f'data-frame="{corners}"{percentage}>{"".join(shapes)}</svg></figure>'
    )


def _frame(lines: Sequence[Line], bands: Sequence[Band]) -> tuple[_Frame, list[float]]:
    steps = [step for line in lines for step in line.points]
    values = [value for line in lines for value in line.points.values()]
    values += [value for band in bands for pair in band.points.values() for value in pair]
    low, high = min(values), max(values)
    if 0 < low <= 0.6 * high:  # a quantity that falls by half should look like it
        low = 0.0
    marks = ticks(low, high)
    first, last = min(steps), max(steps)
    if 0 < first < 0.1 * last:  # the first log line is step 1, the first evaluation step 0: one axis for both
        first = 0
    return _Frame(first, max(last, first + 1), marks[0], marks[-1]), marks


def _axes(frame: _Frame, marks: Sequence[float], percent: bool) -> str:
    rows = [
        f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{frame.y(value):.1f}" y2="{frame.y(value):.1f}"/>'
        f'<text x="{_LEFT - 7}" y="{frame.y(value) + 3.5:.1f}" text-anchor="end">{number(value, percent)}</text>'
        for value in marks
    ]
    steps = [step for step in ticks(frame.first, frame.last) if frame.first <= step <= frame.last and step % 1 == 0]
    columns = [
        f'<text x="{frame.x(step):.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{step:,.0f}</text>' for step in steps
    ]
    axis = f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
    return "".join(rows + columns) + axis


def bar_chart(title: str, parts: Sequence[str], rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    """A horizontal bar for each row, made of its parts in seconds; in HTML, so that labels wrap.

    The bar's widths are in an SVG that stretches, the numbers below it in text.
    """
    longest = max((sum(values.values()) for _, values in rows), default=0.0)
    if longest <= 0:
        return ""
    bars = []
    for label, values in rows:
        offset, shapes, notes = 0.0, [], []
        for index, part in enumerate(parts):
            width = 1000 * values.get(part, 0.0) / longest
            if part in values:
                shapes.append(
                    f'<rect class="part p{index}" x="{offset:.2f}" width="{max(width, 0):.2f}" height="10">'
                    f"<title>{escaped(part)} {values[part]:.3g} s</title></rect>"
                )
                notes.append(f'<span><i class="key p{index}"></i>{escaped(part)} <b>{values[part]:.2g} s</b></span>')
            offset += max(width, 0)
        bars.append(
            f'<div class="bar"><div class="bar-label"><b>{escaped(label)}</b> {sum(values.values()):.3g} s</div>'
            f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{escaped(label)}">'
            f'{"".join(shapes)}</svg><div class="legend">{"".join(notes)}</div></div>'
        )
    return f"<figure><figcaption>{escaped(title)}</figcaption>{''.join(bars)}</figure>"
