"""The first page: every run, a line each, in pages; the server searches and sorts them all."""

import json
from itertools import groupby
from typing import Any

import dash
from dash import Input, Output, dcc, html

from internist.schema.views import Run
from internist_dashboard import about_items, components, words
from internist_dashboard.api import Api
from internist_dashboard.components import Node
from internist_dashboard.links import link
from internist_dashboard.order import SORTS, Order, order_of
from internist_dashboard.sentence import ADVICE
from internist_dashboard.viewer import VIEWER

REFRESH_MS = 5_000
PAGE = 50
"""Runs of one page."""
WORST = ("violated", "drifting", "ok")


def layout(runs: list[Run], order: Order, *, first: int = 0, search: str = "") -> Node:
    """The page, with its rows already in it."""
    return html.Div(
        [
            components.header([], filter_hint="search all runs"),
            dcc.Interval(id="runs-clock", interval=REFRESH_MS),
            dcc.Store(id="runs-tick"),
            dcc.Store(id="runs-headline"),
            dcc.Store(id="runs-first", data=first),
            dcc.Store(id="runs-order", data=stored(order)),
            html.Main(
                html.Div(table(runs, order, first=first, search=search, origin=VIEWER.get().origin), id="runs-table"),
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
        Input("runs-order", "data"),
        prevent_initial_call=True,
    )
    async def draw(_: object, text: str | None, first: int | None, asked: dict[str, str] | None) -> Any:
        order = order_of(asked)
        runs = await page_of_runs(api, order, first=first or 0, search=text or "")
        return table(runs, order, first=first or 0, search=text or "", origin=VIEWER.get().origin), headline(runs)


async def page_of_runs(api: Api, order: Order, *, first: int, search: str) -> list[Run]:
    """The runs of a page, and one more if there are more."""
    return await api.runs(order, name=search or None, limit=PAGE + 1, offset=first)


def stored(order: Order) -> dict[str, str]:
    """An order as the browser keeps it."""
    return {"sort": order.sort, "reverse": str(int(order.is_reversed)), "archived": str(int(order.is_archived))}


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


def table(runs: list[Run], order: Order, *, first: int, search: str, origin: str) -> Node:
    """The table of runs; without any, the lines to copy."""
    if not runs and not first:
        if order.is_archived:
            said = (
                "No run is archived. Choose runs of the list, then Archive." if not search else f"None has “{search}”."
            )
            return html.Section(
                [html.H1("The archive is empty"), html.P(said), _archive(order)], className="empty panel"
            )
        if not search:
            return components.empty_state(origin, asks_token=bool(VIEWER.get().headers))
        said = f"No run's name, project, id or tag contains “{search}”."
        return html.Section([html.H1("No match"), html.P(said)], className="empty panel")
    head = html.Tr([_head(column, order) for column in _COLUMNS])
    return html.Div(
        [
            html.Div(
                [
                    html.H1("Archived runs" if order.is_archived else "Runs", className="page-title"),
                    html.Div(_actions(order), className="chosen-actions", id="chosen-actions", hidden=True),
                    _archive(order),
                ],
                className="page-head",
            ),
            html.Table([html.Thead(head), html.Tbody(_rows(runs[:PAGE], order))], className="runs panel"),
            _pager(first, len(runs), order),
        ]
    )


def _pager(first: int, found: int, order: Order) -> Node:
    """Which runs are shown, and the ways to those before and after."""
    shown = min(found, PAGE)
    if not first and found <= PAGE:
        return None
    last = f"{words.step(first + 1)} to {words.step(first + shown)}"
    return html.Nav(
        [
            _turn("Before", max(0, first - PAGE), is_there=first > 0),
            html.Span(f"runs {last}, {order.said}", className="quiet num"),
            _turn("After", first + PAGE, is_there=found > PAGE),
        ],
        className="pager",
        **{"aria-label": "pages of runs"},
    )


def _turn(said: str, first: int, *, is_there: bool) -> Node:
    return html.Button(
        said, className="small-button", disabled=not is_there, **{"data-first": str(first), "type": "button"}
    )


_COLUMNS = (
    ("", "cell-choice", ""),
    ("Run", "", "name"),
    ("State", "", ""),
    ("Verdict", "", "verdict"),
    ("Step", "right", "step"),
    ("it/s", "right cell-minor", ""),
    ("Loss", "right", "loss"),
    ("Alerts", "right cell-minor", ""),
    ("Last frame", "right cell-minor", ""),
)
"""Of each its title, its class, and what the server sorts by where it is pressed."""


def _head(column: tuple[str, str, str], order: Order) -> Node:
    name, kind, sort = column
    if not name:
        return html.Td()
    if not sort:
        return html.Th(name, scope="col", className=kind)
    buttons = [_sort(name, sort, order)]
    if sort == "name":
        buttons += [_sort("project", "project", order), _sort("newest", "newest", order)]
    sorted_by = "descending" if order.is_reversed else "ascending"
    extra = {"aria-sort": sorted_by} if order.sort == sort else {}
    return html.Th(buttons, scope="col", className=kind, **extra)


def _sort(said: str, sort: str, order: Order) -> Node:
    """Pressed once it sorts, pressed again the other way round."""
    is_on = order.sort == sort
    arrow = ("▴" if order.is_reversed else "▾") if is_on else ""
    return html.Button(
        [said, html.Span(arrow, className="sort-arrow", **{"aria-hidden": "true"})],
        className="plain sort" + (" is-on" if is_on else ""),
        title=f"sort {SORTS[sort]}",
        **{"data-sort": sort},
    )


def _actions(order: Order) -> list[Node]:
    """What is done with the runs that are chosen."""
    restore = ("Restore", {"archived": False}) if order.is_archived else ("Archive", {"archived": True})
    changes = [restore, ("Pin", {"pinned": True}), ("Unpin", {"pinned": False})]
    return [
        html.Button("Compare", className="small-button", hidden=True, **{"data-compare": ""}),
        *(
            html.Button(said, className="small-button", **{"data-change-chosen": json.dumps(change)})
            for said, change in changes
        ),
        html.Button("Delete", className="small-button", **{"data-delete-chosen": ""}),
    ]


def _archive(order: Order) -> Node:
    said = "All runs" if order.is_archived else "Archive"
    return html.Button(said, className="plain link archive-link", **{"data-archived": str(int(not order.is_archived))})


def _rows(runs: list[Run], order: Order) -> list[Node]:
    """The rows, below the names of their projects where they are sorted by these."""
    if order.sort != "project":
        return [_row(run) for run in runs]
    rows: list[Node] = []
    for (is_pinned, project), members in groupby(runs, key=lambda run: (run.pinned, run.project)):
        said = f"{project}, pinned" if is_pinned else project
        rows.append(html.Tr(html.Th(said, colSpan=len(_COLUMNS), scope="rowgroup"), className="runs-group"))
        rows += [_row(run) for run in members]
    return rows


def _row(run: Run) -> Node:
    href = link(f"/runs/{run.id}")
    named = [
        dcc.Link(run.name, href=href, className="run-name"),
        html.Span(
            [run.project, *about_items.marks(run)],
            className="quiet run-project",
        ),
    ]
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
