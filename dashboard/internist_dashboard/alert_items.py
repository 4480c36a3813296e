"""Alerts on screen: an event with all that is known of it, and as a line of the run page."""

import re
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from dash import dcc, html

from internist.schema.alerts import Alert, Delivery, Silence
from internist.schema.conditions import State
from internist_dashboard import components, words
from internist_dashboard.alert_groups import Group
from internist_dashboard.components import Node
from internist_dashboard.links import link

FRESH_MS = 15_000
"""An alert younger than this blinks once."""
_SINCE = re.compile(r", since step \d+$")
SHOWN_MEMBERS = 40
"""Alerts of an event that are listed, the first ones; the run's page has them all."""


def event(group: Group, now_ms: int, *, with_run: bool, can_handle: bool) -> Node:
    """One event: what, where it began, since when, what to try; its members folded."""
    first = group.first
    state = _state(group)
    return html.Article(
        [
            html.Div(
                [
                    components.mark(state, title=f"{group.severity}, {first.state}"),
                    html.H2(_title(group), className="alert-title"),
                    html.Span(components.age(group.at_ms, now_ms), className="quiet"),
                    _run_link(first) if with_run else None,
                    _handling(group) if can_handle else None,
                ],
                className="alert-head",
            ),
            html.P(
                [
                    html.Span(_message(first), className="alert-message"),
                    html.Span(f" {_ends(group)}", className="quiet") if not group.is_open else None,
                ]
            ),
            html.P([html.Span("Try: ", className="quiet"), first.advice]) if first.advice and group.is_open else None,
            _members(group) if len(group.alerts) > 1 else None,
        ],
        className=f"alert-item panel {'open' if group.is_open else 'closed'} is-{words.STATE_CLASSES[state]}",
        **{"data-alert": str(first.id)},
    )


def silence(one: Silence, now_ms: int) -> Node:
    """A silence in force: of what, by whom, why, until when; and the way to end it."""
    of = words.listing(f"{name} {glob}" for name, glob in one.matchers.items())
    until = html.Span(f"ends in {words.span(one.expires_at_ms - now_ms)}", className="num quiet")
    end = html.Button("end", className="small-button", type="button", **{"data-unsilence": str(one.id)})
    return html.Li(
        [
            html.Span([html.Strong("Silenced "), of], className="grow"),
            html.Span(f"{one.author}: {one.reason}", className="quiet"),
            until,
            end,
        ]
    )


def undelivered(found: Sequence[Delivery], now_ms: int) -> list[Node]:
    """A line for each receiver that does not take its messages: how many, since when, why the last try failed."""
    by_receiver: dict[str, list[Delivery]] = {}
    for one in found:
        by_receiver.setdefault(one.receiver, []).append(one)
    lines = [_undelivered(name, ones, now_ms) for name, ones in by_receiver.items()]
    return [html.Ul(lines, className="silences panel")] if lines else []


def _undelivered(name: str, ones: Sequence[Delivery], now_ms: int) -> Node:
    lost = sum(one.state == "given up" for one in ones)
    told = f"{words.plural(len(ones), 'message')} not delivered" + (f", {lost} given up" if lost else "")
    since = f"since {words.age(now_ms - min(one.queued_at_ms for one in ones))}"
    return html.Li(
        [
            html.Span([html.Strong(f"{name} "), told], className="grow"),
            html.Span(ones[0].error or "", className="quiet"),
            html.Span(since, className="num quiet"),
        ]
    )


def line(group: Group, now_ms: int) -> Node:
    """One event in a line of the run page; a click draws the series in which it began."""
    first = group.first
    since = words.listing([first.state, _where_and_when(group), _seen(group)])
    opens = {} if first.series is None else {"data-series": str(first.series)}
    return html.Button(
        [
            components.mark(_state(group), title=f"{group.severity}, {first.state}"),
            html.Span(
                [html.Strong(_condition(first)), " ", _extent(group), html.Span(since, className="since")],
                className="grow",
            ),
            components.age(group.at_ms, now_ms),
        ],
        className=f"plain alert-line{' fresh' if _is_fresh(first, now_ms) else ''}",
        title=words.crossed(first.message),
        **opens,
    )


def _title(group: Group) -> Node:
    """`Numeric · 24 blocks · first layers.23.mlp.down at 2 800`, a link to where it began."""
    first = group.first
    series = f"?{urlencode({'series': first.series})}" if first.series is not None else ""
    where = html.Span(
        words.listing([_extent(group), _where_and_when(group)]),
        className="subject",
    )
    return dcc.Link(
        [html.Strong(_condition(first).capitalize()), where], href=link(f"/runs/{quote(first.run)}{series}")
    )


