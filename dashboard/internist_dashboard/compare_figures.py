"""One metric of several runs over each other, from a common beginning."""

import math
from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go

from internist.schema.views import Points, Run
from internist_dashboard import words
from internist_dashboard.theme import Scheme, palette, template

AXES: Final = {"step": "steps", "time": "hours"}
HEIGHT = 380
COLOURS: Final = ("#2b6cb0", "#c75a00", "#2f8f7f", "#8a5fb8", "#8a8000", "#b0487a", "#4f6f8f", "#7a5a3a")
DASHES: Final = ("solid", "dash", "dot")
"""Told apart without colour where there are more runs than colours."""
NAME_ROOM = 24
HOUR_MS = 3_600_000.0


def overlay(
    lines: Sequence[tuple[Run, Points]], *, metric: str, axis: str, scheme: Scheme, is_narrow: bool = False
) -> go.Figure:
    """A line for each run, named beside the chart, over steps or over hours since its own first point."""
    p = palette(scheme)
    unit = next((points.series.unit for _, points in lines if points.series.unit), "")
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
            "xaxis": {"title": {"text": AXES[axis]}, "tickformat": ",d" if axis == "step" else ".3~g"},
            "yaxis": {"title": {"text": metric + (f" ({unit})" if unit else "")}},
        }
    )
    for place, (run, points) in enumerate(lines):
        name, colour = words.plain(_end(run.name)), COLOURS[place % len(COLOURS)]
        x = _axis(points, axis)
        y = [_finite(value) for value in points.values]
        figure.add_scatter(
            x=x, y=y, mode="lines", name=name,
            line={"color": colour, "width": 1.75, "dash": DASHES[place // len(COLOURS) % len(DASHES)]},
            hovertemplate="%{y:.4~g}",
        )  # fmt: skip
    if not lines:
        figure.update_layout(
            annotations=[{"text": f"None of these runs sends {metric}.", "showarrow": False, "x": 0.5, "y": 0.5,
                          "xref": "paper", "yref": "paper", "font": {"color": p.muted}}]
        )  # fmt: skip
    return figure


def _end(name: str) -> str:
    """A long name keeps its end, which tells the runs of a sweep apart."""
    return name if len(name) <= NAME_ROOM else "…" + name[1 - NAME_ROOM :]


def _axis(points: Points, axis: str) -> list[float]:
    if axis == "step" or not points.times_ms:
        return [float(step) for step in points.steps]
    return [(at - points.times_ms[0]) / HOUR_MS for at in points.times_ms]


def _finite(value: Any) -> float | None:
    x = words.real(value)
    return x if x is not None and math.isfinite(x) else None
