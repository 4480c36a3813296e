"""The pieces of the pages: pure functions of the API's answers."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import dash_mantine_components as dmc
from dash import dcc, html

from internist.schema.conditions import CARDS, CONDITION, State
from internist.schema.views import Alert, BlockVerdict, Card, Run, RunState, Verdict
from internist_dashboard import sparkline, words

Node = Any
"""A Dash component, or text: the library has no types."""
BoardRow = dict[str, Any]
"""One block as the browser draws it."""
CARD_NAMES = {
    "forward": "Forward",
    "dependency": "Dependency",
    "update": "Update",
    "spectral": "Spectral",
    "attention": "Attention",
    "numeric": "Numeric",
}
FRESH_MS = 15_000
"""An alert younger than this blinks once."""


def header(crumbs: Sequence[tuple[str, str | None]], *, middle: Node = None, filter_hint: str | None = None) -> Node:
    """The page's head: where we are, how the run lives, a filter, the alerts and the theme."""
    trail: list[Node] = [dcc.Link("Internist", href="/", className="brand")]
    for name, href in crumbs:
        trail.append(html.Span("›", className="crumb-gap"))
        trail.append(dcc.Link(name, href=href, className="crumb") if href else html.Span(name, className="crumb here"))
    box = dmc.TextInput(
        id="filter-box", placeholder=filter_hint or "", debounce=300, size="xs", className="filter",
        rightSection=dmc.Kbd("/", size="xs", className="slash"), style=None if filter_hint else {"display": "none"},
        **{"aria-label": filter_hint or "filter"},
    )  # fmt: skip
    theme_button = dmc.ActionIcon(
        html.Span(className="icon icon-theme"), id="theme-button", variant="subtle", color="gray", size="md",
        **{"aria-label": "Switch between light and dark"},
    )  # fmt: skip
    return html.Header(
        [
            html.Nav(trail, className="crumbs", **{"aria-label": "Breadcrumb"}),
            html.Div(middle, className="head-middle"),
            html.Div([box, dcc.Link("Alerts", href="/alerts", className="crumb"), theme_button], className="head-tools"),
        ],
        className="head",
    )


def age(at_ms: int | None, now_ms: int, *, prefix: str = "") -> Node:
    """An age that the browser keeps ticking; the text is right when it leaves the server."""
    text = prefix + words.age(None if at_ms is None else now_ms - at_ms)
    extra = {} if at_ms is None else {"data-at": str(at_ms), "data-now": str(now_ms), "data-prefix": prefix}
    return html.Span(text, className="age", **extra)


def mark(state: State, *, title: str = "") -> Node:
    """The verdict's shape in its colour."""
    return html.Span(
        words.SHAPES[state], className=f"mark is-{words.STATE_CLASSES[state]}", title=title or state, role="img",
        **{"aria-label": title or state},
    )  # fmt: skip


def verdict_badge(state: State, *, text: str | None = None) -> Node:
    """Shape, colour and word together."""
    return html.Span([mark(state), html.Span(text or state)], className=f"verdict is-{words.STATE_CLASSES[state]}")


def live_dot(state: RunState) -> Node:
    """How a run lives, in a table."""
    return html.Span([html.Span(className=f"pulse life-{state}"), html.Span(state)], className=f"badge life-{state}")


def live_badge(state: RunState, *, last_frame_at_ms: int | None, heartbeat_at_ms: int | None, now_ms: int, reason: str = "") -> Node:
    """How the run lives, and how old its last frame is."""
    beat = "no heartbeat yet" if heartbeat_at_ms is None else f"heartbeat {words.age(now_ms - heartbeat_at_ms)}"
    title = words.listing([reason, beat])
    parts: list[Node] = [html.Span(className=f"pulse life-{state}"), html.Span(state, className="life")]
    if last_frame_at_ms is not None:
        parts += [html.Span("·", className="crumb-gap"), age(last_frame_at_ms, now_ms)]
    return html.Span(parts, className=f"badge life-{state}", title=title, id="live-badge")


