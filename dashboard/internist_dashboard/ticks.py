"""Where a logarithmic axis has its ticks: one, two and five of each decade, whole decades where those are many."""

import math
from typing import Any

from internist_dashboard import words

MOST = 6
"""Ticks of one axis: more would stand on each other's labels."""
_STEPS = ((1, 2, 5), (1, 3), (1,))


def logarithmic(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis from `low` to `high`, both positive, each tick with its whole value for a label."""
    if low == high:
        low, high = low / 2, high * 2
    ticks = _ticks(low, high)
    pad = 0.06 * math.log10(high / low)
    return {
        "type": "log", "range": [math.log10(low) - pad, math.log10(high) + pad], "tickmode": "array", "tickvals": ticks,
        "ticktext": [_short(tick) for tick in ticks], "dtick": None,
    }  # fmt: skip


def _short(tick: float) -> str:
    """A round number without the zeros that three digits would give it."""
    shown = words.number(tick)
    digits = shown.rstrip("TGMk")
    return (digits.rstrip("0").rstrip(".") if "." in digits and "e" not in digits else digits) + shown[len(digits) :]


def _ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in _STEPS:
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [tick for tick in found if low * 0.87 <= tick <= high * 1.15]
        if len(inside) <= MOST:
            return inside
    every = math.ceil((last - first + 1) / MOST)
    return [10.0**power for power in range(first, last + 1, every) if low * 0.87 <= 10.0**power <= high * 1.15]
