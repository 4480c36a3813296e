"""Several runs side by side: one metric of each over steps or hours, and how what they were started with differs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, dcc, html, no_update

from internist.schema.views import Points, Run
from internist_dashboard import compare_items, components, figures
from internist_dashboard.api import Api
from internist_dashboard.compare_figures import AXES, overlay
from internist_dashboard.components import Node
from internist_dashboard.theme import Scheme

MOST_RUNS = 20
PIXELS = 500
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
                        dcc.Graph(id="compare-graph", config=figures.GRAPH_CONFIG, className="graph"),
                        class_name="area-compare",
                    ),
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
        known = [(run, line) for run, line in zip(runs, lines, strict=True) if line is not None]
        return await asyncio.to_thread(
            overlay, known, metric=metric, axis=axis, scheme=scheme or "light", is_narrow=bool(narrow)
        )


async def _line(api: Api, run: Run, metric: str) -> Points | None:
    found = await api.series(run.id, metric=metric, limit=1)
    if not found:
        return None
    windows = (await api.points(run.id, [found[0].id], first=0, last=run.last_step or 0, pixels=PIXELS)).windows
    return windows[0] if windows else None


def _metric() -> Node:
    return dmc.Select(
        id="compare-metric", data=list(METRICS), value=METRICS[0], size="xs", w=230, allowDeselect=False,
        **{"aria-label": "metric"},
    )  # fmt: skip


def _axis() -> Node:
    choices = [{"value": name, "label": said} for name, said in AXES.items()]
    return dmc.SegmentedControl(id="compare-axis", data=choices, value="step", size="xs")
