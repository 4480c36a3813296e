"""Numbers as JSON carries them: NaN and infinities are the strings "nan", "inf", "-inf"."""

import math

import numpy as np
from numpy.typing import NDArray

from internist.schema.views import Number


def number(value: float | None) -> Number:
    """One number; None stays None (absent)."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def numbers(values: NDArray[np.floating], *, absent: NDArray[np.bool_] | None = None) -> tuple[Number, ...]:
    """An array of numbers; those that are absent become None.

    Float32 values are written with the digits that tell them apart, not with those of their float64 image.
    """
    shown: list[Number] = _shortest(values)
    for place in np.flatnonzero(~np.isfinite(values)).tolist():
        shown[place] = number(float(values[place]))
    if absent is not None:
        for place in np.flatnonzero(absent).tolist():
            shown[place] = None
    return tuple(shown)


def _shortest(values: NDArray[np.floating]) -> list[Number]:
    if values.dtype == np.float64 or not values.size:
        return list(values.tolist())
    digits = 8 if values.dtype == np.float32 else 4
    with np.errstate(all="ignore"):
        wide = values.astype(np.float64)
        magnitude = np.where((wide != 0) & np.isfinite(wide), np.floor(np.log10(np.abs(wide))), 0)
        decimals = np.clip(digits - magnitude, -300, 300)
    return [round(value, int(places)) for value, places in zip(wide.tolist(), decimals.tolist(), strict=True)]
