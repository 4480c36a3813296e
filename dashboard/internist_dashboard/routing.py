"""The optimizer's panel of a run page: how each parameter is stepped, and what its optimizer last told of it."""

from collections import Counter
from collections.abc import Sequence

from dash import html

from internist.schema.views import Routing
from internist.schema.windows import SeriesView
from internist.schema.wire import Route
from internist_dashboard import components, words
from internist_dashboard.components import Node
from internist_dashboard.filters import Filter
from internist_dashboard.graph import graph

TOLD = {
    "optimizer.gap": "gap",
    "optimizer.learned_norm": "beneath",
    "optimizer.learned_rms": "beneath, RMS",
    "optimizer.audit": "audit",
    "optimizer.removed_share": "removed",
    "optimizer.firings": "firings",
    "optimizer.clip_gamma": "clip γ",
    "optimizer.orthogonality": "residual",
    "optimizer.effective_lr": "lr × scale",
}
"""Metrics with a column of their own, where any parameter has them."""
SHOWN_ROUTES = 300


def panel() -> Node:
    """The panel, hidden until something is known of an optimizer."""
    return html.Div(
        components.panel(
            "Optimizer",
            graph("optimizer-graph", is_hidden=True),
            html.Details(
                [html.Summary("Routing", id="routing-summary"), html.Div(id="routing")], className="routing-details"
            ),
            aside=html.Span(id="optimizer-note", className="quiet"),
        ),
        id="optimizer",
        hidden=True,
    )


def summary(routing: Routing) -> str:
    """How many parameters each algorithm steps: `routing · 24 muon · 26 adamw`."""
    counts = Counter(route.algorithm for route in routing.routes)
    return words.listing(["Routing", *(f"{count} {algorithm}" for algorithm, count in counts.most_common())])


def table(routing: Routing, series: Sequence[SeriesView], *, pattern: Filter | None = None) -> Node:
    """One row a parameter, in the order of the optimizers' groups; a value opens its series."""
    told = {(one.subject, one.metric): one for one in series}
    metrics = [metric for metric in TOLD if any(one.metric == metric for one in series)]
    routes = [route for route in _complete(routing, series) if pattern is None or pattern.search(route.parameter)]
    heads = ["parameter", "by", "shape", "rules", *(TOLD[metric] for metric in metrics)]
    rows = [
        html.Tr(
            [
                html.Th(route.parameter, scope="row", title=route.parameter),
                html.Td(
                    words.listing(dict.fromkeys([route.algorithm, route.group, route.role])), title=route.optimizer
                ),
                html.Td(" × ".join(map(str, route.shape)), className="num"),
                html.Td(words.listing([route.scale, route.coefficients, route.policy])),
                *(html.Td(_value(told.get((route.parameter, metric))), className="num") for metric in metrics),
            ]
        )
        for route in routes[:SHOWN_ROUTES]
    ]
    more = len(routes) - SHOWN_ROUTES
    return html.Div(
        [
            html.Table(
                [html.Thead(html.Tr([html.Th(head, scope="col") for head in heads])), html.Tbody(rows)],
                className="routing",
            ),
            html.P(f"and {more} more: filter by name", className="quiet") if more > 0 else None,
        ],
        className="routing-scroll",
    )


def _complete(routing: Routing, series: Sequence[SeriesView]) -> list[Route]:
    """The routes, and a line for each parameter that an optimizer tells of without having been named at the start."""
    known = {route.parameter for route in routing.routes}
    unnamed = dict.fromkeys(one.subject for one in series if one.subject not in known)
    return [*routing.routes, *(Route(name, "", "", "") for name in unnamed)]


def _value(series: SeriesView | None) -> Node:
    if series is None:
        return ""
    is_count = series.unit == "firings" and isinstance(series.last_value, float)
    return html.Button(
        f"{series.last_value:.0f}" if is_count else words.number(series.last_value),
        className="plain",
        title=words.listing([series.metric, f"step {words.step(series.last_step)}"]),
        **{"data-series": str(series.id)},
    )
