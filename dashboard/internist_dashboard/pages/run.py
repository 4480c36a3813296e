"""One run: the sentence, six cards, the charts on one step axis, and the blocks, worst first."""

import asyncio
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import dash
from dash import Input, Output, State, dcc, html, no_update

from internist.schema.alerts import Alert, AlertsPage
from internist.schema.views import Run
from internist.schema.windows import Heatmap, Points
from internist_dashboard import (
    about_items,
    alert_items,
    cards,
    components,
    figures,
    rank_items,
    routing,
    run_tools,
    sentence,
    words,
)
from internist_dashboard.alert_groups import grouped
from internist_dashboard.api import Api
from internist_dashboard.axis import on_axis
from internist_dashboard.components import Node
from internist_dashboard.drawer import drawer
from internist_dashboard.filters import compiled, subject_of
from internist_dashboard.folding import fold
from internist_dashboard.frame import Frame
from internist_dashboard.graph import graph
from internist_dashboard.links import link
from internist_dashboard.rows import MOST_ROWS, Row, collapse
from internist_dashboard.theme import Scheme

FALLBACK_MS = 5_000
"""How often a page asks for news when its stream is broken."""
ALERT_LIMIT = 1_000
SHOWN_EVENTS = 6
RATE_LIMIT = 4
"""Learning rates drawn: groups beyond these are in the series list."""
HEAD_LIMIT = 128
"""Heads drawn, one row each; where a model has more, each layer shows those with the largest logits."""
COLUMNS = 200
GOING_ON = ("live", "stalled")
"""States of a run of which more may come."""
PIXELS = 700
STORES = ("poll", "heat-shown", "heat-sent", "logit-sent", "board-rows", "run-headline")
Window = dict[str, int] | None


def layout(run: Run, *, axis: str | None = None) -> Node:
    """The page's frame; its callbacks fill it. `axis`: what its steps are told in."""
    return html.Div(
        [
            components.header(
                [(run.project, "/"), (run.name, None)],
                middle=html.Span(components.run_badge(run), id="badge"),
                filter_hint="filter by regex",
            ),
            dcc.Interval(id="fallback-clock", interval=FALLBACK_MS),
            *(dcc.Store(id=name) for name in STORES),
            html.Main(
                [
                    html.H1(f"{run.project}: {run.name}", className="unseen"),
                    html.Div(id="sentence", className="area-sentence"),
                    html.Div(id="cards", className="area-cards"),
                    html.Div(id="facts", className="area-facts"),
                    html.Div(
                        [
                            components.panel(
                                "Loss and learning rate",
                                graph("loss-graph"),
                                aside=run_tools.axis_tools(axis),
                                class_name="area-loss",
                            ),
                            components.panel(
                                "Layers × steps",
                                run_tools.metric_picker(),
                                components.heat_legend(),
                                graph("heat-graph"),
                                aside=html.Span(id="heat-note", className="quiet"),
                                class_name="area-heat",
                            ),
                            rank_items.panel(),
                            components.panel(
                                "MaxLogit per head",
                                components.logit_legend(),
                                graph("logit-graph"),
                                aside=html.Span(id="logit-note", className="quiet"),
                                class_name="area-logit",
                            ),
                            routing.panel(),
                        ],
                        className="area-charts",
                    ),
                    html.Div(
                        [
                            components.panel("Blocks, worst first", html.Div(id="board"), class_name="area-board"),
                            components.panel(
                                "Alerts of this run",
                                html.Div(id="run-alerts"),
                                aside=run_tools.notify_button(),
                                class_name="area-alerts",
                            ),
                            components.panel(
                                "About this run", html.Div(about_items.about(run), id="about"), class_name="area-about"
                            ),
                            dcc.Store(id="about-tick"),
                        ],
                        className="area-rail",
                    ),
                ],
                className="page run-page",
                id="main",
            ),
            drawer(),
        ]
    )


