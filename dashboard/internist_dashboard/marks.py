"""Marks on charts: alerts on the step axis, what is not finite, what was not measured."""

import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from internist.schema.alerts import Alert
from internist.schema.windows import Points
from internist_dashboard import words
from internist_dashboard.frame import Frame
from internist_dashboard.rows import FloatArray
from internist_dashboard.theme import DIVERGING_LIMIT, Palette

RATIO_LIMIT = DIVERGING_LIMIT
MAX_MARKS = 400


def edge_marks(figure: go.Figure, points: Points, p: Palette) -> None:
    """NaN and infinities as marks at the plot's upper edge."""
    lost = [(s, n) for s, n in zip(points.steps, points.nonfinite, strict=True) if n]
    if lost:
        figure.add_scatter(
            x=[s for s, _ in lost], y=[1.0] * len(lost), yaxis="y3", mode="markers", cliponaxis=False,
            marker={"symbol": "circle", "size": 7, "color": p.dot, "line": {"color": p.dot_ring, "width": 1}},
            hovertemplate="NaN or infinite<br>step %{x:,d}<extra></extra>",
        )  # fmt: skip
        _overlay(figure)


def alert_marks(figure: go.Figure, alerts: Sequence[Alert], p: Palette) -> None:
    """Triangles on the step axis where alerts opened: one a step, the worst severity colouring it."""
    by_step: dict[int, list[Alert]] = {}
    for alert in alerts:
        if alert.opened_step is not None:
            by_step.setdefault(alert.opened_step, []).append(alert)
    marked = sorted(by_step.items())[-MAX_MARKS:]
    if not marked:
        return
    critical = [any(alert.severity == "critical" for alert in group) for _, group in marked]
    figure.add_scatter(
        x=[step for step, _ in marked], y=[0.0] * len(marked), yaxis="y3", mode="markers", cliponaxis=False,
        marker={"symbol": "triangle-up", "size": 10, "color": [p.violated if c else p.drifting for c in critical]},
        customdata=[_alert_words(group) for _, group in marked],
        hovertemplate="%{customdata}<br>step %{x:,d}<extra></extra>",
    )  # fmt: skip
    _overlay(figure)


def _alert_words(group: list[Alert]) -> str:
    lines = [
        f"<b>{a.condition.replace('_', ' ')}</b> {words.plain(words.subject(a.subject, a.index))}" for a in group[:4]
    ]
    return "<br>".join(lines + ([f"and {len(group) - 4} more"] if len(group) > 4 else []))


def _overlay(figure: go.Figure) -> None:
    figure.update_layout(yaxis3={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})


def dots(figure: go.Figure, steps: Sequence[int], keys: Sequence[str], cells: NDArray[np.bool_], p: Palette) -> None:
    """A black dot on every cell whose value is NaN or infinite."""
    rows, columns = np.nonzero(cells)
    if rows.size:
        figure.add_scatter(
            x=[steps[int(c)] for c in columns], y=[keys[int(r)] for r in rows], mode="markers",
            marker={"size": 5, "color": p.dot, "line": {"color": p.dot_ring, "width": 0.75}},
            hovertemplate="<b>%{y}</b><br>NaN or infinite<br>step %{x:,d}<extra></extra>",
        )  # fmt: skip


def excesses(
    ratios: FloatArray,
    nonfinite: NDArray[np.bool_],
    keys: Sequence[str],
    p: Palette,
    frame: Frame,
    *,
    every: int,
) -> list[dict[str, Any]]:
    """The latest ratio of rows out of their band, at the right edge; the farthest first where they would overlap."""
    latest: list[tuple[float, int, str]] = []
    for index, row in enumerate(ratios):
        known = np.flatnonzero(np.isfinite(row) | nonfinite[index])
        if known.size == 0:
            continue
        last = known[-1]
        if nonfinite[index, last]:
            latest.append((math.inf, index, "NaN"))
        elif abs(row[last]) >= 1:
            latest.append((abs(float(row[last])), index, words.times(2.0 ** float(row[last]))))
    taken: list[int] = []
    notes: list[dict[str, Any]] = []
    for size, index, text in sorted(latest, reverse=True):
        if any(abs(index - other) < every for other in taken):
            continue
        taken.append(index)
        colour = p.violated if size >= RATIO_LIMIT else p.drifting
        notes.append({
            "text": text, "x": 1, "xref": "x domain", "y": keys[index], "xanchor": "left",
            "xshift": 6, "showarrow": False, "font": {"size": 10 if frame.narrow else 11, "color": colour},
        })  # fmt: skip
    return notes


def attempts(frame: Frame, p: Palette) -> list[dict[str, Any]]:
    """A dotted line, named, where each later attempt began: what follows it is another history."""
    shown = [step for step in frame.attempts if frame.first <= step <= frame.last]
    first = len(frame.attempts) - len(shown) + 2
    return [
        {
            "type": "line", "xref": "x", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1, "name": "attempt",
            "line": {"color": p.muted, "width": 1, "dash": "dot"},
            "label": {
                "text": f"attempt {first + place}", "textposition": "end", "textangle": 0, "xanchor": "left",
                "font": {"size": 10, "color": p.muted},
            },
        }
        for place, step in enumerate(shown)
    ]  # fmt: skip


def hairlines(rows: Iterable[int], p: Palette, *, width: int) -> list[dict[str, Any]]:
    """Lines above rows, in the colour of the ground: they part rows that are tall enough."""
    line = {
        "type": "line",
        "xref": "x domain",
        "x0": 0,
        "x1": 1,
        "yref": "y",
        "line": {"color": p.surface, "width": width},
    }
    return [line | {"y0": row - 0.5, "y1": row - 0.5} for row in rows]


def hatching(p: Palette, frame: Frame, *, height: float) -> dict[str, Any]:
    """Fine diagonal lines behind the cells: what shows through was not measured."""
    side = max(300 if frame.narrow else 900, round(height))  # about the plot's size: the image is scaled to it
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{side}' height='{side}' viewBox='0 0 {side} {side}'"
        " preserveAspectRatio='xMidYMid slice'>"
        "<defs><pattern id='h' width='5' height='5' patternUnits='userSpaceOnUse' patternTransform='rotate(45)'>"
        f"<rect width='1.5' height='5' fill='{p.unmeasured}'/></pattern></defs>"
        f"<rect width='{side}' height='{side}' fill='url(#h)'/></svg>"
    )
    source = "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()
    return {
        "source": source, "xref": "x", "yref": "y domain", "x": frame.first, "y": 1, "sizex": frame.last - frame.first,
        "sizey": 1, "sizing": "fill", "layer": "below",
    }  # fmt: skip