def sentence(state: State, text: str) -> Node:
    """The worst thing, in words, and what to try: grey when all is well."""
    said, _, advice = words.crossed(text).partition(" Try: ")
    loud = html.Strong(state) if state in ("violated", "drifting") else None
    aside = [html.Span("Try: ", className="quiet"), advice.rstrip(".")] if advice else None
    return html.Div(
        [mark(state), html.P([loud, html.Span(said)], className="sentence-text"), html.Div(aside, className="sentence-aside")],
        className=f"sentence is-{words.STATE_CLASSES[state]}",
        role="status",
    )  # fmt: skip


def card(answer: Card) -> Node:
    """One of the six: verdict by shape and colour, its basis, its worst member, its trail."""
    count = {"violated": answer.violated, "drifting": answer.drifting}.get(answer.state, 0)
    verdict = words.verdict(answer.state, basis_name=answer.basis, count=count)
    worst = answer.worst
    if answer.state == "ok":
        counted = words.listing(_counts(answer, of=("ok", "not measured")))
        line: Node = html.Span(counted, className="quiet")
    elif worst is not None and worst.series is not None and answer.state != "not measured":
        line = member_button(worst)
    else:
        line = html.Span(worst.reason if worst and worst.reason else "nothing measured", className="quiet")
    drawn = any(value is not None for value in answer.sparkline)
    bars = sparkline.mask(answer.sparkline)
    return html.Section(
        [
            html.Div([mark(answer.state), html.H3(CARD_NAMES.get(answer.name, answer.title)), html.Span(verdict, className="card-verdict")], className="card-head"),
            html.Div(line, className="card-line"),
            html.Div(
                className="spark", role="img", style={"maskImage": bars, "WebkitMaskImage": bars} if drawn else {"visibility": "hidden"},
                **{"aria-label": f"distance of the worst member from its band, over the last {len(answer.sparkline)} points"},
            ),
        ],
        className=f"card panel is-{words.STATE_CLASSES[answer.state]}",
        title=answer.summary,
        id={"card": answer.name},
    )  # fmt: skip


def member_button(worst: Verdict) -> Node:
    """The worst member as a button that draws its series: `31× band · blocks.2`."""
    since = "" if worst.since_step is None else f"since step {words.step(worst.since_step)}"
    return html.Button(
        [html.Span(words.where(worst), className="num"), html.Span(since, className="quiet since")],
        className="plain", title=words.listing([worst.metric, words.crossed(worst.reason), since]), **{"data-series": str(worst.series)},
    )  # fmt: skip


def facts(run: Run, coverage_counts: dict[str, int] | None) -> Node:
    """What the run says of itself, in six numbers, with a way to the coverage list."""
    attempts = f"attempt {len(run.attempts)}" if len(run.attempts) > 1 else ""
    rows: list[tuple[str, Node, str]] = [
        ("Loss", words.number(run.loss), "loss, as the run reports it"),
        ("Learning rate", words.number(run.learning_rate), ""),
        ("Step", words.step(run.last_step), attempts),
        ("Speed", words.rate(run.steps_per_second), "optimizer steps per second"),
        ("Monitor", words.share(run.overhead), "share of the run's time that the monitor takes"),
        ("Coverage", _coverage_button(run, coverage_counts), "share of watched modules and parameters that are measured"),
    ]
    return html.Dl(
        [html.Div([html.Dt(name), html.Dd(value, className="num")], title=title) for name, value, title in rows],
        className="facts panel",
    )


def board_rows(blocks: Sequence[BlockVerdict], *, pattern: re.Pattern[str] | None = None) -> list[BoardRow]:
    """Blocks x conditions, worst first as the API orders them: the browser draws them, whatever their number."""
    shown = [block for block in blocks if pattern is None or pattern.search(block.name)]
    return [_board_row(block) for block in shown]


