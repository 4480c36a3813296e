"""The pieces of the pages: pure functions of the API's answers."""

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from internist.schema.conditions import State
from internist.schema.views import Run, RunState
from internist_dashboard import words
from internist_dashboard.links import link
from internist_dashboard.viewer import VIEWER

SKEW_SHOWN_MS = 60_000
"""A clock that is less off than this is not spoken of."""
Node = Any
"""A Dash component, or text: the library has no types."""


def header(crumbs: Sequence[tuple[str, str | None]], *, middle: Node = None, filter_hint: str | None = None) -> Node:
    """The page's head: where we are, how the run lives, a filter, scaling, the alerts and the theme."""
    trail: list[Node] = [dcc.Link("Internist", href=link("/"), className="brand")]
    for name, href in crumbs:
        trail.append(html.Span("›", className="crumb-gap"))
        trail.append(
            dcc.Link(name, href=link(href), className="crumb") if href else html.Span(name, className="crumb here")
        )
    box = dmc.TextInput(
        id="filter-box",
        placeholder=filter_hint or "",
        debounce=300,
        size="xs",
        className="filter",
        rightSection=dmc.Kbd("/", size="xs", className="slash"),
        style=None if filter_hint else {"display": "none"},
        **{"aria-label": filter_hint or "filter"},
    )
    theme_button = dmc.ActionIcon(
        html.Span(className="icon icon-theme"),
        id="theme-button",
        variant="subtle",
        color="gray",
        size="md",
        **{"aria-label": "Switch between light and dark"},
    )
    return html.Header(
        [
            html.A("Skip to the content", href="#main", className="skip"),
            html.Nav(trail, className="crumbs", **{"aria-label": "Breadcrumb"}),
            html.Span([html.Span(className="pulse"), "offline"], className="badge badge-lost"),
            html.Div(middle, className="head-middle"),
            html.Div(
                [
                    box,
                    dcc.Link("Scaling", href=link("/scaling"), className="crumb"),
                    dcc.Link("Alerts", href=link("/alerts"), className="crumb"),
                    theme_button,
                    *([sign_out()] if VIEWER.get().is_signed_in else []),
                ],
                className="head-tools",
            ),
        ],
        className="head",
    )


def sign_out() -> Node:
    """Ends the browser's session; a form, so that it needs no script and no link can press it."""
    return html.Form(
        html.Button("Sign out", type="submit", className="plain crumb"),
        action=link("/logout"),
        method="post",
        id="sign-out",
    )


def age(at_ms: int | None, now_ms: int, *, prefix: str = "") -> Node:
    """An age that the browser keeps ticking; the text is right when it leaves the server."""
    text = prefix + words.age(None if at_ms is None else now_ms - at_ms)
    extra = {} if at_ms is None else {"data-at": str(at_ms), "data-now": str(now_ms), "data-prefix": prefix}
    return html.Span(text, className="age", **extra)


def mark(state: State, *, title: str = "") -> Node:
    """The verdict's shape in its colour."""
    return html.Span(
        words.SHAPES[state],
        className=f"mark is-{words.STATE_CLASSES[state]}",
        title=title or state,
        role="img",
        **{"aria-label": title or state},
    )


def life_mark(state: RunState) -> Node:
    """Stands before what is said of a run that does not live as it should: no verdict, whatever the last one was."""
    return html.Span("▲", className="mark is-drifting", title=state, role="img", **{"aria-label": state})


def live_dot(state: RunState) -> Node:
    """How a run lives, in a table."""
    return html.Span([html.Span(className=f"pulse life-{state}"), html.Span(state)], className=f"badge life-{state}")


def run_badge(run: Run) -> Node:
    """How a run lives, and how old its last frame is."""
    now_ms = run.server_time_ms
    alive = (
        "no heartbeat yet" if run.heartbeat_at_ms is None else f"heartbeat {words.age(now_ms - run.heartbeat_at_ms)}"
    )
    parts: list[Node] = [html.Span(className=f"pulse life-{run.state}"), html.Span(run.state, className="life")]
    if run.last_frame_at_ms is not None:
        parts += [html.Span("·", className="crumb-gap"), age(run.last_frame_at_ms, now_ms)]
    title = words.listing([run.state_reason, alive, _skew(run)])
    return html.Span(parts, className=f"badge life-{run.state}", title=title, id="live-badge")


