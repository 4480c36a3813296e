"""Numbers as JSON carries them: NaN and infinities are the strings "nan", "inf", "-inf"."""

import math

import numpy as np
from numpy.typing import NDArray

from internist.schema.views import Number

_EXACT = 22
"""Powers of ten up to this are exact in float64: a whole number of few digits over one of them, or times it, is the
float64 that is nearest to the decimal number."""
_POWERS = np.array([float(f"1e{power}") for power in range(_EXACT + 1)])


def number(value: float | None) -> Number:
    """One number; None stays None (absent)."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def numbers(values: NDArray[np.floating], *, absent: NDArray[np.bool_] | None = None) -> tuple[Number, ...]:
    """An array of numbers; those that are absent become None.

    Float32 values are written with the digits that tell them apart, not with those of their float64 image.
    """
    return tuple(_shown(values, absent).tolist())


def rows_of_numbers(values: NDArray[np.floating], *, absent: NDArray[np.bool_]) -> list[tuple[Number, ...]]:
    """The same of a matrix, row by row."""
    return [tuple(row) for row in _shown(values, absent).tolist()]


def _shown(values: NDArray[np.floating], absent: NDArray[np.bool_] | None) -> NDArray[np.object_]:
    shown = _shortest(values).astype(object)
    is_odd = ~np.isfinite(values)
    if is_odd.any():
        shown[is_odd] = [number(one) for one in values[is_odd].tolist()]
    if absent is not None:
        shown[absent] = None
    return shown


def _shortest(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each value as the number of few digits that is nearest to it."""
    wide: NDArray[np.float64] = values.astype(np.float64)
    if values.dtype == np.float64 or not values.size:
        return wide
    digits = 8 if values.dtype == np.float32 else 4
    with np.errstate(all="ignore"):
        magnitude = np.where((wide != 0) & np.isfinite(wide), np.floor(np.log10(np.abs(wide))), 0)
        decimals = np.clip(digits - magnitude, -300, 300).astype(np.int64)
        scale = _POWERS[np.minimum(np.abs(decimals), _EXACT)]
        rounded: NDArray[np.float64] = np.where(
            decimals < 0, np.rint(wide / scale) * scale, np.rint(wide * scale) / scale
        )
    for place in zip(*np.nonzero(np.abs(decimals) > _EXACT), strict=True):
        rounded[place] = round(float(wide[place]), int(decimals[place]))
    return rounded
