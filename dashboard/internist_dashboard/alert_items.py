"""Alerts on screen: as an item with all that is known, and as a line of the run page."""

from urllib.parse import urlencode

import dash_mantine_components as dmc
from dash import dcc, html

from internist.schema.conditions import State
from internist.schema.views import Alert
from internist_dashboard import components, words
from internist_dashboard.components import Node

FRESH_MS = 15_000
"""An alert younger than this blinks once."""


def item(alert: Alert, now_ms: int, *, with_run: bool, can_acknowledge: bool) -> Node:
    """One alert: what, where, how far, since when, what to try."""
    is_open = alert.state in ("pending", "firing")
    loud = alert.severity == "critical" and is_open
    state: State = "violated" if loud else "drifting" if is_open and alert.severity == "warning" else "not measured"
    title = alert.condition.replace("_", " ").capitalize()
    href = f"/runs/{alert.run}" + (f"?{urlencode({'series': alert.series})}" if alert.series is not None else "")
    steps = f"step {words.step(alert.opened_step)}" if alert.opened_step is not None else "pending"
    if not is_open and alert.closed_step is not None:
        steps += f" → {words.step(alert.closed_step)}"
    figures = words.listing(
        [
            "" if alert.value is None else f"{alert.metric} {words.number(alert.value)}",
            ""
            if alert.ratio is None or words.is_nonfinite(alert.ratio)
            else f"{words.times(alert.worst_ratio if not is_open else alert.ratio)} {words.measure(alert.basis)}"
            + (" at worst" if not is_open else ""),
            _band(alert),
        ]
    )
    acknowledged: Node = None
    if alert.acknowledged_by:
        acknowledged = html.Span(f"acknowledged by {alert.acknowledged_by}", className="quiet")
    elif is_open and can_acknowledge:
        acknowledged = dmc.Button("Acknowledge", id={"acknowledge": alert.id}, size="compact-xs", variant="default")
    return html.Article(
        [
            html.Div(
                [
                    components.mark(state, title=f"{alert.severity}, {alert.state}"),
                    html.Div(
                        [
                            html.Div(
                                [
                                    dcc.Link(
                                        [
                                            html.Strong(title),
                                            html.Span(words.subject(alert.subject, alert.index), className="subject"),
                                        ],
                                        href=href,
                                    )
                                ],
                                className="alert-title",
                            ),
                            html.Div(
                                [
                                    html.Span(f"{alert.severity} · {alert.state}", className="alert-tag"),
                                    html.Span(steps, className="num"),
                                    components.age(alert.closed_at_ms if not is_open else alert.opened_at_ms, now_ms),
                                ],
                                className="alert-meta",
                            ),
                        ],
                        className="grow",
                    ),
                    html.Div(
                        [
                            dcc.Link(
                                words.listing([alert.project, alert.run_name]),
                                href=f"/runs/{alert.run}",
                                className="crumb",
                            )
                            if with_run
                            else None,
                            acknowledged,
                        ],
                        className="alert-side",
                    ),
                ],
                className="alert-head",
            ),
            html.P(words.crossed(alert.message), className="alert-message"),
            html.P(figures, className="num quiet") if figures else None,
            html.P([html.Span("Try: ", className="quiet"), alert.advice]) if alert.advice and is_open else None,
        ],
        className=f"alert-item panel {'open' if is_open else 'closed'} is-{words.STATE_CLASSES[state]}",
        id={"alert": alert.id},
    )


def line(alert: Alert, now_ms: int) -> Node:
    """One alert in a line of the run page; a click draws its series."""
    is_open = alert.state in ("pending", "firing")
    state: State = "not measured" if not is_open else "violated" if alert.severity == "critical" else "drifting"
    since = words.listing([alert.state, "" if alert.opened_step is None else f"step {words.step(alert.opened_step)}"])
    opens = {} if alert.series is None else {"data-series": str(alert.series)}
    what = html.Span(
        [
            html.Strong(alert.condition.replace("_", " ")),
            " ",
            words.subject(alert.subject, alert.index),
            html.Span(since, className="since"),
        ],
        className="grow",
    )
    return html.Button(
        [
            components.mark(state, title=f"{alert.severity}, {alert.state}"),
            what,
            components.age(alert.opened_at_ms, now_ms),
        ],
        className=f"plain alert-line{' fresh' if _is_fresh(alert, now_ms) else ''}",
        title=words.crossed(alert.message),
        **opens,
    )


def _is_fresh(alert: Alert, now_ms: int) -> bool:
    return alert.state == "firing" and alert.opened_at_ms is not None and now_ms - alert.opened_at_ms < FRESH_MS


def _band(alert: Alert) -> str:
    low, high = alert.band_low, alert.band_high
    if low is None and high is None:
        return ""
    edges = (
        f"≤ {words.number(high)}"
        if low is None
        else f"≥ {words.number(low)}"
        if high is None
        else f"{words.number(low)} … {words.number(high)}"
    )
    return f"band {edges}" + (f" ({words.basis(alert.basis)})" if alert.basis else "")
