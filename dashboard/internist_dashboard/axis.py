"""The step axis told in hours or tokens. Ticks stand at steps all the same, so that charts and windows stay linked."""

from dataclasses import replace
from typing import Final

import numpy as np

from internist.schema.views import Run
from internist.schema.windows import Points
from internist_dashboard import words
from internist_dashboard.api import Api
from internist_dashboard.frame import Frame, Ticks

AXES: Final = {"step": "steps", "time": "hours", "tokens": "tokens"}
"""What an axis may be of, and how that is said."""
TOKENS: Final = "tokens"
"""The scalar that says how many tokens a run has seen: `internist.log(tokens=...)`."""
HOUR_MS: Final = 3_600_000.0
PIXELS: Final = 700
MOST_TICKS: Final = 8
_ROUND: Final = (1.0, 2.0, 5.0, 10.0)
_CLOCKS: Final = (TOKENS, "loss", "learning_rate")
"""Metrics of whole runs, whose points tell when their steps were."""


async def on_axis(api: Api, run: Run, frame: Frame, axis: str | None) -> Frame:
    """The frame with its ticks at round hours or tokens; as it is where these are not known."""
    if axis not in ("time", "tokens") or run.last_step is None:
        return frame
    for metric in _CLOCKS[:1] if axis == "tokens" else _CLOCKS[1:]:
        found = await api.series(run.id, metric=metric, limit=1)
        if found:
            page = await api.points(run.id, [found[0].id], first=0, last=run.last_step, pixels=PIXELS)
            ticks = next((ticks_of(points, axis, frame) for points in page.windows), None)
            return replace(frame, ticks=ticks)
    return frame


def ticks_of(points: Points, axis: str, frame: Frame) -> Ticks | None:
    """Where on the steps of a frame round hours or tokens lie; None where the points do not tell."""
    if axis == "tokens":
        told = [(step, words.real(value)) for step, value in zip(points.steps, points.values, strict=True)]
    else:
        told = [
            (step, (at - points.times_ms[0]) / HOUR_MS) for step, at in zip(points.steps, points.times_ms, strict=True)
        ]
    known = [(step, value) for step, value in told if value is not None and np.isfinite(value)]
    if len(known) < 2:
        return None
    steps, values = (np.asarray(one, dtype=np.float64) for one in zip(*known, strict=True))
    values = np.maximum.accumulate(values)  # clocks of two machines may differ; what rises is what is drawn
    low, high = np.interp([frame.first, frame.last], steps, values)
    if high <= low:
        return None
    gap = _gap((high - low) / (MOST_TICKS // 2 if frame.narrow else MOST_TICKS))
    marks = np.arange(np.ceil(low / gap), np.floor(high / gap) + 1) * gap
    return Ticks(
        AXES[axis], tuple(np.interp(marks, values, steps).tolist()), tuple(_said(float(mark), gap) for mark in marks)
    )


def _gap(least: float) -> float:
    """The next round distance between ticks."""
    decade = 10.0 ** np.floor(np.log10(least))
    return float(decade * next(one for one in _ROUND if one * decade >= least * (1 - 1e-9)))


def _said(mark: float, gap: float) -> str:
    """A mark with as many digits as tell it from the next."""
    for size, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if mark >= size:
            return f"{mark / size:.{_digits(gap / size)}f}{sign}"
    return f"{mark:.{_digits(gap)}f}"


def _digits(gap: float) -> int:
    return max(0, int(-np.floor(np.log10(gap) + 1e-9)))