def alert_item(alert: Alert, now_ms: int, *, with_run: bool, can_acknowledge: bool) -> Node:
    """One alert: what, where, how far, since when, what to try."""
    is_open = alert.state in ("pending", "firing")
    loud = alert.severity == "critical" and is_open
    state: State = "violated" if loud else "drifting" if is_open and alert.severity == "warning" else "not measured"
    condition = CONDITION.get(alert.condition)
    title = condition.title if condition else alert.condition.replace("_", " ")
    href = f"/runs/{alert.run}" + (f"?{urlencode({'series': alert.series})}" if alert.series is not None else "")
    steps = f"step {words.step(alert.opened_step)}" if alert.opened_step is not None else "pending"
    if not is_open and alert.closed_step is not None:
        steps += f" → {words.step(alert.closed_step)}"
    figures = words.listing([
        "" if alert.value is None else f"{alert.metric} {words.number(alert.value)}",
        "" if alert.ratio is None else f"{words.times(alert.worst_ratio if not is_open else alert.ratio)} its band" + (" at worst" if not is_open else ""),
        _band(alert),
    ])  # fmt: skip
    acknowledged: Node = None
    if alert.acknowledged_by:
        acknowledged = html.Span(f"acknowledged by {alert.acknowledged_by}", className="quiet")
    elif is_open and can_acknowledge:
        acknowledged = dmc.Button("Acknowledge", id={"acknowledge": alert.id}, size="compact-xs", variant="default")
    return html.Article(
        [
            html.Div([
                mark(state, title=f"{alert.severity}, {alert.state}"),
                html.Div([
                    html.Div([dcc.Link([html.Strong(title), html.Span(words.subject(alert.subject, alert.index), className="subject")], href=href)], className="alert-title"),
                    html.Div([html.Span(f"{alert.severity} · {alert.state}", className="alert-tag"), html.Span(steps, className="num"), age(alert.closed_at_ms if not is_open else alert.opened_at_ms, now_ms)], className="alert-meta"),
                ], className="grow"),
                html.Div([dcc.Link(words.listing([alert.project, alert.run_name]), href=f"/runs/{alert.run}", className="crumb") if with_run else None, acknowledged], className="alert-side"),
            ], className="alert-head"),
            html.P(words.crossed(alert.message), className="alert-message"),
            html.P(figures, className="num quiet") if figures else None,
            html.P([html.Span("Try: ", className="quiet"), alert.advice]) if alert.advice and is_open else None,
        ],
        className=f"alert-item panel {'open' if is_open else 'closed'} is-{words.STATE_CLASSES[state]}",
        id={"alert": alert.id},
    )  # fmt: skip


def alert_line(alert: Alert, now_ms: int) -> Node:
    """One alert in a line of the run page; a click draws its series."""
    is_open = alert.state in ("pending", "firing")
    state: State = "not measured" if not is_open else "violated" if alert.severity == "critical" else "drifting"
    since = words.listing([alert.state, "" if alert.opened_step is None else f"step {words.step(alert.opened_step)}"])
    opens = {} if alert.series is None else {"data-series": str(alert.series)}
    what = html.Span([html.Strong(alert.condition.replace("_", " ")), " ", words.subject(alert.subject, alert.index), html.Span(since, className="since")], className="grow")  # fmt: skip
    return html.Button([mark(state, title=f"{alert.severity}, {alert.state}"), what, age(alert.opened_at_ms, now_ms)], className=f"plain alert-line{' fresh' if _is_fresh(alert, now_ms) else ''}", title=words.crossed(alert.message), **opens)  # fmt: skip


def empty_state(origin: str) -> Node:
    """No run yet: the lines to copy, with this server's address."""
    lines = f'import internist\ninternist.watch(model, optimizer, server="{origin}")'
    return html.Section(
        [
            html.H1("No run yet"),
            html.P("Add two lines to a training script, after the model and its optimizer are made. The run appears here by itself."),
            html.Div([html.Pre(html.Code(lines), id="two-lines"), dcc.Clipboard(target_id="two-lines", className="copy", title="Copy")], className="code"),
            html.P(["Nothing to train at hand? ", html.Code("internist demo"), " trains a small model and makes one mistake on purpose."], className="quiet"),
        ],
        className="empty panel",
    )  # fmt: skip


