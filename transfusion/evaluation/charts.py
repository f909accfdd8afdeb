"""Charts of lines and of dots as inline SVG without a script.

Colours come from the page's style sheet, for light and dark pages.
"""

import dataclasses
import html
import math
from collections.abc import Iterator, Sequence

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 14, 42
_COLOURS = 6  # classes c0 to c5 of the style sheet


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve. A y of None breaks it, `low` and `high` draw a band, and `dashed` marks held-out data.

    With `loose` there are dots alone, which nothing joins, and `low` and `high` are their intervals.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False
    colour: int = 0
    loose: bool = False


def line_chart(
    title: str, lines: Sequence[Line], x_label: str, y_label: str = "", log: bool = False, log_x: bool = False
) -> str:
    """A <figure> with the chart and its legend. With `log` the y axis is logarithmic if all values are positive; with
    `log_x` the x axis is.

    Values that are not finite are left out. If no value is left, the figure says so.
    """
    kept = [line for line in (_finite(line) for line in lines) if any(y is not None for y in line.y)]
    head = f"<figcaption>{html.escape(title)}</figcaption>"
    if not kept:
        return f'<figure class="chart">{head}<p class="absent">no values</p></figure>'
    ys = [y for line in kept for y in (*line.y, *line.low, *line.high) if y is not None]
    xs = [x for line in kept for x in line.x]
    log = log and min(ys) > 0
    log_x = log_x and min(xs) > 0
    x_axis, y_axis = _Axis.over(xs, _LEFT, _WIDTH - _RIGHT, log_x), _Axis.over(ys, _HEIGHT - _BOTTOM, _TOP, log)
    parts = [_grid(x_axis, y_axis, x_label + (" (log)" if log_x else ""), y_label + (" (log)" if log else ""))]
    parts += [_curve(line, x_axis, y_axis) for line in kept]
    legend = "".join(
        f'<span><svg class="key" viewBox="0 0 24 8"><line class="{_style(line)}" x1="0" y1="4" x2="24" y2="4"/></svg>'
        f"{html.escape(line.name)}</span>"
        for line in kept
    )
    return (
        f'<figure class="chart">{head}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f'{"".join(parts)}</svg><div class="legend">{legend}</div></figure>'
    )


@dataclasses.dataclass(frozen=True)
class Dot:
    """One dot of a chart with its interval [low, high] along y. The name is shown when one points at it."""

    name: str
    x: float
    y: float
    low: float
    high: float
    colour: int = 0


