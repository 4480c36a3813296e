"""Several runs side by side: one metric of each over a common axis, where they differ, and how they were started."""

import asyncio
from collections.abc import Sequence
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, html, no_update

from internist.schema.views import Run
from internist.schema.windows import Heatmap, Points
from internist_dashboard import compare_items, components
from internist_dashboard.api import Api
from internist_dashboard.axis import AXES, TOKENS
from internist_dashboard.compare_figures import overlay
from internist_dashboard.components import Node
from internist_dashboard.difference import difference, heat
from internist_dashboard.graph import graph
from internist_dashboard.rows import MOST_ROWS
from internist_dashboard.theme import Scheme

MOST_RUNS = 20
PIXELS = 500
COLUMNS = 240
METRICS = ("loss", "learning_rate", "gradient.global_norm")
"""Metrics that are of a whole run, so that runs of different models can be laid over each other."""


def layout(runs: Sequence[Run]) -> Node:
    """The page's frame, with what the runs were started with."""
    return html.Div(
        [
            components.header([("Runs", "/"), ("Compare", None)]),
            html.Main(
                [
                    html.H1(f"{len(runs)} runs compared", className="page-title"),
                    components.panel(
                        "Overlay",
                        html.Div([_metric(), _axis()], className="compare-tools"),
                        graph("compare-graph"),
                        class_name="area-compare",
                    ),
                    *([_difference(runs)] if len(runs) > 1 else []),
                    components.panel("How they stand", compare_items.standing(runs)),
                    components.panel("How they differ", compare_items.differences(runs)),
                ],
                className="page compare-page",
                id="main",
            ),
        ]
    )


def register(app: dash.Dash, api: Api) -> None:
    """The page's callback."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("compare-graph", "figure"),
        Input("compare-metric", "value"),
        Input("compare-axis", "value"),
        Input("scheme", "data"),
        Input("narrow", "data"),
        State("page", "data"),
    )
    async def draw(metric: str, axis: str, scheme: Scheme | None, narrow: bool, page: dict[str, Any]) -> Any:
        if page.get("kind") != "compare":
            return no_update
        runs = await asyncio.gather(*(api.run(name) for name in page["runs"]))
        lines = await asyncio.gather(*(_line(api, run, metric) for run in runs))
        tokens = await asyncio.gather(*(_line(api, run, TOKENS) for run in runs)) if axis == "tokens" else lines
        known = [(run, line, of) for run, line, of in zip(runs, lines, tokens, strict=True) if line and of]
        return await asyncio.to_thread(
            overlay, known, metric=metric, axis=axis, scheme=scheme or "light", is_narrow=bool(narrow)
        )

    @app.callback(  # type: ignore[untyped-decorator]
        Output("difference-graph", "figure"),
        Output("difference-metric", "data"),
        Output("difference-metric", "value"),
        Input("difference-metric", "value"),
        Input("difference-first", "value"),
        Input("difference-second", "value"),
        Input("scheme", "data"),
        Input("narrow", "data"),
        State("page", "data"),
    )
    async def draw_difference(
        metric: str | None, first: str, second: str, scheme: Scheme | None, narrow: bool, page: dict[str, Any]
    ) -> Any:
        if page.get("kind") != "compare":
            return no_update, no_update, no_update
        runs = await asyncio.gather(api.run(first), api.run(second))
        one = await _heatmap(api, runs[0], metric or None)
        other = await _heatmap(api, runs[1], one.metric)
        found = await asyncio.to_thread(difference, one, other)
        figure = heat(
            found, metric=one.metric, names=(runs[0].name, runs[1].name), scheme=scheme or "light",
            is_narrow=bool(narrow),
        )  # fmt: skip
        return figure, list(one.metrics), one.metric


async def _heatmap(api: Api, run: Run, metric: str | None) -> Heatmap:
    return await api.heatmap(
        run.id, metric=metric, first=0, last=run.last_step or 0, pixels=COLUMNS, rows=MOST_ROWS
    )  # fmt: skip


async def _line(api: Api, run: Run, metric: str) -> Points | None:
    found = await api.series(run.id, metric=metric, limit=1)
    if not found:
        return None
    windows = (await api.points(run.id, [found[0].id], first=0, last=run.last_step or 0, pixels=PIXELS)).windows
    return windows[0] if windows else None


def _difference(runs: Sequence[Run]) -> Node:
    """Layers x steps of one run over another: the first two, until others are picked."""
    names = [{"value": run.id, "label": run.name} for run in runs]
    picks = [
        dmc.Select(
            id=f"difference-{place}", data=names, value=runs[number].id, size="xs", w=210, allowDeselect=False,
            **{"aria-label": f"the {place} run"},
        )
        for number, place in enumerate(("first", "second"))
    ]  # fmt: skip
    metric = dmc.Select(
        id="difference-metric", data=[], size="xs", w=210, allowDeselect=False, **{"aria-label": "metric that differs"}
    )
    scale = [html.Span("¼×"), html.Span(className="ramp"), html.Span("4× the other")]
    legend = [html.Span(scale, className="legend-entry"), html.Span("blank: not both measured")]
    return components.panel(
        "Difference, layers × steps",
        html.Div([picks[0], html.Span("over", className="quiet"), picks[1], metric], className="compare-tools"),
        html.Div(legend, className="legend"),
        graph("difference-graph"),
        class_name="area-difference",
    )


def _metric() -> Node:
    return dmc.Select(
        id="compare-metric", data=list(METRICS), value=METRICS[0], size="xs", w=230, allowDeselect=False,
        **{"aria-label": "metric"},
    )  # fmt: skip


def _axis() -> Node:
    choices = [{"value": name, "label": said} for name, said in AXES.items()]
    return dmc.SegmentedControl(id="compare-axis", data=choices, value="step", size="xs")
