"""Drawing: the API's answers in, Plotly figures out. All charts of a page share margins, and so one step axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from internist.schema.alerts import Alert
from internist.schema.views import Number
from internist.schema.windows import Band, Heatmap, Points
from internist_dashboard import marks, ticks, words
from internist_dashboard import rows as heat_rows
from internist_dashboard.frame import Frame
from internist_dashboard.rows import Row
from internist_dashboard.theme import UNJUDGED, Palette, heat_scale, logit_scale, palette, template

LOSS_HEIGHT = 220
SERIES_HEIGHT = 320
ROW_MIN, ROW_MAX = 8, 26
HEAT_BODY = 460
"""Rows shrink to fit this many pixels, but never under ROW_MIN."""
LABEL_PX = 14
"""Least distance between two row labels."""
LOGIT_LIMIT = 3.0
"""log10 of the largest logit whose colour tells how large it is."""
STRIP_HEIGHT, STRIP_GAP = 84, 18
GRAPH_CONFIG: dict[str, Any] = {
    "displayModeBar": False, "doubleClick": "autosize", "scrollZoom": False, "showTips": False,
}  # fmt: skip
"""Every chart: no tool bar, no tips over the page; drag to zoom, double click to reset."""


def loss(losses: Points | None, rates: Sequence[Points], alerts: Sequence[Alert], frame: Frame) -> go.Figure:
    """Loss over steps, learning rates as thin lines on the right axis, alert marks on the step axis."""
    p = palette(frame.scheme)
    highest = max((x for rate in rates for x in _reals(rate.values) if x is not None), default=0.0)
    figure = _figure(frame, height=LOSS_HEIGHT - (40 if frame.narrow else 0))
    for rate in rates:
        figure.add_scatter(
            x=rate.steps, y=_reals(rate.values), yaxis="y2", mode="lines", name="lr",
            line={"color": p.muted, "width": 1}, opacity=0.7,
            hovertemplate=f"learning rate %{{y:.3g}}<br>step %{{x:,d}}<extra>{words.plain(_group(rate))}</extra>",
        )  # fmt: skip
    if losses is not None:
        _line(figure, losses, p, name="loss")
        marks.edge_marks(figure, losses, p)
    marks.alert_marks(figure, alerts, p)
    drawn = [*(rate.series.id for rate in rates), *([losses.series.id] if losses is not None else [])]
    places = range(len(rates)) if losses is None else [*range(len(rates)), len(rates) + (2 if losses.thinned else 0)]
    figure.update_layout(
        meta={
            "lines": {str(place): series for place, series in zip(places, drawn, strict=True)},
            "first": frame.first,
            "last": frame.last,
        },
        yaxis={"title": {"text": "loss (nats)"}, "fixedrange": True, "nticks": 5},
        yaxis2={
            "overlaying": "y", "side": "right", "showgrid": False, "fixedrange": True, "range": [0, 1.2 * highest or 1],
            "tickmode": "auto", "nticks": 4, "exponentformat": "e", "minexponent": 2,
            "title": {"text": "learning rate"} if not frame.narrow else None,
            "tickfont": {"size": 10, "color": p.muted},
        },
    )  # fmt: skip
    return figure


def heat(heatmap: Heatmap, rows: Sequence[Row], frame: Frame) -> go.Figure:
    """Layers x steps in one trace: colour is the log-ratio to the band; hatching shows where nothing was judged."""
    p = palette(frame.scheme)
    row_px = row_height(len(rows))
    figure = _figure(frame, height=round(row_px * len(rows)) + 42, top=4)
    numbers = heat_rows.cells(rows, heatmap.steps)
    drawn = np.where(numbers.nonfinite, marks.RATIO_LIMIT, np.clip(numbers.ratios, -marks.RATIO_LIMIT, 9))
    drawn = np.where(np.isnan(drawn) & np.isfinite(numbers.values), UNJUDGED, drawn).astype(np.float32)
    times = np.exp2(np.clip(numbers.ratios, -60, 60))
    details = np.stack([numbers.values, times, numbers.measured_at], axis=-1)
    unit = f" ({heatmap.unit})" if heatmap.unit else ""
    keys = [words.plain(row.key) for row in rows]
    figure.add_heatmap(
        x=list(heatmap.steps), y=keys, z=drawn, customdata=details,
        zmin=UNJUDGED, zmax=marks.RATIO_LIMIT, colorscale=heat_scale(frame.scheme), showscale=False,
        hoverongaps=False,
        hovertemplate=f"<b>%{{y}}</b><br>%{{customdata[1]}}<br>value %{{customdata[0]:.3~g}}{unit}"
        "<br>measured at step %{customdata[2]:,d}<extra></extra>",
    )  # fmt: skip
    marks.dots(figure, heatmap.steps, keys, numbers.nonfinite, p)
    labelled = thinned([row.block is not None for row in rows], every=math.ceil(LABEL_PX / row_px))
    figure.update_layout(
        meta=[{"series": row.series[0] if row.series else None, "block": row.block} for row in rows],
        images=[marks.hatching(p, frame, height=row_px * len(rows))],
        shapes=[
            *marks.hairlines(range(1, len(rows)) if row_px >= LABEL_PX else (), p, width=1),
            *marks.attempts(frame, p),
        ],
        annotations=marks.excesses(
            numbers.ratios, numbers.nonfinite, keys, p, frame, every=math.ceil(LABEL_PX / row_px)
        ),
        yaxis=_row_axis(keys, [keys[i] for i in labelled], [_label(rows[i], frame) for i in labelled]),
    )
    return figure


def logits(windows: Sequence[Points], frame: Frame) -> go.Figure:
    """MaxLogit, one row a head, grouped by layer: blue up to 100, orange beyond, saturated at 1,000."""
    p = palette(frame.scheme)
    row_px = max(3.0, min(16.0, HEAT_BODY / 2 / max(1, len(windows))))
    steps = sorted({step for points in windows for step in points.steps})
    column = {step: index for index, step in enumerate(steps)}
    values = np.full((len(windows), len(steps)), np.nan, dtype=np.float32)
    nonfinite = np.zeros(values.shape, dtype=bool)
    for index, points in enumerate(windows):
        known = [value is not None for value in points.high]
        at = np.array([column[step] for step in points.steps], dtype=np.int64)[known]
        values[index, at] = np.array([float(value) for value in points.high if value is not None], dtype=np.float32)
        nonfinite[index, at] = ~np.isfinite(values[index, at])
    measured = nonfinite | ~np.isnan(values)
    z = np.where(nonfinite, LOGIT_LIMIT, np.where(measured, np.log10(np.fmax(values, 1)), np.nan)).astype(np.float32)
    keys = [words.plain(words.subject(points.series.subject, points.series.index)) for points in windows]
    figure = _figure(frame, height=round(row_px * len(windows)) + 42, top=4)
    figure.add_heatmap(
        x=steps, y=keys, z=z, customdata=values, zmin=0, zmax=LOGIT_LIMIT, showscale=False, hoverongaps=False,
        colorscale=logit_scale(frame.scheme),
        hovertemplate="<b>%{y}</b><br>largest logit %{customdata[0]:.3~g}<br>warning at 100, critical at 1,000"
        "<br>step %{customdata[1]:,d}<extra></extra>",
    )  # fmt: skip
    marks.dots(figure, steps, keys, nonfinite, p)
    owners = [points.series.facts.block or points.series.subject for points in windows]
    starts = [i for i, owner in enumerate(owners) if i == 0 or owners[i - 1] != owner]
    middles = [(start + end - 1) // 2 for start, end in zip(starts, [*starts[1:], len(owners)], strict=True)]
    kept: list[int] = []
    for middle in middles:
        if not kept or (middle - kept[-1]) * row_px >= LABEL_PX:
            kept.append(middle)
    figure.update_layout(
        meta=[{"series": points.series.id, "block": None} for points in windows],
        images=[marks.hatching(p, frame, height=row_px * len(windows))],
        yaxis=_row_axis(keys, [keys[i] for i in kept], [_short(owners[i], frame) for i in kept]),
        shapes=[
            *marks.hairlines(starts[1:] if row_px * len(windows) >= LABEL_PX * len(starts) else (), p, width=2),
            *marks.attempts(frame, p),
        ],
    )  # fmt: skip
    return figure


def series(points: Points, alerts: Sequence[Alert], frame: Frame) -> go.Figure:
    """One series with its band, warning and critical edges, and its alerts."""
    p = palette(frame.scheme)
    figure = _figure(frame, height=SERIES_HEIGHT - (60 if frame.narrow else 0), left=60, right=20)
    scale = _scale(points)
    if points.band is not None:
        _band(figure, points.steps, points.band, p)
        figure.update_layout(annotations=_band_names(points.steps, points.band, p, is_log=scale.get("type") == "log"))
    _line(figure, points, p, name=words.plain(points.series.metric), markers=len(points.steps) <= 60)
    marks.edge_marks(figure, points, p)
    marks.alert_marks(figure, alerts, p)
    title = words.plain(points.series.metric + (f" ({points.series.unit})" if points.series.unit else ""))
    figure.update_layout(
        yaxis={"title": {"text": title}, "fixedrange": True, "nticks": 6, **scale},
    )
    return figure


@dataclass(frozen=True, slots=True)
class Strip:
    """One of the small charts of what optimizers tell of themselves."""

    title: str
    is_low_bad: bool = False


STRIPS = {
    "optimizer.gap": Strip("gap", is_low_bad=True),
    "optimizer.learned_norm": Strip("beneath", is_low_bad=True),
    "optimizer.learned_rms": Strip("beneath, RMS", is_low_bad=True),
    "optimizer.audit": Strip("audit"),
    "optimizer.removed_share": Strip("removed"),
    "optimizer.firings": Strip("firings"),
    "optimizer.clip_gamma": Strip("clip γ", is_low_bad=True),
    "optimizer.orthogonality": Strip("residual"),
}


def strips(windows: Sequence[Points], frame: Frame) -> go.Figure:
    """What optimizers tell of themselves: a strip for each metric, one under the other, a line for each parameter."""
    p = palette(frame.scheme)
    shown = [metric for metric in STRIPS if any(points.series.metric == metric for points in windows)]
    height = len(shown) * (STRIP_HEIGHT + STRIP_GAP) + 26
    body = max(1, len(shown) * (STRIP_HEIGHT + STRIP_GAP) - STRIP_GAP)
    figure = _figure(frame, height=height)
    for place, metric in enumerate(shown):
        top = 1 - place * (STRIP_HEIGHT + STRIP_GAP) / body
        axis = "y" if place == 0 else f"y{place + 1}"
        lines = [points for points in windows if points.series.metric == metric]
        for points in lines:
            name = words.plain(points.series.subject)
            figure.add_scatter(
                x=points.steps, y=_reals(points.values), yaxis=axis, mode="lines", name=name,
                line={"color": p.blue, "width": 1.25}, opacity=1.0 if len(lines) == 1 else 0.6,
                hovertemplate=f"{metric} %{{y:.3~g}}<br>step %{{x:,d}}<extra>{name}</extra>",
            )  # fmt: skip
        lost = [s for points in lines for s, n in zip(points.steps, points.nonfinite, strict=True) if n]
        if lost:
            highest = max((x for points in lines for x in _reals(points.values) if x is not None), default=1.0)
            figure.add_scatter(
                x=lost, y=[highest] * len(lost), yaxis=axis, mode="markers", cliponaxis=False,
                marker={"symbol": "circle", "size": 7, "color": p.dot, "line": {"color": p.dot_ring, "width": 1}},
                hovertemplate="NaN or infinite<br>step %{x:,d}<extra></extra>",
            )  # fmt: skip
        figure.update_layout({
            f"yaxis{axis[1:]}": {
                "domain": [max(0.0, top - STRIP_HEIGHT / body), top], "nticks": 4, "fixedrange": True,
                "title": {"text": STRIPS[metric].title}, "anchor": "x", "rangemode": "tozero",
                "exponentformat": "power",
            }
        })  # fmt: skip
    figure.update_layout(xaxis={"anchor": f"y{len(shown)}" if len(shown) > 1 else "y"})
    return figure


def empty(message: str, frame: Frame, *, height: int = 120) -> go.Figure:
    """A chart without data says why, in its middle."""
    p = palette(frame.scheme)
    figure = _figure(frame, height=height)
    figure.update_layout(
        xaxis={"visible": False},
        yaxis={"visible": False, "fixedrange": True},
        annotations=[
            {"text": message, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5,
             "font": {"color": p.muted, "size": 13}}
        ],
    )  # fmt: skip
    return figure


def row_height(count: int) -> float:
    """Pixels of one row: readable with few, 8 with many."""
    return max(float(ROW_MIN), min(float(ROW_MAX), HEAT_BODY / max(1, count)))


def thinned(preferred: Sequence[bool], *, every: int) -> list[int]:
    """Rows that get a label, at least `every` apart: in order, a preferred row winning over the one before it."""
    kept: list[int] = []
    for index, wins in enumerate(preferred):
        if not kept or index - kept[-1] >= every:
            kept.append(index)
        elif wins and not preferred[kept[-1]] and (len(kept) < 2 or index - kept[-2] >= every):
            kept[-1] = index
    return kept


def _figure(
    frame: Frame, *, height: int, top: int = 10, left: int | None = None, right: int | None = None
) -> go.Figure:
    edge = 92 if frame.narrow else 132
    return go.Figure(
        layout={
            "template": template(frame.scheme),
            "height": height,
            "margin": {"l": left or edge, "r": right or (46 if frame.narrow else 56), "t": top, "b": 36},
            "dragmode": False if frame.narrow else "zoom",
            "uirevision": f"{frame.first}-{frame.last}",
            "shapes": marks.attempts(frame, palette(frame.scheme)),
            "xaxis": {
                "range": list(frame.span), "tickformat": ",d", "nticks": 5 if frame.narrow else 10,
                "title": {"text": "step" if frame.ticks is None else frame.ticks.title}, "fixedrange": frame.narrow,
                "exponentformat": "none", **_ticks(frame),
            },
        }
    )  # fmt: skip


def _ticks(frame: Frame) -> dict[str, Any]:
    if frame.ticks is None:
        return {}
    return {"tickmode": "array", "tickvals": list(frame.ticks.at), "ticktext": list(frame.ticks.text)}


def _line(figure: go.Figure, points: Points, p: Palette, *, name: str, markers: bool = False) -> None:
    values = _reals(points.values)
    if points.thinned:
        outline = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(x=points.steps, y=_reals(points.low), **outline)
        figure.add_scatter(x=points.steps, y=_reals(points.high), fill="tonexty", fillcolor=p.band_warn, **outline)
    mark = words.BOUND_MARKS[points.series.bound]
    figure.add_scatter(
        x=points.steps, y=values, mode="lines+markers" if markers else "lines", name=name,
        line={"color": p.blue, "width": 1.75}, marker={"size": 4, "color": p.blue},
        hovertemplate=f"{name} {mark}%{{y:.4~g}}<br>step %{{x:,d}}<extra></extra>",
    )  # fmt: skip


def _band(figure: go.Figure, steps: Sequence[int], band: Band, p: Palette) -> None:
    hidden = {"mode": "lines", "hoverinfo": "skip", "connectgaps": False}
    low, high = _reals(band.warn_low), _reals(band.warn_high)
    if any(v is not None for v in low) and any(v is not None for v in high):
        figure.add_scatter(x=steps, y=low, line={"width": 0}, **hidden)
        figure.add_scatter(x=steps, y=high, line={"width": 0}, fill="tonexty", fillcolor=p.band_warn, **hidden)
    for edge, dash, name in (
        (band.warn_low, "dot", "warning"), (band.warn_high, "dot", "warning"),
        (band.critical_low, "solid", "critical"), (band.critical_high, "solid", "critical"),
    ):  # fmt: skip
        values = _reals(edge)
        if any(v is not None for v in values):
            colour = p.drifting if name == "warning" else p.violated
            figure.add_scatter(
                x=steps, y=values, mode="lines", line={"color": colour, "width": 1, "dash": dash}, opacity=0.7,
                hovertemplate=f"{name} %{{y:.4~g}}<extra></extra>",
            )  # fmt: skip
    figure.add_scatter(
        x=steps, y=_reals(band.centre), line={"color": p.band_edge, "width": 1, "dash": "dash"}, **hidden
    )


def _band_names(steps: Sequence[int], band: Band, p: Palette, *, is_log: bool) -> list[dict[str, Any]]:
    """What each line of a band is, at the line's end; lines that coincide are named once, by the worst of them."""
    notes: list[dict[str, Any]] = []
    named: list[tuple[int, float]] = []
    for edge, name, colour, side in (
        (band.critical_high, "critical", p.violated, "bottom"), (band.warn_high, "warning", p.drifting, "top"),
        (band.centre, f"its {words.basis(band.basis)}", p.muted, "bottom"),
        (band.warn_low, "warning", p.drifting, "bottom"), (band.critical_low, "critical", p.violated, "top"),
    ):  # fmt: skip
        known = [(step, y) for step, y in zip(steps, _reals(edge), strict=True) if y is not None]
        if known and all(known[-1][1] != y for _, y in named) and (known[-1][1] > 0 or not is_log):
            named.append(known[-1])
            step, y = known[-1]
            notes.append({
                "text": name, "x": step, "y": math.log10(y) if is_log else y, "xref": "x", "yref": "y",
                "showarrow": False, "xanchor": "right", "yanchor": side, "font": {"size": 10, "color": colour},
            })  # fmt: skip
    return notes