def dot_chart(
    title: str, dots: Sequence[Dot], x_label: str, y_label: str = "", best: Sequence[Dot] = (), log: bool = False
) -> str:
    """A <figure> with named dots and their intervals, and a line through the dots `best`.

    With `log` the x axis is logarithmic if all values are positive. Names stand beside the dots `best`.
    """
    head = f"<figcaption>{html.escape(title)}</figcaption>"
    if not dots:
        return f'<figure class="chart">{head}<p class="absent">no values</p></figure>'
    xs = [dot.x for dot in dots]
    log = log and min(xs) > 0
    room = (min(xs) / 1.2, max(xs) * 1.2) if log else ()
    x_axis = _Axis.over([*xs, *room], _LEFT, _WIDTH - _RIGHT, log)
    y_axis = _Axis.over([y for dot in dots for y in (dot.low, dot.high, dot.y)], _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x_axis, y_axis, x_label + (" (log)" if log else ""), y_label)]
    if len(best) > 1:
        parts.append(
            f'<polyline class="line c5 dashed" points="{_points([(x_axis(d.x), y_axis(d.y)) for d in best])}"/>'
        )
    parts += [_dot(dot, x_axis, y_axis, dot in best) for dot in dots]
    return (
        f'<figure class="chart">{head}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _dot(dot: Dot, x_axis: "_Axis", y_axis: "_Axis", named: bool) -> str:
    x, y, colour = x_axis(dot.x), y_axis(dot.y), dot.colour % _COLOURS
    said = html.escape(f"{dot.name}: {dot.y:.4g} ({dot.low:.4g} to {dot.high:.4g}) at {dot.x:.3g}")
    right = x > (_LEFT + _WIDTH - _RIGHT) / 2
    place = f'x="{x - 7 if right else x + 7}" y="{y - 6}" text-anchor="{"end" if right else "start"}"'
    return (
        f"<g><title>{said}</title>"
        f'<line class="line c{colour}" x1="{x}" y1="{y_axis(dot.low)}" x2="{x}" y2="{y_axis(dot.high)}"/>'
        f'<circle class="dot c{colour}" cx="{x}" cy="{y}" r="4"/>'
        + (f"<text {place}>{html.escape(dot.name)}</text>" if named else "")
        + "</g>"
    )


@dataclasses.dataclass(frozen=True)
class _Axis:
    """An axis: values in [low, high] lie at the pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float, log: bool = False) -> "_Axis":
        low, high = min(values), max(values)
        if log:
            low, high = low / 1.05, high * 1.05
        elif low == high:
            low, high = low - max(abs(low), 1) * 0.5, high + max(abs(high), 1) * 0.5
        elif start > stop:  # room above and below curves, not beside them
            room = 0.05 * (high - low)
            low, high = (0.0 if 0 <= low < 0.3 * high else low - room), high + room
        return cls(low, high, start, stop, log)

    def __call__(self, value: float) -> float:
        scale = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / ((scale(self.high) - scale(self.low)) or 1)
        return round(self.start + share * (self.stop - self.start), 2)

    def ticks(self) -> list[float]:
        """About five round values on the axis."""
        if self.log and self.high > 5 * self.low:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = math.log10(self.high / self.low)
            factors = (1,) if fine > 4 else (1, 3) if fine > 1.5 else (1, 2, 3, 5, 7)
            found = [f * 10.0**e for e in exponents for f in factors if self.low <= f * 10.0**e <= self.high]
            return found or [self.low, self.high]
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _finite(line: Line) -> Line:
    y = [None if v is None or not math.isfinite(v) else float(v) for v in line.y]
    return dataclasses.replace(line, y=y)


def _number(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        digits = next((n for n in (0, 1) if math.isclose(float(f"{value:.{n}e}"), value)), 2)
        return f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    parts = []
    for value in y_axis.ticks():
        y = y_axis(value)
        parts.append(f'<line class="rule" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{_number(value)}</text>')
    floor = _HEIGHT - _BOTTOM
    for value in x_axis.ticks():
        x = x_axis(value)
        parts.append(f'<line class="axis" x1="{x}" y1="{floor}" x2="{x}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{x}" y="{floor + 18}" text-anchor="middle">{_number(value)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - _RIGHT}" y2="{floor}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    if y_label:
        turn = f'transform="translate(13 {(_TOP + floor) / 2}) rotate(-90)"'
        parts.append(f'<text {turn} text-anchor="middle">{html.escape(y_label)}</text>')
    return "".join(parts)


def _style(line: Line) -> str:
    return f"line c{line.colour % _COLOURS}" + (" dashed" if line.dashed else "")


def _curve(line: Line, x_axis: _Axis, y_axis: _Axis) -> str:
    parts = []
    if line.loose:
        return "".join(_dots(line, x_axis, y_axis))
    if line.low and line.high:
        there = [(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.high, strict=True)]
        back = [(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.low, strict=True)][::-1]
        parts.append(f'<polygon class="band c{line.colour % _COLOURS}" points="{_points(there + back)}"/>')
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x_axis(x), y_axis(y)))
    for run in runs:
        if len(run) > 1:
            parts.append(f'<polyline class="{_style(line)}" points="{_points(run)}"/>')
        if len(run) == 1 or (run and len(line.x) <= 12):
            parts += [f'<circle class="dot c{line.colour % _COLOURS}" cx="{x}" cy="{y}" r="3"/>' for x, y in run]
    return "".join(parts)


def _dots(line: Line, x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    colour, bars = line.colour % _COLOURS, bool(line.low and line.high)
    for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        if y is None:
            continue
        at = x_axis(x)
        if bars:
            low, high = y_axis(line.low[i]), y_axis(line.high[i])
            yield f'<line class="line c{colour}" x1="{at}" y1="{low}" x2="{at}" y2="{high}"/>'
        yield f'<circle class="dot c{colour}" cx="{at}" cy="{y_axis(y)}" r="{4 if bars else 2.5}"/>'


def _points(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
