"""One metric of several runs over each other, from a common beginning."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from internist.schema.views import Run
from internist.schema.windows import Points
from internist_dashboard import words
from internist_dashboard.axis import AXES, HOUR_MS, TOKENS
from internist_dashboard.theme import Scheme, palette, template

HEIGHT = 380
COLOURS: Final = ("#2b6cb0", "#c75a00", "#2f8f7f", "#8a5fb8", "#8a8000", "#b0487a", "#4f6f8f", "#7a5a3a")
DASHES: Final = ("solid", "dash", "dot")
"""Told apart without colour where there are more runs than colours."""
NAME_ROOM = 24


def overlay(
    lines: Sequence[tuple[Run, Points, Points]], *, metric: str, axis: str, scheme: Scheme, is_narrow: bool = False
) -> go.Figure:
    """A line for each run, named beside the chart, over steps, hours since its own first point, or tokens.

    Args:
        lines: each run with the metric's points, and those of its tokens where these are the axis.
        metric: whose points they are.
        axis: one of `AXES`.
        scheme: the colours.
        is_narrow: whether the screen is.
    """
    p = palette(scheme)
    unit = next((points.series.unit for _, points, _ in lines if points.series.unit), "")
    figure = go.Figure(
        layout={
            "template": template(scheme),
            "height": HEIGHT,
            "margin": {"l": 60, "r": 20, "t": 10, "b": 40},
            "showlegend": True,
            "legend": (
                {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0} if is_narrow else {"y": 1, "x": 1.01}
            ),
            "hovermode": "x unified",
            "xaxis": {
                "title": {"text": AXES[axis]},
                "tickformat": {"step": ",d", "time": ".3~g", "tokens": ".3~s"}[axis],
            },
            "yaxis": {"title": {"text": metric + (f" ({unit})" if unit else "")}},
        }
    )
    for place, (run, points, tokens) in enumerate(lines):
        name, colour = words.plain(_end(run.name)), COLOURS[place % len(COLOURS)]
        x = _axis(points, axis, tokens)
        y = [_finite(value) for value in points.values]
        figure.add_scatter(
            x=x, y=y, mode="lines", name=name,
            line={"color": colour, "width": 1.75, "dash": DASHES[place // len(COLOURS) % len(DASHES)]},
            hovertemplate="%{y:.4~g}",
        )  # fmt: skip
    if not lines:
        figure.update_layout(
            annotations=[{"text": _nothing(metric, axis), "showarrow": False, "x": 0.5, "y": 0.5,
                          "xref": "paper", "yref": "paper", "font": {"color": p.muted}}]
        )  # fmt: skip
    return figure


def _nothing(metric: str, axis: str) -> str:
    if axis == "tokens":
        return f"None of these runs logs how many tokens it has seen: internist.log({TOKENS}=…)."
    return f"None of these runs sends {metric}."


def _end(name: str) -> str:
    """A long name keeps its end, which tells the runs of a sweep apart."""
    return name if len(name) <= NAME_ROOM else "…" + name[1 - NAME_ROOM :]


def _axis(points: Points, axis: str, tokens: Points) -> list[float | None]:
    if axis == "tokens":
        return _at_steps(points.steps, tokens)
    if axis == "step" or not points.times_ms:
        return [float(step) for step in points.steps]
    return [(at - points.times_ms[0]) / HOUR_MS for at in points.times_ms]


def _at_steps(steps: Sequence[int], tokens: Points) -> list[float | None]:
    """Tokens at these steps, between those at which they were logged; beyond them nothing is known."""
    known = [
        (step, x) for step, value in zip(tokens.steps, tokens.values, strict=True) if (x := _finite(value)) is not None
    ]
    if not known:
        return [None] * len(steps)
    at, seen = zip(*known, strict=True)
    return [
        float(x) if at[0] <= step <= at[-1] else None for step, x in zip(steps, np.interp(steps, at, seen), strict=True)
    ]


def _finite(value: Any) -> float | None:
    x = words.real(value)
    return x if x is not None and math.isfinite(x) else None
