"""The alerts page: open ones first, then history, each with what to try."""

import re
import time
from typing import Any

import dash
from dash import ALL, Input, Output, dcc, html

from internist.schema.views import AlertsPage
from internist_dashboard import alert_items, components, words
from internist_dashboard.api import Api
from internist_dashboard.components import Node
from internist_dashboard.filters import compiled

REFRESH_MS = 5_000
LIMIT = 200


def layout(page: AlertsPage) -> Node:
    """The page, with its alerts already in it."""
    return html.Div(
        [
            components.header([("Alerts", None)], filter_hint="filter by regex"),
            dcc.Interval(id="alerts-clock", interval=REFRESH_MS),
            dcc.Store(id="alerts-tick"),
            html.Main(html.Div(listing(page, pattern=None), id="alerts-list"), className="page narrow-page"),
        ]
    )


def register(app: dash.Dash, api: Api) -> None:
    """The page's callbacks."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("alerts-list", "children"),
        Input("alerts-tick", "data"),
        Input("filter", "data"),
        prevent_initial_call=True,
    )
    async def draw(_: object, text: str | None) -> Node:
        return listing(await api.alerts(limit=LIMIT), pattern=compiled(text))

    @app.callback(  # type: ignore[untyped-decorator]
        Output("alerts-tick", "data", allow_duplicate=True),
        Input({"acknowledge": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    async def acknowledge(clicks: list[int | None]) -> Any:
        pressed = dash.ctx.triggered_id
        if not pressed or not any(clicks):
            return dash.no_update
        await api.acknowledge(pressed["acknowledge"], by="board")
        return {"acknowledged": pressed["acknowledge"]}


def listing(page: AlertsPage, *, pattern: re.Pattern[str] | None) -> Node:
    """Open alerts, then those that are over."""
    now_ms = int(time.time() * 1000)
    shown = [
        alert
        for alert in page.alerts
        if pattern is None
        or pattern.search(
            f"{alert.project}/{alert.run_name} {alert.condition} {alert.subject} {alert.severity} {alert.state}"
        )
    ]
    current = [alert for alert in shown if alert.state in ("pending", "firing")]
    over = [alert for alert in shown if alert.state not in ("pending", "firing")]
    if not shown:
        calm = (
            "No alert matches the filter."
            if page.alerts
            else "No alert so far. Nothing has left its band for long enough."
        )
        return html.Section(
            [html.H1("All quiet" if not page.alerts else "No match"), html.P(calm)], className="empty panel"
        )
    parts: list[Node] = [html.H1(f"{words.plural(len(current), 'open alert').capitalize()}")]
    parts += [alert_items.item(a, now_ms, with_run=True, can_acknowledge=True) for a in current]
    if over:
        parts.append(html.H2("History"))
        parts += [alert_items.item(a, now_ms, with_run=True, can_acknowledge=False) for a in over]
    if page.total > len(page.alerts):
        parts.append(html.P(f"{page.total - len(page.alerts)} older alerts are not shown.", className="quiet"))
    return html.Div(parts, className="alerts")
