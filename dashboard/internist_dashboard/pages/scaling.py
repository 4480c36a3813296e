"""How a family of runs scales in width and depth: what is wrong in a sentence, then every exponent with its plot."""

import asyncio
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, dcc, html, no_update

from internist.schema.scaling import Scaling
from internist_dashboard import components, figures, scaling_figures, scaling_items, words
from internist_dashboard.api import Api
from internist_dashboard.components import Node
from internist_dashboard.errors import NotFound, Refused
from internist_dashboard.filters import compiled
from internist_dashboard.links import link
from internist_dashboard.theme import Scheme

_EMPTY: dict[str, Any] = {"layout": {"xaxis": {"visible": False}, "yaxis": {"visible": False}}}
View = dict[str, Any]
"""What the URL says: `runs` (a list) or `family`, and the `row` that is open; all may be absent."""


def layout() -> Node:
    """The page's frame; its callbacks fill it."""
    return html.Div(
        [
            components.header([("Scaling", None)], filter_hint="filter by regex"),
            dcc.Store(id="scaling-shown"),
            html.Main(
                [
                    html.H1("How runs scale", className="unseen"),
                    html.Div([_picker(), html.Span(id="family-note", className="quiet hint")], className="area-family"),
                    html.Div(id="scaling-problem"),
                    html.Div(
                        [
                            html.Div(id="scaling-sentence", className="area-sentence"),
                            html.Div([_wrong(), html.Div(id="exponents")], className="area-charts"),
                            html.Div([_plot(), _family()], className="area-rail"),
                        ],
                        id="scaling-report",
                        className="scaling-page",
                        hidden=True,
                    ),
                ],
                className="page",
                id="main",
            ),
        ]
    )


def register(app: dash.Dash, api: Api) -> None:
    """The page's callbacks."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("scaling-problem", "children"),
        Output("scaling-report", "hidden"),
        Output("family", "data"),
        Output("family", "value"),
        Output("scaling-shown", "data"),
        Output("family-note", "children"),
        Output("scaling-sentence", "children"),
        Output("diagnoses", "children"),
        Output("exponents", "children"),
        Output("members", "children"),
        Input("scaling-view", "data"),
        Input("filter", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    async def draw(view: View | None, text: str | None, page: dict[str, Any]) -> Any:
        if view is None or page.get("kind") != "scaling":
            return (no_update,) * 10
        answer, problem = await ask(api, view)
        options = scaling_items.options(answer.families)
        if answer.report is None:
            said = problem or scaling_items.choice(answer.families, answer.excluded)
            return said, True, options, None, None, "", None, None, None, None
        report = answer.report
        row = view.get("row") or _key(answer)
        note = f"{words.plural(len(report.family), 'run')}" + (", as named in the address" if view.get("runs") else "")
        return (
            None,
            False,
            options,
            answer.family,
            answer.family,
            note,
            scaling_items.sentence(report),
            scaling_items.diagnoses(report),
            scaling_items.tables(report, open_row=row, pattern=compiled(text)),
            scaling_items.family_facts(report),
        )

    @app.callback(  # type: ignore[untyped-decorator]
        Output("loglog", "figure"),
        Output("exponent-head", "children"),
        Input("scaling-view", "data"),
        Input("scheme", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    async def plot(view: View | None, scheme: Scheme, page: dict[str, Any]) -> Any:
        if view is None or page.get("kind") != "scaling":
            return no_update, no_update
        answer, _ = await ask(api, view)
        report = answer.report
        one = None if report is None else scaling_items.chosen(report, view.get("row"))
        if report is None or one is None:
            return no_update, no_update
        drawn = await asyncio.to_thread(scaling_figures.loglog, one, report.family, scheme=scheme or "light")
        return drawn, scaling_items.plot_head(one)


async def ask(api: Api, view: View) -> tuple[Scaling, Node]:
    """The server's answer to a view; where it refuses, the families there are, and why in words."""
    runs, family = view.get("runs") or [], view.get("family")
    try:
        answer = await api.scaling(runs=runs, family=family)
        if runs:
            families = await api.scaling()
            answer = Scaling(families.families, answer.excluded, None, answer.report)
        return answer, None
    except (Refused, NotFound) as error:
        said = components.problem(
            "These runs cannot be checked",
            str(error),
            safe="The runs themselves are as they were.",
            do=dcc.Link("All families", href=link("/scaling"), className="link"),
        )
        families = await api.scaling()
        return Scaling(families.families, families.excluded, None, None), said


def _key(answer: Scaling) -> str | None:
    one = None if answer.report is None else scaling_items.chosen(answer.report, None)
    return None if one is None else scaling_items.key(one)


def _picker() -> Node:
    return dmc.Select(
        id="family",
        data=[],
        size="xs",
        searchable=True,
        placeholder="family",
        allowDeselect=False,
        checkIconPosition="right",
        className="family",
        **{"aria-label": "family of runs"},
    )


def _wrong() -> Node:
    return components.panel("What is wrong", html.Div(id="diagnoses"), class_name="area-diagnoses")


def _plot() -> Node:
    """The log-log plot; it takes the size of its place, which is hidden while nothing is shown."""
    graph = dcc.Graph(id="loglog", config=figures.GRAPH_CONFIG, className="graph", responsive=True, figure=_EMPTY)
    place = html.Div(graph, className="plot-place")
    return components.panel("Log–log", html.Div(id="exponent-head"), place, class_name="area-loglog")


def _family() -> Node:
    return components.panel("Family", html.Div(id="members"), class_name="area-members")