def problem(title: str, what: str, *, safe: str, do: Node) -> Node:
    """An error in three sentences: what happened, what is safe, what to do."""
    return html.Section([html.H1(title), html.P(what), html.P(safe, className="quiet"), html.P(do)], className="empty panel", role="alert")  # fmt: skip


def notice(what: str) -> Node:
    """A bar over a page that could not be brought up to date."""
    return html.Div([html.Span(what), html.Span("What is drawn is the last answer; training goes on and nothing is lost.", className="quiet")], className="notice")  # fmt: skip


def panel(title: str, *body: Node, aside: Node = None, class_name: str = "") -> Node:
    """A titled part of a page."""
    return html.Section([html.Div([html.H2(title), html.Div(aside, className="panel-aside")], className="panel-head"), *body], className=f"panel {class_name}")  # fmt: skip


def heat_legend() -> Node:
    """What the heat map's colours say, in one line."""
    return html.Div(
        [
            html.Span("¼×"), html.Span(className="ramp"), html.Span("4× its band"),
            html.Span(className="swatch hatched"), html.Span("not measured"), html.Span(className="swatch dotted"), html.Span("NaN"),
        ],
        className="legend",
    )  # fmt: skip


def logit_legend() -> Node:
    """What MaxLogit's colours say."""
    return html.Div(
        [html.Span("1"), html.Span(className="ramp logit"), html.Span("1\u2009000"), html.Span("orange: over 100, where softmax starts to saturate", className="legend-note")],
        className="legend",
    )  # fmt: skip


def definition(pairs: Sequence[tuple[str, Node]]) -> Node:
    """Names and values, for the detail of a series."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", "—")]
    return html.Dl([html.Div([html.Dt(name), html.Dd(value, className="num")]) for name, value in shown], className="definition")  # fmt: skip


def _is_fresh(alert: Alert, now_ms: int) -> bool:
    return alert.state == "firing" and alert.opened_at_ms is not None and now_ms - alert.opened_at_ms < FRESH_MS


def _counts(answer: Card, *, of: tuple[State, ...]) -> list[str]:
    counts: dict[State, int] = {
        "ok": answer.ok, "drifting": answer.drifting, "violated": answer.violated, "not measured": answer.not_measured,
    }  # fmt: skip
    return [f"{counts[state]} {state}" for state in of if counts[state]]


def _coverage_button(run: Run, counts: dict[str, int] | None) -> Node:
    missing = words.listing(f"{counts[s]} {s}" for s in ("silent", "not captured", "unsupported") if counts and counts.get(s))
    return html.Button(
        [html.Span(words.share(run.coverage)), html.Span(missing, className="quiet since")], className="plain", id="coverage-button",
        **{"data-panel": "coverage"},
    )  # fmt: skip


def _board_row(block: BlockVerdict) -> BoardRow:
    worst = block.worst
    known = worst is not None and worst.ratio is not None and worst.state != "not measured"
    return {
        "name": block.name,
        "states": [block.states.get(card, "not measured") for card in CARDS],
        "worst": words.times(worst.ratio) if worst is not None and known else "",
        "state": worst.state if worst is not None else "not measured",
        "series": worst.series if worst is not None else None,
        "title": words.listing([words.subject(worst.subject, worst.index), worst.metric, words.crossed(worst.reason)]) if worst is not None else "",
    }


def _band(alert: Alert) -> str:
    low, high = alert.band_low, alert.band_high
    if low is None and high is None:
        return ""
    edges = f"≤ {words.number(high)}" if low is None else f"≥ {words.number(low)}" if high is None else f"{words.number(low)} … {words.number(high)}"
    return f"band {edges}" + (f" ({words.basis(alert.basis)})" if alert.basis else "")
