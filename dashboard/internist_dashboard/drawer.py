"""The drawer over a run's page; its callbacks fill it with one series, or with what is measured and what is not."""

import dash_mantine_components as dmc
from dash import dcc, html

from internist_dashboard import figures
from internist_dashboard.components import Node


def drawer() -> Node:
    """The drawer, closed."""
    return dmc.Drawer(
        [
            html.Div(id="detail"),
            dcc.Graph(id="series-graph", config=figures.GRAPH_CONFIG, className="graph", style={"display": "none"}),
            html.Div(id="detail-facts"),
        ],
        id="drawer",
        position="right",
        size="min(100vw, 760px)",
        padding="md",
        title="",
        opened=False,
        keepMounted=True,
        overlayProps={"backgroundOpacity": 0.25},
        closeButtonProps={"aria-label": "Close"},
        returnFocus=True,
    )
