"""Heat maps as they are sent: the numbers behind their cells, in few digits. `assets/cells.js` makes of them what is
drawn, of news in the same way."""

import math
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from internist_dashboard.rows import FloatArray

RATIO_STEPS: Final = 64
"""Log-ratios are sent in parts of one of this many: a factor to one in a hundred."""
DIGITS: Final = 3
MOST_RATIO: Final = 60.0
"""log2; what is farther from its band says no more."""


def fold(figure: go.Figure, *, against: str = "") -> dict[str, Any]:
    """A figure as it is sent; `against`: what ratios are to. Its heat maps have cells in place of colours and texts."""
    sent: dict[str, Any] = figure.to_plotly_json()
    for trace, of_trace in zip(figure.data, sent["data"], strict=True):
        if trace.type != "heatmap":
            continue
        details, drawn = np.asarray(trace.customdata), np.asarray(trace.z)
        del of_trace["z"], of_trace["customdata"]
        if details.ndim == 2:
            of_trace["cells"] = {"values": digits(details, is_lost=np.isfinite(drawn) & np.isnan(details))}
            continue
        values, times = details[..., 0], details[..., 1]
        is_lost = np.isfinite(drawn) & np.isnan(values) & ~(times < 2**MOST_RATIO)
        ago = np.asarray(trace.x, dtype=np.float64)[None, :] - details[..., 2]
        of_trace["cells"] = {
            "against": against,
            "values": digits(values, is_lost=is_lost),
            "ratios": steps_of(times),
            "ago": [[int(x) if x else 0 for x in row] for row in np.nan_to_num(ago).tolist()],
        }
    return sent


def digits(values: FloatArray, *, is_lost: "np.ndarray[Any, np.dtype[np.bool_]]") -> list[list[float | str | None]]:
    """Values to three digits; none where there is none, and what is not finite by its name."""
    rows = zip(values.tolist(), is_lost.tolist(), strict=True)
    return [[_value(x, is_lost=lost) for x, lost in zip(row, marks, strict=True)] for row, marks in rows]


def steps_of(times: FloatArray) -> list[list[int | None]]:
    """Ratios as logarithms in steps; none where nothing was judged."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.clip(np.log2(times.astype(np.float64)), -MOST_RATIO, MOST_RATIO)
    scaled = np.round(logs * RATIO_STEPS)
    return [[None if math.isnan(x) else int(x) for x in row] for row in scaled.tolist()]


def _value(x: float, *, is_lost: bool) -> float | str | None:
    if math.isfinite(x):
        return float(f"{x:.{DIGITS}g}")
    if math.isnan(x):
        return "nan" if is_lost else None
    return "inf" if x > 0 else "-inf"
