"""The place of a chart, until its callback draws it."""

from typing import Any, Final

from dash import dcc

from internist_dashboard import figures
from internist_dashboard.components import Node

HEIGHT: Final = 160
_BLANK: Final[dict[str, Any]] = {
    "layout": {
        "height": HEIGHT,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"visible": False},
        "yaxis": {"visible": False},
    }
}
"""Without a figure of its own a chart begins with axes, which cost as much as those that follow."""


def graph(name: str, *, is_hidden: bool = False) -> Node:
    """An empty chart: its callback draws it, and shows it where it is hidden."""
    style = {"style": {"display": "none"}} if is_hidden else {}
    return dcc.Graph(id=name, config=figures.GRAPH_CONFIG, className="graph", figure=_BLANK, **style)
