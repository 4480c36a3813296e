"""The optimizer's part of a run page: what it tells of itself over steps, and the routing table."""

import asyncio
import math
from collections import defaultdict
from typing import Any

import dash
from dash import Input, Output, State

from internist.schema.windows import SeriesView
from internist_dashboard import figures, routing, words
from internist_dashboard.api import Api
from internist_dashboard.axis import on_axis
from internist_dashboard.filters import compiled
from internist_dashboard.pages.run import PIXELS, Window, frame_of
from internist_dashboard.theme import Scheme

LINES = 12
"""Lines of one strip: the worst parameters by their last value."""
SERIES_ASKED = 20_000


def register(app: dash.Dash, api: Api) -> None:
    """The panel's callback."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("optimizer", "hidden"),
        Output("optimizer-graph", "figure"),
        Output("optimizer-graph", "style"),
        Output("optimizer-note", "children"),
        Output("routing-summary", "children"),
        Output("routing", "children"),
        Input("tick", "data"),
        Input("window", "data"),
        Input("filter", "data"),
        Input("scheme", "data"),
        Input("narrow", "data"),
        Input("axis", "value"),
        State("page", "data"),
    )
    async def draw(
        _: object, window: Window, text: str | None, scheme: Scheme, narrow: bool, axis: str, page: dict[str, Any]
    ) -> Any:
        name, pattern = page["run"], compiled(text)
        run, table, series = await asyncio.gather(
            api.run(name), api.routing(name), api.series(name, metric=list(routing.TOLD), limit=SERIES_ASKED)
        )
        frame = await on_axis(api, run, frame_of(run, window, scheme, is_narrow=narrow), axis)
        shown = [one for one in series if pattern is None or pattern.search(one.subject)]
        chosen = worst(shown)
        windows = (
            (await api.points(name, [o.id for o in chosen], first=frame.first, last=frame.last, pixels=PIXELS)).windows
            if chosen
            else ()
        )
        lines = routing.table(table, series, pattern=pattern)
        drawn = await asyncio.to_thread(figures.strips, windows, frame) if windows else figures.empty("", frame)
        note = f"{LINES} worst parameters of each" if len(chosen) < len(_strips(shown)) else ""
        is_empty = not table.routes and not series
        return is_empty, drawn, {} if windows else {"display": "none"}, note, routing.summary(table), lines


def worst(series: list[SeriesView]) -> list[SeriesView]:
    """Of each metric that has a strip the parameters to draw: those whose last value is worst, in forward order."""
    by_metric: dict[str, list[SeriesView]] = defaultdict(list)
    for one in _strips(series):
        by_metric[one.metric].append(one)
    kept = {
        one.id
        for metric, members in by_metric.items()
        for one in sorted(members, key=lambda one: _badness(one, is_low_bad=figures.STRIPS[metric].is_low_bad))[:LINES]
    }
    return [one for one in series if one.id in kept]


def _strips(series: list[SeriesView]) -> list[SeriesView]:
    return [one for one in series if one.metric in figures.STRIPS]


def _badness(series: SeriesView, *, is_low_bad: bool) -> float:
    """Sorts the worst first; what is not finite before all, what has no value after all."""
    value = words.real(series.last_value)
    if value is None:
        return math.inf
    return -math.inf if not math.isfinite(value) else value if is_low_bad else -value