def register(app: dash.Dash, api: Api) -> None:
    """The page's callbacks: thin; each is one or two questions to the API and a drawing."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("tick", "data", allow_duplicate=True),
        Input("poll", "data"),
        State("page", "data"),
        State("tick", "data"),
        prevent_initial_call=True,
    )
    async def poll(_: object, page: dict[str, Any], tick: dict[str, Any]) -> Any:
        run = await api.run(page["run"])
        news = {"cursor": run.cursor, "state": run.state}
        return no_update if news.items() <= (tick | {"state": tick.get("state", run.state)}).items() else news

    @app.callback(  # type: ignore[untyped-decorator]
        Output("badge", "children"),
        Output("sentence", "children"),
        Output("cards", "children"),
        Output("facts", "children"),
        Output("board-rows", "data"),
        Output("run-alerts", "children"),
        Output("run-headline", "data"),
        Input("tick", "data"),
        Input("filter", "data"),
        State("page", "data"),
    )
    async def summarize(_: object, text: str | None, page: dict[str, Any]) -> Any:
        name = page["run"]
        run, verdicts, coverage, alerts = await asyncio.gather(
            api.run(name), api.verdicts(name, limit=1), api.coverage(name), api.alerts(run=name, limit=ALERT_LIMIT)
        )
        return (
            components.run_badge(run),
            sentence.of_run(run, verdicts, standing(alerts.alerts, run, frame_of(run, None, "light", is_narrow=False))),
            [cards.card(card, is_over=run.state not in GOING_ON) for card in verdicts.cards],
            cards.facts(run, coverage),
            cards.board_rows(verdicts.blocks, pattern=compiled(text)),
            _alerts(name, alerts, run.server_time_ms),
            headline(run),
        )

    @app.callback(  # type: ignore[untyped-decorator]
        Output("about", "children"),
        Input("about-tick", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    async def tell_about(_: object, page: dict[str, Any]) -> Any:
        return about_items.about(await api.run(page["run"]))

    @app.callback(  # type: ignore[untyped-decorator]
        Output("loss-graph", "figure"),
        Input("tick", "data"),
        Input("window", "data"),
        Input("scheme", "data"),
        Input("narrow", "data"),
        Input("axis", "value"),
        State("page", "data"),
    )
    async def draw_loss(
        _: object, window: Window, scheme: Scheme, narrow: bool, axis: str, page: dict[str, Any]
    ) -> Any:
        name = page["run"]
        run, losses, rates, alerts = await asyncio.gather(
            api.run(name),
            api.series(name, metric="loss", limit=1),
            api.series(name, metric="learning_rate", limit=RATE_LIMIT),
            api.alerts(run=name, limit=ALERT_LIMIT),
        )
        frame = await on_axis(api, run, frame_of(run, window, scheme, is_narrow=narrow), axis)
        wanted = [view.id for view in (*losses, *rates)]
        if not wanted:
            return figures.empty("Neither loss nor learning rate yet: report it with internist.log(loss=loss).", frame)
        windows = (await api.points(name, wanted, first=frame.first, last=frame.last, pixels=PIXELS)).windows
        by_id = {points.series.id: points for points in windows}
        loss = by_id.get(losses[0].id) if losses else None
        drawn_rates = [by_id[rate.id] for rate in rates if rate.id in by_id]
        return await asyncio.to_thread(figures.loss, loss, drawn_rates, standing(alerts.alerts, run, frame), frame)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("heat-sent", "data"),
        Output("metric", "data"),
        Output("metric", "value"),
        Output("heat-shown", "data"),
        Output("heat-note", "children"),
        Output("metric-told", "children"),
        Input("tick", "data"),
        Input("window", "data"),
        Input("heat", "data"),
        Input("filter", "data"),
        Input("scheme", "data"),
        Input("narrow", "data"),
        Input("axis", "value"),
        State("page", "data"),
    )
    async def draw_heat(
        _: object,
        window: Window,
        heat: dict[str, Any],
        text: str | None,
        scheme: Scheme,
        narrow: bool,
        axis: str,
        page: dict[str, Any],
    ) -> Any:
        name = page["run"]
        run = await api.run(name)
        frame = await on_axis(api, run, frame_of(run, window, scheme, is_narrow=narrow), axis)
        heatmap = await api.heatmap(
            name, metric=heat.get("metric"), first=frame.first, last=frame.last, pixels=COLUMNS,
            rows=MOST_ROWS, opened=heat.get("opened") or (), subject=subject_of(text),
        )  # fmt: skip
        options = [{"value": metric, "label": metric} for metric in heatmap.metrics]
        found = collapse(heatmap, opened=heat.get("opened") or (), pattern=compiled(text))
        rows = found[:MOST_ROWS]
        figure = (
            await asyncio.to_thread(_sent_heat, heatmap, rows, frame)
            if rows
            else figures.empty("No row to draw: nothing is measured yet, or the filter matches none.", frame)
        )
        total = heatmap.total + len(found) - len(heatmap.rows)  # an open block has a row of its own, too
        counted = f"{len(rows)} rows" if len(rows) == total else f"the first {len(rows)} of {total} rows: filter"
        note = words.listing([counted, f"against {words.basis(heatmap.basis)}" if heatmap.basis else ""])
        return figure, options, heatmap.metric, heatmap.metric, note, run_tools.told(heatmap.metric)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("logit-sent", "data"),
        Output("logit-note", "children"),
        Input("tick", "data"),
        Input("window", "data"),
        Input("filter", "data"),
        Input("scheme", "data"),
        Input("narrow", "data"),
        Input("axis", "value"),
        State("page", "data"),
    )
    async def draw_logits(
        _: object, window: Window, text: str | None, scheme: Scheme, narrow: bool, axis: str, page: dict[str, Any]
    ) -> Any:
        name = page["run"]
        subject = subject_of(text)
        run, heads = await asyncio.gather(
            api.run(name),
            api.largest(name, metric="attention.max_logit", subject=subject, limit=HEAD_LIMIT),
        )
        frame = await on_axis(api, run, frame_of(run, window, scheme, is_narrow=narrow), axis)
        chosen, total = heads
        if not chosen:
            return figures.empty(
                "No attention logits: no attention that can be read has run, or the filter matches none.", frame
            ), ""
        page_of = await api.points(
            name, [head.id for head in chosen], first=frame.first, last=frame.last, pixels=COLUMNS
        )
        note = (
            f"{total} heads" if len(chosen) == total else f"{len(chosen)} of {total} heads: the largest of each layer"
        )
        return await asyncio.to_thread(_sent_logits, page_of.windows, frame), note


def _sent_heat(heatmap: Heatmap, rows: list[Row], frame: Frame) -> dict[str, Any]:
    return fold(figures.heat(heatmap, rows, frame), against=words.against(heatmap.basis))


def _sent_logits(windows: tuple[Points, ...], frame: Frame) -> dict[str, Any]:
    return fold(figures.logits(windows, frame))


def headline(run: Run) -> dict[str, Any]:
    """What the tab's title says of a run."""
    return {"name": run.name, "verdict": run.verdict, "alerts": run.open_alerts, "life": run.state}


