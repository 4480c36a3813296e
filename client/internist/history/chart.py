"""A line chart as SVG, for pages that no script runs in. NaN and infinities are marks at its lower edge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from internist.history.curves import Curve

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 560, 180, 64, 14, 12, 24
_TICKS: Final = 3
_MOST_POINTS: Final = 600
"""A page is to be mailed: more points than pixels say nothing."""


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of values and where it lies on the page."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)


def chart(curve: Curve, *, low: Sequence[float] = (), high: Sequence[float] = ()) -> str:
    """A curve over the steps, with the edges of its band where there are such.

    Args:
        curve: at least one point.
        low: lower edge of the band at each point; NaN where there is none.
        high: upper edge.
    """
    kept = _thinned(curve.values)
    steps, values = [curve.steps[i] for i in kept], [curve.values[i] for i in kept]
    edges = [[edge[i] for i in kept] for edge in (low, high) if edge]
    finite = [v for v in values if math.isfinite(v)]
    across = Range(steps[0], max(steps[-1], steps[0] + 1), _LEFT, _WIDTH - _RIGHT)
    up = _upwards(finite)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(curve.tag, quote=True)}">',
        *_grid(across, up),
        *(f'<path class="edge" d="{_path(steps, edge, across, up)}"/>' for edge in edges),
        f'<path class="line" d="{_path(steps, values, across, up)}"/>',
    ]
    bottom = _HEIGHT - _BOTTOM
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            parts.append(f'<path class="odd" d="M{across.at(step) - 3:.1f} {bottom - 6}l6 6m-6 0l6 -6"/>')
    return "".join([*parts, "</svg>"])


def _thinned(values: Sequence[float]) -> list[int]:
    """Which points are drawn: of each bucket the lowest, the highest, and all that are no numbers."""
    width = max(1, math.ceil(len(values) / (_MOST_POINTS / 2)))
    kept: set[int] = {0, len(values) - 1}
    for begin in range(0, len(values), width):
        bucket = range(begin, min(begin + width, len(values)))
        numbers = [i for i in bucket if math.isfinite(values[i])]
        kept |= {i for i in bucket if not math.isfinite(values[i])}
        if numbers:
            kept |= {min(numbers, key=lambda i: values[i]), max(numbers, key=lambda i: values[i])}
    return sorted(kept)


def _upwards(values: Sequence[float]) -> Range:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low or abs(high) or 1.0) * 0.05
    return Range(low - room, high + room, _HEIGHT - _BOTTOM, _TOP)


def _path(steps: Sequence[int], values: Sequence[float], across: Range, up: Range) -> str:
    """A line through the points that are numbers, with a gap where one is none, cut at the chart's edges."""
    found, pen = [], "M"
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        y = min(max(up.at(value), _TOP), _HEIGHT - _BOTTOM)
        found.append(f"{pen}{across.at(step):.1f} {y:.1f}")
        pen = "L"
    return "".join(found)


def _grid(across: Range, up: Range) -> list[str]:
    parts = []
    for place in range(_TICKS):
        share = place / (_TICKS - 1)
        value, step = up.low + share * (up.high - up.low), across.low + share * (across.high - across.low)
        y, x = up.at(value), across.at(step)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        anchor = ("start", "middle", "end")[place]
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{step:,.0f}</text>')
    return parts