def _message(alert: Alert) -> str:
    """What is the matter, without the subject and the step, which stand above it."""
    said = words.crossed(alert.message)
    head, _, rest = said.partition(": ")
    said = rest if rest and alert.subject and head.startswith(alert.subject) else said
    return _SINCE.sub("", said)


def _extent(group: Group) -> str:
    """Where an event is: the one subject, or how many blocks and series it has reached."""
    if len(group.alerts) == 1:
        return words.subject(group.first.subject, group.first.index) if group.first.series is not None else ""
    blocks = group.blocks
    return words.listing(
        [blocks[0] if len(blocks) == 1 else words.plural(len(blocks), "block"), f"{len(group.alerts)} series"]
    )


def _where_and_when(group: Group) -> str:
    """Where an event began, if it has several members, and at which step."""
    first = group.first
    step = first.pending_step if first.pending_step is not None else first.opened_step
    when = "" if step is None else f"step {words.step(step)}"
    if len(group.alerts) == 1:
        return f"since {when}" if when and group.is_open else when
    where = words.subject(first.subject, first.index)
    return f"first {where} at {when}" if when else f"first {where}"


def _ends(group: Group) -> str:
    return "" if group.closed_step is None else f"It was over at step {words.step(group.closed_step)}."


def _run_link(alert: Alert) -> Node:
    said = words.listing([alert.project, alert.run_name])
    return dcc.Link(said, href=link(f"/runs/{quote(alert.run)}"), className="crumb alert-run")


def _handling(group: Group) -> Node:
    """Who has seen it, and buttons: to say so, to be told of it no more for a while, to take it back."""
    if not group.is_open:
        return None
    silence = {"data-silence": group.first.run, "data-condition": group.first.condition}
    quiet = html.Button("Silence", className="small-button", type="button", **silence)
    if group.unseen:
        ids = ",".join(map(str, group.unseen))
        seen: Node = html.Button("Acknowledge", className="small-button", type="button", **{"data-acknowledge": ids})
    else:
        ids = ",".join(str(alert.id) for alert in group.alerts)
        undo = html.Button("undo", className="plain link", type="button", **{"data-withdraw": ids})
        seen = html.Span([_seen(group), " ", undo], className="quiet alert-seen")
    return html.Span([seen, quiet], className="alert-handling")


def _seen(group: Group) -> str:
    names = list(dict.fromkeys(alert.acknowledged_by for alert in group.alerts if alert.acknowledged_by))
    return f"acknowledged by {', '.join(names)}" if names and not group.unseen else ""


def _members(group: Group) -> Node:
    rows = [
        html.Tr(
            [
                html.Th(_series_link(alert), scope="row"),
                html.Td(alert.metric),
                html.Td(words.number(alert.value), className="num right"),
                html.Td(words.step(alert.opened_step), className="num right"),
                html.Td(alert.state),
            ]
        )
        for alert in group.alerts[:SHOWN_MEMBERS]
    ]
    more = len(group.alerts) - len(rows)
    heads = [("where", ""), ("metric", ""), ("value", "right"), ("opened at", "right"), ("state", "")]
    return html.Details(
        [
            html.Summary(f"{len(group.alerts)} series, in the order in which it reached them"),
            html.Div(
                html.Table(
                    [
                        html.Thead(html.Tr([html.Th(head, scope="col", className=kind) for head, kind in heads])),
                        html.Tbody(rows),
                    ],
                    className="routing members-table",
                ),
                className="routing-scroll",
                tabIndex=0,
                role="region",
                **{"aria-label": "series of this event"},
            ),
            html.P(f"and {more} more", className="quiet") if more > 0 else None,
        ]
    )


def _series_link(alert: Alert) -> Node:
    name = words.subject(alert.subject, alert.index)
    if alert.series is None:
        return name
    return dcc.Link(
        name, href=link(f"/runs/{quote(alert.run)}?{urlencode({'series': alert.series})}"), className="link"
    )


def _condition(alert: Alert) -> str:
    return alert.condition.replace("_", " ")


def _state(group: Group) -> State:
    if not group.is_open:
        return "not measured"
    return "violated" if group.is_critical else "drifting"


def _is_fresh(alert: Alert, now_ms: int) -> bool:
    return alert.state == "firing" and alert.opened_at_ms is not None and now_ms - alert.opened_at_ms < FRESH_MS
