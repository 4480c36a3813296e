"""Numbers of a report: as JSON carries them, and back."""

import math

from internist.schema.views import Number


def number(value: float) -> Number:
    """A float as reports hold it: NaN and infinities by name."""
    if math.isfinite(value):
        return float(value)
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def finite(value: Number) -> float:
    """A number of a report as a float again; NaN where there is none."""
    return math.nan if value is None else float(value)
