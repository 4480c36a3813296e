"""How two runs differ, layers x steps: one's values over the other's, where both have measured the same part."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from internist.schema.windows import Heatmap
from internist_dashboard import marks, words
from internist_dashboard.rows import MOST_ROWS, Cells, cells, collapse
from internist_dashboard.theme import UNJUDGED, Scheme, heat_scale, palette, template

ROW_PX = 18
EDGE = 132


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows that both runs have, in the first one's order, at the first one's steps."""

    rows: tuple[str, ...]
    steps: tuple[int, ...]
    ratios: NDArray[np.float32]
    """log2 of the first run's value over the second's last one; NaN where either has none, or none that is a positive
    number."""


def difference(first: Heatmap, second: Heatmap) -> Difference:
    """One run's values over the other's. A step is compared with the last of the other run that is not later."""
    mine, theirs = _values(first), _values(second)
    rows = tuple(name for name in mine if name in theirs)[:MOST_ROWS]
    steps = np.asarray(first.steps, dtype=np.int64)
    others = np.asarray(second.steps, dtype=np.int64)
    if not rows or not len(steps) or not len(others):
        return Difference(rows, first.steps, np.full((len(rows), len(steps)), np.nan, np.float32))
    place = np.searchsorted(others, steps, side="right") - 1
    is_there = (place >= 0) & (steps <= others[-1])
    ours = np.stack([mine[name] for name in rows])
    other = np.where(is_there, np.stack([theirs[name] for name in rows])[:, np.maximum(place, 0)], np.nan)
    is_number = np.isfinite(ours) & np.isfinite(other) & (ours > 0) & (other > 0)
    ratios = np.full(ours.shape, np.nan, np.float32)
    ratios[is_number] = np.log2(ours[is_number] / other[is_number])
    return Difference(rows, first.steps, ratios)


def heat(found: Difference, *, metric: str, names: tuple[str, str], scheme: Scheme, is_narrow: bool) -> go.Figure:
    """The difference as a heat map: white is alike, orange the first is larger, blue the second."""
    keys = [words.plain(name) for name in found.rows]
    figure = go.Figure(
        layout={
            "template": template(scheme),
            "height": max(160, ROW_PX * len(keys) + 46),
            "margin": {"l": 92 if is_narrow else EDGE, "r": 20, "t": 4, "b": 40},
            "dragmode": False if is_narrow else "zoom",
            "xaxis": {"title": {"text": "steps"}, "tickformat": ",d", "nticks": 5 if is_narrow else 10},
            "yaxis": {"type": "category", "autorange": "reversed", "fixedrange": True, "showgrid": False},
        }
    )
    if not np.isfinite(found.ratios).any():
        said = f"Both runs have measured {metric} of no part at the same steps."
        figure.update_layout(
            annotations=[{"text": words.plain(said), "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5,
                          "y": 0.5, "font": {"color": palette(scheme).muted}}],
            xaxis={"visible": False}, yaxis={"visible": False},
        )  # fmt: skip
        return figure
    first, second = (words.plain(name) for name in names)
    both = np.flatnonzero(np.isfinite(found.ratios).any(axis=0))
    shared = slice(int(both[0]), int(both[-1]) + 1)  # where one run has ended there is nothing to compare
    ratios = found.ratios[:, shared]
    figure.add_heatmap(
        x=list(found.steps[shared]), y=keys, z=np.clip(ratios, -marks.RATIO_LIMIT, marks.RATIO_LIMIT),
        customdata=np.exp2(ratios), zmin=UNJUDGED, zmax=marks.RATIO_LIMIT, colorscale=heat_scale(scheme),
        showscale=False, hoverongaps=False,
        hovertemplate=f"<b>%{{y}}</b><br>{first} is %{{customdata:.3~g}}× {second}<br>step %{{x:,d}}<extra></extra>",
    )  # fmt: skip
    return figure


def _values(heatmap: Heatmap) -> dict[str, NDArray[np.float32]]:
    """The values of each row, held until the next is due."""
    rows = collapse(heatmap)
    numbers: Cells = cells(rows, heatmap.steps)
    return {row.key.strip(): values for row, values in zip(rows, numbers.values, strict=True)}