def _skew(run: Run) -> str:
    """That the clock of a run's machine is off, where anybody would notice."""
    skew_ms = run.attempts[-1].clock_skew_ms if run.attempts else None
    if skew_ms is None or abs(skew_ms) < SKEW_SHOWN_MS:
        return ""
    off = words.span(abs(skew_ms))
    return f"its clock is {off} {'fast' if skew_ms > 0 else 'slow'}, times are the server's"


def empty_state(origin: str, *, asks_token: bool) -> Node:
    """No run yet: the lines to copy, with this server's address, and where its token goes if it asks for one."""
    lines = f'import internist\ninternist.watch(model, optimizer, server="{origin}")'
    token = [
        html.P("This server asks for its token: training finds it in its environment."),
        code("export INTERNIST_TOKEN=...", "token-line"),
    ]
    return html.Section(
        [
            html.H1("No run yet"),
            html.P(
                "Add two lines to a training script, after the model and its optimizer are made. "
                "The run appears here by itself."
            ),
            code(lines, "two-lines"),
            *(token if asks_token else []),
            html.P(
                [
                    "Nothing to train at hand? ",
                    html.Code("internist demo"),
                    " trains a small model and makes one mistake on purpose.",
                ],
                className="quiet",
            ),
        ],
        className="empty panel",
    )


def code(lines: str, name: str) -> Node:
    """Lines to copy; where they are longer than the screen is wide they scroll, by keyboard, too."""
    copy = dcc.Clipboard(target_id=name, className="copy", title="Copy")
    return html.Div([html.Pre(html.Code(lines), id=name, tabIndex=0), copy], className="code")


def problem(title: str, what: str, *, safe: str, do: Node) -> Node:
    """An error in three sentences: what happened, what is safe, what to do."""
    return html.Section(
        [html.H1(title), html.P(what), html.P(safe, className="quiet"), html.P(do)],
        className="empty panel",
        role="alert",
    )


def notice(what: str) -> Node:
    """A bar over a page that could not be brought up to date."""
    return html.Div(
        [
            html.Span(what),
            html.Span("What is drawn is the last answer; training goes on and nothing is lost.", className="quiet"),
        ],
        className="notice",
    )


def explained(what: Node, told: Node) -> Node:
    """Something with what it means beside it, for whoever points at it or comes to it by keyboard."""
    return html.Span([what, html.Span(told, className="tip", role="tooltip")], className="explained")


def panel(title: str, *body: Node, aside: Node = None, class_name: str = "") -> Node:
    """A titled part of a page."""
    return html.Section(
        [html.Div([html.H2(title), html.Div(aside, className="panel-aside")], className="panel-head"), *body],
        className=f"panel {class_name}",
    )


def heat_legend() -> Node:
    """What the heat map's colours say, in one line."""
    entries: tuple[list[Node], ...] = (
        [html.Span("¼×"), html.Span(className="ramp"), html.Span("4× its band")],
        [html.Span(className="swatch unjudged"), html.Span("measured, not judged")],
        [html.Span(className="swatch hatched"), html.Span("warming up or not measured")],
        [html.Span(className="swatch dotted"), html.Span("NaN")],
    )
    return html.Div([html.Span(entry, className="legend-entry") for entry in entries], className="legend")


def logit_legend() -> Node:
    """What MaxLogit's colours say."""
    scale = html.Span(
        [html.Span("1"), html.Span(className="ramp logit"), html.Span("1\u2009000")], className="legend-entry"
    )
    return html.Div([scale, html.Span("orange: over 100, where softmax starts to saturate")], className="legend")


def definition(pairs: Sequence[tuple[str, Node]]) -> Node:
    """Names and values, for the detail of a series."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", "—")]
    return html.Dl(
        [html.Div([html.Dt(name), html.Dd(value, className="num")]) for name, value in shown], className="definition"
    )