def frame_of(run: Run, window: Window, scheme: Scheme, *, is_narrow: bool) -> Frame:
    """The steps that all charts show: the brushed window, else the whole run."""
    start = min((attempt.start_step for attempt in run.attempts), default=0)
    later = tuple(attempt.start_step for attempt in run.attempts[1:])
    first, last = start, max(run.last_step or 0, start + 1)
    if window:
        first, last = max(first, int(window["first"])), min(last, int(window["last"]))
    return Frame(first, max(last, first + 1), scheme or "light", bool(is_narrow), later)


def _alerts(run: str, page: AlertsPage, now_ms: int) -> Node:
    groups = grouped(page.alerts)
    if not groups:
        return html.P("None. Nothing has left its band for long enough.", className="quiet pad")
    current = [one for one in groups if one.is_open]
    shown = current[:SHOWN_EVENTS] or groups[:3]
    items: list[Node] = [alert_items.line(one, now_ms) for one in shown]
    rest = len(groups) - len(shown)
    said = f"{rest} more of this run" if rest else "all that is known of them"
    items.append(dcc.Link(said, href=link(f"/alerts?run={quote(run)}"), className="crumb pad"))
    return html.Div(items)


def standing(alerts: tuple[Alert, ...], run: Run, frame: Frame) -> list[Alert]:
    """The alerts that belong to the line that is drawn: not those of a future that a rewind discarded."""
    ends: dict[str, int] = {}
    for attempt, later in pairwise(run.attempts):
        ends[attempt.id] = min([x.start_step for x in run.attempts if x.number >= later.number])
    return [
        alert
        for alert in alerts
        if alert.opened_step is not None
        and frame.first <= alert.opened_step <= frame.last
        and alert.opened_step < ends.get(alert.attempt, frame.last + 1)
    ]
