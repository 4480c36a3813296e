"""The drawer over a run's page; its callbacks fill it with one series, or with what is measured and what is not."""

import dash_mantine_components as dmc
from dash import html

from internist_dashboard.components import Node
from internist_dashboard.graph import graph


def drawer() -> Node:
    """The drawer, closed."""
    return dmc.Drawer(
        [
            html.Div(id="detail"),
            graph("series-graph", is_hidden=True),
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
