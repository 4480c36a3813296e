"""The first page: every run, one line each; worst and newest meet the eye first."""

import re
from typing import Any

import dash
from dash import Input, Output, dcc, html

from internist.schema.views import Run
from internist_dashboard import components, words
from internist_dashboard.api import Api
from internist_dashboard.components import Node
from internist_dashboard.filters import compiled
from internist_dashboard.viewer import VIEWER

REFRESH_MS = 5_000


def layout(runs: list[Run]) -> Node:
    """The page, with its rows already in it."""
    return html.Div(
        [
            components.header([], filter_hint="filter by regex"),
            dcc.Interval(id="runs-clock", interval=REFRESH_MS),
            dcc.Store(id="runs-tick"),
            html.Main(
                html.Div(table(runs, pattern=None, origin=VIEWER.get().origin), id="runs-table"), className="page"
            ),
        ]
    )


def register(app: dash.Dash, api: Api) -> None:
    """The page's callbacks."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("runs-table", "children"), Input("runs-tick", "data"), Input("filter", "data"), prevent_initial_call=True
    )
    async def draw(_: object, text: str | None) -> Node:
        return table(await api.runs(), pattern=compiled(text), origin=VIEWER.get().origin)


def table(runs: list[Run], *, pattern: re.Pattern[str] | None, origin: str) -> Node:
    """The table of runs; without any, the lines to copy."""
    if not runs:
        return components.empty_state(origin)
    shown = [
        run
        for run in runs
        if pattern is None or pattern.search(f"{run.project}/{run.name} {run.id} {run.state} {run.verdict}")
    ]
    if not shown:
        return html.P("No run matches the filter.", className="quiet pad")
    head = html.Tr([html.Th(name, scope="col", className=kind) for name, kind in _COLUMNS])
    return html.Table([html.Thead(head), html.Tbody([_row(run) for run in shown])], className="runs panel")


_COLUMNS = (
    ("Run", ""),
    ("State", ""),
    ("Verdict", ""),
    ("Step", "right"),
    ("it/s", "right"),
    ("Loss", "right"),
    ("Alerts", "right"),
    ("Last frame", "right"),
)


def _row(run: Run) -> Node:
    href = f"/runs/{run.id}"
    named = [dcc.Link(run.name, href=href, className="run-name"), html.Span(run.project, className="quiet run-project")]
    alerts: Node = (
        html.Span(str(run.open_alerts), className="open-alerts")
        if run.open_alerts
        else html.Span("0", className="quiet")
    )
    cells: list[tuple[Node, str]] = [
        (named, "cell-name"),
        (components.live_dot(run.state), "cell-state"),
        (
            html.Span(
                [
                    components.mark(run.verdict),
                    html.Span(words.crossed(run.sentence) or run.verdict, className="verdict-text"),
                ],
                className="cell-sentence",
            ),
            "cell-verdict",
        ),
        (words.step(run.last_step), "num right"),
        (words.number(run.steps_per_second), "num right cell-minor"),
        (words.number(run.loss), "num right"),
        (alerts, "num right cell-minor"),
        (components.age(run.last_frame_at_ms, run.server_time_ms), "right cell-minor"),
    ]
    extra: dict[str, Any] = {"data-href": href}
    return html.Tr([html.Td(content, className=kind) for content, kind in cells], **extra)