def _scale(points: Points) -> dict[str, Any]:
    """A logarithmic axis where values and band are positive and far apart."""
    shown = [x for x in _reals(points.values) if x is not None]
    if points.band is not None:
        shown += [
            x for edge in (points.band.warn_low, points.band.critical_high) for x in _reals(edge) if x is not None
        ]
    if shown and min(shown) > 0 and max(shown) / min(shown) > 12:
        return ticks.logarithmic(min(shown), max(shown))
    return {"rangemode": "tozero"} if shown and min(shown) >= 0 else {}


def _row_axis(keys: Sequence[str], ticks: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "category", "categoryorder": "array", "categoryarray": list(keys), "range": [len(keys) - 0.5, -0.5],
        "tickmode": "array", "tickvals": list(ticks), "ticktext": list(labels), "showgrid": False, "fixedrange": True,
        "ticklabelstandoff": 6,
    }  # fmt: skip


def _label(row: Row, frame: Frame) -> str:
    if row.is_child:
        return "└ " + _short(row.label, frame)
    arrow = "" if row.block is None else ("▾ " if row.is_open else "▸ ")
    return arrow + _short(row.label, frame)


def _short(name: str, frame: Frame) -> str:
    """A long name keeps its end, which tells modules apart."""
    room = 11 if frame.narrow else 18
    return words.plain(name if len(name) <= room else "…" + name[-(room - 1) :])


def _group(points: Points) -> str:
    return points.series.subject if points.series.subject else "all parameters"


def _reals(values: Sequence[Number]) -> list[float | None]:
    """Finite values; gaps where absent or not finite (those are drawn as marks)."""
    reals = (words.real(value) for value in values)
    return [x if x is not None and math.isfinite(x) else None for x in reals]
