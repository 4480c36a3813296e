"""Axes: where a scalar belongs that was logged with a step of its own. That step may count something else than
optimizer steps: tokens, epochs, samples."""

import operator
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

TOLERANCE: Final = 1
"""How far a step of the user's own may be from the optimizer step under way and still be one. Loops count from 0 or
from 1, and log before or after the optimizer's step: each is off by one at most. What is further off counts something
else, or is logged so late that its place is a statement about the past; both are kept as a position."""
PLAUSIBLE_STEPS: Final = 100_000_000
"""The largest number that is taken for an optimizer step where no optimizer step was seen: at ten steps a second it is
four months away."""
DEFAULT_AXIS: Final = "step"
"""What the axis is called whose name was not given."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scalar is recorded.

    Attributes:
        step: the optimizer step.
        axis: the foreign axis on which it was logged; None: the optimizer step itself.
        position: where on that axis.
    """

    step: int
    axis: str | None = None
    position: float | None = None


def place(number: int, *, axis: str | None, under_way: int, counted: bool) -> Place:
    """Where a scalar that was logged with a number of the user's own belongs.

    Args:
        number: the user's step, 0 or more.
        axis: the name of what it counts, if the user said so.
        under_way: the optimizer step that a scalar without a number would belong to.
        counted: whether optimizer steps have been seen. Without them `under_way` does not move, and the number is all
            there is to tell one scalar from the next.
    """
    if axis is None:
        if counted and abs(number - under_way) <= TOLERANCE:
            return Place(number)
        if not counted and number <= PLAUSIBLE_STEPS:
            return Place(number)
    return Place(under_way, axis or DEFAULT_AXIS, _position(number))


def whole_number(value: Any) -> int | None:
    """The number that a step was given as: an int, NumPy's ints, a 0-d integer tensor on the CPU, a float without a
    fraction. None: it is no whole number from 0 on, or reading it would wait for a device."""
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.device.type != "cpu" or value.is_complex():
            return None
        value = value.item()
    if isinstance(value, bool):
        return None
    try:
        number = operator.index(value)
    except TypeError:
        real = getattr(value, "__float__", None)
        if real is None or isinstance(value, str):
            return None
        as_float = real()
        if not isinstance(as_float, float) or not as_float.is_integer():
            return None
        number = int(as_float)
    return number if number >= 0 else None


def _position(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")
