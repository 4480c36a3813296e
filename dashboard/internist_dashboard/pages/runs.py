"""The first page: every run, a line each, newest first, in pages; the server searches them all."""

from typing import Any

import dash
from dash import Input, Output, dcc, html

from internist.schema.views import Run
from internist_dashboard import components, words
from internist_dashboard.api import Api
from internist_dashboard.components import Node
from internist_dashboard.links import link
from internist_dashboard.sentence import ADVICE
from internist_dashboard.viewer import VIEWER

REFRESH_MS = 5_000
PAGE = 50
"""Runs of one page."""
WORST = ("violated", "drifting", "ok")


def layout(runs: list[Run], *, first: int = 0, search: str = "") -> Node:
    """The page, with its rows already in it."""
    return html.Div(
        [
            components.header([], filter_hint="search all runs"),
            dcc.Interval(id="runs-clock", interval=REFRESH_MS),
            dcc.Store(id="runs-tick"),
            dcc.Store(id="runs-headline"),
            dcc.Store(id="runs-first", data=first),
            html.Main(
                html.Div(table(runs, first=first, search=search, origin=VIEWER.get().origin), id="runs-table"),
                className="page",
                id="main",
            ),
        ]
    )


def register(app: dash.Dash, api: Api) -> None:
    """The page's callbacks."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("runs-table", "children"),
        Output("runs-headline", "data"),
        Input("runs-tick", "data"),
        Input("filter", "data"),
        Input("runs-first", "data"),
        prevent_initial_call=True,
    )
    async def draw(_: object, text: str | None, first: int | None) -> Any:
        runs = await page_of_runs(api, first=first or 0, search=text or "")
        return table(runs, first=first or 0, search=text or "", origin=VIEWER.get().origin), headline(runs)


async def page_of_runs(api: Api, *, first: int, search: str) -> list[Run]:
    """The runs of a page, and one more if there are more."""
    return await api.runs(name=search or None, limit=PAGE + 1, offset=first)


def headline(runs: list[Run]) -> dict[str, Any]:
    """What the tab's title says: how many of the runs that go on are not well."""
    living = [run.verdict for run in runs if run.state in ("live", "stalled")]
    worst = next((verdict for verdict in WORST if verdict in living), None)
    return {
        "name": "runs",
        "verdict": worst,
        "alerts": sum(verdict == "violated" for verdict in living),
        "life": "live",
    }


def table(runs: list[Run], *, first: int, search: str, origin: str) -> Node:
    """The table of runs; without any, the lines to copy."""
    if not runs and not first:
        if not search:
            return components.empty_state(origin, asks_token=bool(VIEWER.get().headers))
        said = f"No run's name, project or id contains “{search}”."
        return html.Section([html.H1("No match"), html.P(said)], className="empty panel")
    head = html.Tr([html.Th(name, scope="col", className=kind) if name else html.Td() for name, kind in _COLUMNS])
    return html.Div(
        [
            html.Div(
                [
                    html.H1("Runs", className="page-title"),
                    html.Button("Compare", className="small-button", hidden=True, **{"data-compare": ""}),
                ],
                className="page-head",
            ),
            html.Table([html.Thead(head), html.Tbody([_row(run) for run in runs[:PAGE]])], className="runs panel"),
            _pager(first, len(runs)),
        ]
    )


def _pager(first: int, found: int) -> Node:
    """Which runs are shown, and the ways to those before and after."""
    shown = min(found, PAGE)
    if not first and found <= PAGE:
        return None
    last = f"{words.step(first + 1)} to {words.step(first + shown)}"
    return html.Nav(
        [
            _turn("Newer", max(0, first - PAGE), is_there=first > 0),
            html.Span(f"runs {last}, newest first", className="quiet num"),
            _turn("Older", first + PAGE, is_there=found > PAGE),
        ],
        className="pager",
        **{"aria-label": "pages of runs"},
    )


def _turn(said: str, first: int, *, is_there: bool) -> Node:
    return html.Button(
        said, className="small-button", disabled=not is_there, **{"data-first": str(first), "type": "button"}
    )


_COLUMNS = (
    ("", "cell-choice"),
    ("Run", ""),
    ("State", ""),
    ("Verdict", ""),
    ("Step", "right"),
    ("it/s", "right cell-minor"),
    ("Loss", "right"),
    ("Alerts", "right cell-minor"),
    ("Last frame", "right cell-minor"),
)


def _row(run: Run) -> Node:
    href = link(f"/runs/{run.id}")
    named = [dcc.Link(run.name, href=href, className="run-name"), html.Span(run.project, className="quiet run-project")]
    alerts: Node = (
        html.Span(str(run.open_alerts), className="open-alerts")
        if run.open_alerts
        else html.Span("0", className="quiet")
    )
    cells: list[tuple[Node, str, str]] = [
        (_choice(run), "cell-choice", ""),
        (named, "cell-name", ""),
        (components.live_dot(run.state), "cell-state", ""),
        (
            html.Span(
                [
                    components.life_mark(run.state) if run.state in ADVICE else components.mark(run.verdict),
                    html.Span(_said(run), className="verdict-text"),
                ],
                className="cell-sentence",
            ),
            "cell-verdict",
            "",
        ),
        (words.step(run.last_step), "num right cell-number", "step"),
        (words.number(run.steps_per_second), "num right cell-minor", "it/s"),
        (words.number(run.loss), "num right cell-number", "loss"),
        (alerts, "num right cell-minor", "alerts"),
        (components.age(run.last_frame_at_ms, run.server_time_ms), "right cell-minor", ""),
    ]
    extra: dict[str, Any] = {"data-href": href}
    return html.Tr([html.Td(content, className=kind, **{"data-name": name}) for content, kind, name in cells], **extra)


def _choice(run: Run) -> Node:
    """A switch that the browser keeps: chosen runs are compared."""
    return html.Button(
        className="choose", role="checkbox", **{"data-choose": run.id, "aria-label": f"compare {run.name}"}
    )


def _said(run: Run) -> str:
    """The sentence of a run; of one that does not live as it should, that comes first."""
    said = words.crossed(run.sentence) or run.verdict
    if run.state in ("lost", "stalled") and run.state_reason:
        return f"{run.state_reason[0].upper()}{run.state_reason[1:]}. {words.without_forecast(said)}"
    return said if run.state == "live" else words.without_forecast(said)
