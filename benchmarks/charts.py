"""Line charts as SVG text, for pages that are read in a repository: no library, no script, no font of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

SMALL, LARGE = (250, 190), (420, 280)
"""Width and height of one panel, in pixels, with its labels."""
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 26, 34
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e", "#5f6670", "#e8559a", "#111111")


@dataclass(frozen=True)
class Line:
    """One curve. Points that are no numbers are left out; the curve goes on after them."""

    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    """None: what the curves take. Curves are cut off at the edge of the panel."""
    band: tuple[float, float] | None = None
    """Values between which the ground is tinted."""


@dataclass(frozen=True)
class Axis:
    """Where a value lies between two pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def at(self, value: float) -> float:
        """Pixel of a value."""
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (here - low) / (high - low)


def draw(
    panels: Sequence[Panel], *, columns: int, legend: Sequence[tuple[str, Line]], size: tuple[int, int] = SMALL
) -> str:
    """SVG of panels of a size in rows of `columns`, with a legend of (label, line) beneath.

    Raises:
        ValueError: no panels.
    """
    if not panels:
        raise ValueError("expected panels, got none")
    wide, high = size
    rows = math.ceil(len(panels) / columns)
    total = max(columns * wide, 2 * SMALL[0])
    entry_width = max((30 + 7 * len(label) for label, _ in legend), default=1)
    per_row = max(1, (total - 20) // entry_width)
    height = rows * high + 20 * math.ceil(len(legend) / per_row) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" viewBox="0 0 {total} {height}" '
        'font-family="sans-serif" font-size="11" fill="#333">',
        f'<rect width="{total}" height="{height}" fill="#fff"/>',
    ]
    for index, panel in enumerate(panels):
        x, y = index % columns * wide, index // columns * high
        parts.append(f'<g transform="translate({x},{y})">{_panel(panel, index, wide, high)}</g>')
    for index, (label, line) in enumerate(legend):
        x, y = 10 + index % per_row * entry_width, rows * high + 15 + index // per_row * 20
        sample = _polyline([(x, y), (x + 20, y)], line)
        parts.append(f'{sample}<text x="{x + 25}" y="{y + 4}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, index: int, wide: int, high: int) -> str:
    points = [[(x, y) for x, y in zip(o.xs, o.ys, strict=True) if _shown(panel, x, y)] for o in panel.lines]
    every = [point for line in points for point in line] or [(1.0, 1.0)]
    x_axis = _axis([x for x, _ in every], LEFT, wide - RIGHT, log=panel.log_x)
    y_axis = _axis(panel.y_range or [y for _, y in every], high - BOTTOM, TOP, log=panel.log_y)
    inner_width, inner_height = wide - LEFT - RIGHT, high - TOP - BOTTOM
    frame = f'x="{LEFT}" y="{TOP}" width="{inner_width}" height="{inner_height}"'
    parts = [f'<clipPath id="p{index}"><rect {frame}/></clipPath>']
    if panel.band:
        floor, ceiling = (min(max(y_axis.at(value), TOP), high - BOTTOM) for value in panel.band)
        parts.append(
            f'<rect x="{LEFT}" y="{ceiling:.1f}" width="{inner_width}" height="{floor - ceiling:.1f}" fill="#eef3ea"/>'
        )
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{inner_width}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        parts.append(f'<text x="{x:.1f}" y="{high - BOTTOM + 13}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<g clip-path="url(#p{index})">')
    for line, known in zip(panel.lines, points, strict=True):
        parts.append(_polyline([(x_axis.at(x), y_axis.at(y)) for x, y in known], line))
    parts.append(f'</g><rect {frame} fill="none" stroke="#999"/>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 8}" font-weight="bold">{escape(panel.title)}</text>')
    middle = LEFT + inner_width / 2
    parts.append(f'<text x="{middle}" y="{high - 6}" text-anchor="middle">{escape(panel.x_label)}</text>')
    centre = TOP + inner_height / 2
    turn = f'transform="rotate(-90 11 {centre})"'
    parts.append(f'<text x="11" y="{centre}" text-anchor="middle" {turn}>{escape(panel.y_label)}</text>')
    return "".join(parts)


def _shown(panel: Panel, x: float, y: float) -> bool:
    positive = (x > 0 or not panel.log_x) and (y > 0 or not panel.log_y)
    return positive and math.isfinite(x) and math.isfinite(y)


def _polyline(points: Sequence[tuple[float, float]], line: Line) -> str:
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2" fill="{line.colour}"/>'
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="4 3"' if line.dashed else ""
    return f'<polyline points="{places}" fill="none" stroke="{line.colour}" stroke-width="1.5"{dash}/>'


def _axis(values: Sequence[float], start: float, end: float, *, log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        low, high = (low, high) if high > low * 1.01 else (low / 2, high * 2)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low * 0.999 <= m * 10.0**p <= high * 1.001]
        ticks = [t for t in ticks if len(ticks) <= 6 or f"{t:e}".startswith("1")]
        return Axis(low, high, start, end, True, ticks)
    room = 0.05 * (high - low) or 0.5
    low, high = low - room, high + room
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(m for m in (5, 2, 1) if m == 1 or (high - low) / (m * step) >= 3)
    first = math.ceil(low / step)
    ticks = [round(step * n, 10) for n in range(first, math.floor(high / step) + 1)]
    return Axis(low, high, start, end, False, ticks)


def _short(tick: float) -> str:
    return f"{tick / 1000:g}k" if tick >= 1000 else f"{tick:g}"
