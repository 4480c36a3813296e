"""The drawer over a run page: one series with its band, or what is measured and what is not."""

import asyncio
from typing import Any

import dash
from dash import Input, Output, State, html, no_update

from internist.schema.conditions import CRITERIA
from internist.schema.metrics import METRICS
from internist.schema.views import Verdict, Verdicts
from internist.schema.windows import Points
from internist_dashboard import alert_items, components, coverage_items, figures, words
from internist_dashboard.alert_groups import grouped
from internist_dashboard.api import Api
from internist_dashboard.axis import on_axis
from internist_dashboard.components import Node
from internist_dashboard.errors import NotFound, Refused
from internist_dashboard.frame import Frame
from internist_dashboard.pages.run import ALERT_LIMIT, PIXELS, Window, frame_of
from internist_dashboard.theme import Scheme

WORST = 100
"""So many of the worst verdicts are looked at for that of the series, with each card's and each block's worst."""


def register(app: dash.Dash, api: Api) -> None:
    """The drawer's callbacks."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("drawer", "title"),
        Output("detail", "children"),
        Output("series-graph", "figure"),
        Output("series-graph", "style"),
        Output("detail-facts", "children"),
        Input("panel", "data"),
        Input("detail-tick", "data"),
        Input("scheme", "data"),
        Input("axis", "value"),
        State("window", "data"),
        State("narrow", "data"),
        State("filter", "data"),
        State("page", "data"),
    )
    async def fill(
        panel: dict[str, Any] | None,
        _: object,
        scheme: Scheme,
        axis: str | None,
        window: Window,
        narrow: bool,
        text: str | None,
        page: dict[str, Any],
    ) -> Any:
        hidden = {"display": "none"}
        if not panel or not page or "run" not in page:  # the drawer has appeared, closed
            return (no_update,) * 5
        name = page["run"]
        if panel.get("coverage"):
            return "Coverage", coverage_items.listing(await api.coverage(name), text), no_update, hidden, None
        number = int(panel["series"])
        run, alerts, board = await asyncio.gather(
            api.run(name), api.alerts(run=name, limit=ALERT_LIMIT), api.verdicts(name, limit=WORST)
        )
        frame = await on_axis(api, run, frame_of(run, window, scheme, is_narrow=narrow), axis)
        found = await _window(api, name, number, frame)
        if not found:
            said = f"This run has no series {number}: the link may be of another run."
            return "No such series", html.P(said, role="alert"), no_update, hidden, None
        points = found[0]
        own = [a for a in alerts.alerts if a.series == number]
        title = words.subject(points.series.subject, points.series.index)
        return (
            title,
            summary(points),
            await asyncio.to_thread(figures.series, points, own, frame),
            {},
            [
                facts(points),
                judged(verdict_of(number, board)),
                *(alert_items.event(one, run.server_time_ms, with_run=False, can_handle=True) for one in grouped(own)),
            ],
        )


async def _window(api: Api, run: str, number: int, frame: Frame) -> tuple[Points, ...]:
    """The window of a series; nothing where the run has no such series."""
    try:
        page = await api.points(run, [number], first=frame.first, last=frame.last, pixels=PIXELS, bands=True)
    except (NotFound, Refused):
        return ()
    return page.windows


def summary(points: Points) -> Node:
    """What the metric is, and its last value."""
    series = points.series
    known = METRICS.get(series.metric)
    return html.Div(
        [
            html.P(
                [
                    html.Strong(series.metric),
                    html.Span(words.number(series.last_value, bound=series.bound), className="num big"),
                ],
                className="series-head",
            ),
            html.P(known.summary if known else "A value that the run reports.", className="quiet"),
        ]
    )


def facts(points: Points) -> Node:
    """How the series is computed, and what its band rests on."""
    series, band = points.series, points.band
    about = series.facts
    is_count = any(one.condition == "numeric" and one.metric == series.metric for one in CRITERIA)
    unjudged = "none: one that is not finite is too many" if is_count else "none: shown, not judged"
    edges = "" if band is None else _edges(band.warn_low[-1:], band.warn_high[-1:])
    limits = "" if band is None else _edges(band.critical_low[-1:], band.critical_high[-1:])
    known = METRICS.get(series.metric)
    return components.definition(
        [
            ("Band", f"warning {edges}, critical {limits}" if band is not None else unjudged),
            ("Rests on", words.basis(band.basis) if band is not None else ""),
            ("Last step", words.step(series.last_step)),
            ("Unit", series.unit),
            (
                "Value is",
                {"exact": "exact", "lower": "a lower bound", "upper": "an upper bound", "sampled": "from a sample"}[
                    series.bound
                ],
            ),
            ("Method", about.method),
            ("Block", about.block),
            ("Role", about.role),
            ("Shape", f"fan_out {about.fan_out}, fan_in {about.fan_in}" if about.fan_in and about.fan_out else ""),
            ("dtype", about.dtype),
            ("Measured every", f"{about.cadence} steps" if about.cadence > 1 else "step"),
            ("Also known as", ", ".join(about.aliases)),
            ("Source", known.source if known else ""),
        ]
    )


def verdict_of(number: int, board: Verdicts) -> Verdict | None:
    """What the judge says of a series, where it is among those that the board names."""
    cards, blocks = (card.worst for card in board.cards), (block.worst for block in board.blocks)
    return next((one for one in (*board.members, *cards, *blocks) if one is not None and one.series == number), None)


def judged(verdict: Verdict | None) -> Node:
    """A verdict explained: how far out it is, where its band comes from, since when, how sure it is, what to try."""
    if verdict is None:
        return None
    since = "" if verdict.since_step is None else f"step {words.step(verdict.since_step)}"
    return components.definition(
        [
            ("Verdict", words.listing([verdict.state, words.crossed(verdict.reason)])),
            ("Band comes from", verdict.source),
            ("Since", since),
            ("How sure", verdict.how_sure),
            ("Try", verdict.advice),
        ]
    )


def _edges(low: tuple[Any, ...], high: tuple[Any, ...]) -> str:
    bottom = low[0] if low else None
    top = high[0] if high else None
    return (
        words.listing(
            [
                f"under {words.number(bottom)}" if bottom is not None else "",
                f"over {words.number(top)}" if top is not None else "",
            ]
        )
        or "—"
    )
