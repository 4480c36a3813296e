"""The alerts page: what goes on first, then what is over, an event a line, each with what to try."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dash
from dash import Input, Output, State, dcc, html, no_update

from internist.schema.alerts import Alert, AlertsPage, Delivery, Silence
from internist_dashboard import alert_items, components, words
from internist_dashboard.alert_groups import Group, grouped
from internist_dashboard.api import Api
from internist_dashboard.components import Node
from internist_dashboard.filters import Filter, compiled

REFRESH_MS = 5_000
LIMIT = 1_000
"""Alerts that are read, open ones first, then the newest."""
SHOWN = 100
"""Events that are drawn of each kind; the filter finds the others."""
LEAST_OFTEN = 6
"""Every so many refreshes the page is read whole, for what its summary does not tell."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the page shows: alerts of one run, or of all, that match a pattern."""

    run: str | None = None
    pattern: Filter | None = None


def layout(
    page: AlertsPage,
    silences: Sequence[Silence],
    undelivered: Sequence[Delivery] = (),
    *,
    run: str | None = None,
) -> Node:
    """The page, with its alerts already in it."""
    crumbs: list[tuple[str, str | None]] = [("Alerts", None if run is None else "/alerts")]
    if run is not None:
        crumbs.append((page.alerts[0].run_name if page.alerts else run, None))
    return html.Div(
        [
            components.header(crumbs, filter_hint="filter by regex"),
            dcc.Interval(id="alerts-clock", interval=REFRESH_MS),
            dcc.Store(id="alerts-tick"),
            dcc.Store(id="alerts-headline"),
            dcc.Store(id="alerts-seen", data=fingerprint(page)),
            html.Main(
                html.Div(listing(page, Asked(run), silences, undelivered), id="alerts-list"),
                className="page narrow-page",
                id="main",
            ),
        ]
    )


def register(app: dash.Dash, api: Api) -> None:
    """The page's callbacks."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("alerts-list", "children"),
        Output("alerts-seen", "data"),
        Output("alerts-headline", "data"),
        Input("alerts-tick", "data"),
        Input("filter", "data"),
        State("alerts-seen", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    async def draw(tick: object, text: str | None, seen: object, page: dict[str, Any]) -> Any:
        run = page.get("of")
        if dash.ctx.triggered_id == "alerts-tick" and isinstance(tick, int) and tick % LEAST_OFTEN:
            brief = await api.alerts(run=run, limit=1)
            if fingerprint(brief) == seen:
                return no_update, no_update, no_update
        found, silences, undelivered = await asyncio.gather(
            api.alerts(run=run, limit=LIMIT), api.silences(), api.undelivered()
        )
        shown = await asyncio.to_thread(listing, found, Asked(run, compiled(text)), silences, undelivered)
        return shown, fingerprint(found), headline(found)


def fingerprint(page: AlertsPage) -> list[object]:
    """Differs whenever an alert opens or closes: enough to know that what is drawn is still so."""
    first = page.alerts[0] if page.alerts else None
    state = None if first is None else [first.id, first.state, first.acknowledged_by]
    return [page.total, page.open, state]


def headline(page: AlertsPage) -> dict[str, Any]:
    """What the tab's title says."""
    return {"name": "alerts", "verdict": "violated" if page.open else None, "alerts": page.open, "life": "live"}


def listing(
    page: AlertsPage, asked: Asked, silences: Sequence[Silence] = (), undelivered: Sequence[Delivery] = ()
) -> Node:
    """Events that go on, then those that are over."""
    now_ms = int(time.time() * 1000)
    groups = grouped([alert for alert in page.alerts if asked.pattern is None or asked.pattern.search(_text(alert))])
    if not groups:
        return _nothing(page, asked)
    current, over = [one for one in groups if one.is_open], [one for one in groups if not one.is_open]
    parts: list[Node] = [html.H1(f"{words.plural(len(current), 'open alert').capitalize()}")]
    if silences:
        parts.append(html.Ul([alert_items.silence(one, now_ms) for one in silences], className="silences panel"))
    parts += alert_items.undelivered(undelivered, now_ms)
    parts += _events(current, now_ms, asked)
    if over:
        parts += [html.H2("History", className="alerts-heading"), *_events(over, now_ms, asked)]
    if page.total > len(page.alerts):
        parts.append(html.P(f"{page.total - len(page.alerts)} older alerts are not shown.", className="quiet"))
    return html.Div(parts, className="alerts")


def _events(groups: list[Group], now_ms: int, asked: Asked) -> list[Node]:
    shown: list[Node] = [
        alert_items.event(one, now_ms, with_run=asked.run is None, can_handle=True) for one in groups[:SHOWN]
    ]
    if len(groups) > SHOWN:
        shown.append(html.P(f"and {len(groups) - SHOWN} more: the filter finds them", className="quiet"))
    return shown


def _nothing(page: AlertsPage, asked: Asked) -> Node:
    if page.alerts:
        return html.Section([html.H1("No match"), html.P("No alert matches the filter.")], className="empty panel")
    whose = "of this run " if asked.run is not None else ""
    calm = f"No alert {whose}so far. Nothing has left its band for long enough."
    return html.Section([html.H1("All quiet"), html.P(calm)], className="empty panel")


def _text(alert: Alert) -> str:
    """What the filter searches of an alert."""
    return f"{alert.project}/{alert.run_name} {alert.condition} {alert.subject} {alert.severity} {alert.state}"
