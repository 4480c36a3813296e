"""A page for each condition: what must hold, in words and a picture, made of the catalogue that the judge reads."""

from typing import Any

import dash
from dash import Input, Output, State, html, no_update

from internist.schema.conditions import CONDITION
from internist_dashboard import components, condition_items
from internist_dashboard.components import Node
from internist_dashboard.errors import NotFound
from internist_dashboard.frame import Frame
from internist_dashboard.graph import graph
from internist_dashboard.theme import Scheme


def layout(name: str | None) -> Node:
    """The page of a condition, or of all of them.

    Raises:
        NotFound: there is no such condition.
    """
    if name is None:
        crumbs: list[tuple[str, str | None]] = [("Conditions", None)]
        body: list[Node] = [html.H1("What must hold", className="page-title"), condition_items.index()]
    else:
        condition = CONDITION.get(name)
        if condition is None:
            raise NotFound(f"There is no condition {name}; there are {', '.join(CONDITION)}.")
        crumbs = [("Conditions", "/conditions"), (condition.title, None)]
        body = [
            html.H1(condition.title, className="page-title"),
            html.Section(condition_items.told(condition), className="panel condition-told"),
            components.panel(
                "A run that leaves it",
                graph("condition-graph"),
                aside=html.Span(f"made up; it goes wrong at step {condition_items.BREAKS}", className="quiet"),
            ),
        ]
    main = html.Main(body, className="page narrow-page condition-page", id="main")
    return html.Div([components.header(crumbs), main])


def register(app: dash.Dash) -> None:
    """The page's callback: the picture, in the colours of the page."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("condition-graph", "figure"), Input("scheme", "data"), Input("narrow", "data"), State("page", "data")
    )
    def draw(scheme: Scheme | None, narrow: bool, page: dict[str, Any]) -> Any:
        name = page.get("condition")
        if name is None:
            return no_update
        steps = condition_items.STEPS
        return condition_items.picture(CONDITION[name], Frame(steps[0], steps[-1], scheme or "light", bool(narrow)))
