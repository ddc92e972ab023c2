"""Small charts as SVG: legible at the width of a telephone, so that pages show several side by side."""

import dataclasses
import math
from collections.abc import Sequence

from reangle_jax.stages.report.markup import Markup, join, tag

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 24, 36  # margins
MOST_POINTS = 700  # of a line


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart, named in the legend if it has a name; a y of None leaves a gap.

    The kind is its class in style.css: ``tuned``, ``untuned``, ``faint``, ``plain``, or ``dots`` for points alone.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    kind: str = "plain"


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    frames: bool = False,
) -> Markup:
    """A figure of lines over a pair of axes; what lies beyond ``y_range``, by default all points', is at the edge.

    With ``frames`` x counts the clip's frames: the players' clock moves a line over it.
    """
    found = [point for line in lines for point in line.points if point[1] is not None]
    if not found:
        return tag("figure", tag("figcaption", title), tag("p", "nothing to show", class_="quiet"), class_="chart")
    xs, ys = [x for x, _ in found], [y for _, y in found if y is not None]
    low, high = y_range or (min(ys), max(ys))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    axes = _Axes(min(xs), max(xs), low, high)
    marks = [_draw(line, axes) for line in lines]
    if frames:
        ends = {"y1": TOP, "y2": HEIGHT - BOTTOM, "data_from": LEFT, "data_to": axes.x(axes.right)}
        marks.append(tag("line", class_="playhead", x1=0, x2=0, **ends))
    words = f"{title}: {y_label} over {x_label}, from {min(ys):.4g} to {max(ys):.4g}"
    drawing = tag(
        "svg", axes.drawn(x_label, y_label), marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=words
    )
    named = [line for line in lines if line.name]
    keys = [tag("li", tag("span", class_=f"key {line.kind}"), line.name) for line in named]
    return tag(
        "figure", tag("figcaption", title), drawing, tag("ul", keys, class_="legend") if keys else None, class_="chart"
    )


@dataclasses.dataclass(frozen=True)
class _Axes:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        span = self.right - self.left or 1.0
        return round(LEFT + (value - self.left) / span * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def drawn(self, x_label: str, y_label: str) -> Markup:
        parts = []
        for value in ticks(self.low, self.high, 4):
            at = self.y(value)
            parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
            parts.append(tag("text", f"{value:g}", x=LEFT - 6, y=at + 4, class_="end"))
        for value in ticks(self.left, self.right, 5):
            parts.append(tag("text", f"{value:g}", x=self.x(value), y=HEIGHT - BOTTOM + 16, class_="middle"))
        parts.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="middle axis"))
        return join(parts, tag("text", y_label, x=0, y=12, class_="axis") if y_label else None)


def _draw(line: Line, axes: _Axes) -> Markup:
    if line.kind == "dots":
        return join(
            [tag("circle", cx=axes.x(x), cy=axes.y(y), r=2.2, class_="dots") for x, y in line.points if y is not None]
        )
    stride = max(1, math.ceil(len(line.points) / MOST_POINTS))
    kept = [*line.points[::stride]] + ([line.points[-1]] if (len(line.points) - 1) % stride else [])
    words, move = [], True
    for x, y in kept:
        if y is None:
            move = True
            continue
        words.append(f"{'M' if move else 'L'}{axes.x(x)} {axes.y(y)}")
        move = False
    return tag("path", d="".join(words), class_=f"line {line.kind}")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, at most so many and one."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, at most so many."""
    result, total = [], 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        result.append(total / min(index + 1, window))
    return result
