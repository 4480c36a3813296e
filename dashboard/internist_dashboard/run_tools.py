"""What a run's page offers beside its charts: which metric, which steps, told in what, and a word when nobody looks."""

from typing import Final

import dash_mantine_components as dmc
from dash import html

from internist.schema.conditions import CRITERIA
from internist.schema.metrics import METRICS
from internist_dashboard import components, words
from internist_dashboard.axis import AXES
from internist_dashboard.components import Node
from internist_dashboard.links import link

_ZOOM: Final = (("in", "+", "zoom in"), ("out", "\u2212", "zoom out"), ("earlier", "\u2039", "earlier steps"),
                ("later", "\u203a", "later steps"))  # fmt: skip


def axis_tools(axis: str | None) -> Node:
    """How far the charts are zoomed, and what their common axis is told in."""
    choices = [{"value": name, "label": said} for name, said in AXES.items()]
    picked = axis if axis in AXES else "step"
    buttons = [
        html.Button(sign, className="plain", title=said, **{"data-zoom": way, "aria-label": said, "type": "button"})
        for way, sign, said in _ZOOM
    ]
    return html.Span(
        [
            html.Button("reset zoom", id="reset-zoom", className="plain link", hidden=True),
            html.Span("drag to zoom all charts, double click to reset", className="quiet hint"),
            html.Span(buttons, className="zoom-buttons"),
            dmc.SegmentedControl(id="axis", data=choices, value=picked, size="xs", **{"aria-label": "axis"}),
        ],
        className="axis-tools",
    )


def metric_picker() -> Node:
    """The metric of the heat map, and what it is."""
    select = dmc.Select(
        id="metric", data=[], size="xs", allowDeselect=False, searchable=True, checkIconPosition="right", w=230,
        **{"aria-label": "metric of the heat map"},
    )  # fmt: skip
    asks = html.Button("?", className="tip-button", **{"aria-label": "what this metric is", "type": "button"})
    tip = components.explained(asks, html.Span(id="metric-told"))
    return html.Div([select, tip], className="heat-tools")


def told(metric: str) -> list[Node]:
    """What a metric is, and the way to the page of what it is judged by."""
    known = METRICS.get(metric)
    condition = next((one.condition for one in CRITERIA if one.metric == metric), None)
    said: list[Node] = [words.crossed(known.summary) if known else "A value that the run reports."]
    if condition is not None:
        said += [" ", html.A("How it is judged", href=link(f"/conditions/{condition}"), className="link")]
    return said


def notify_button() -> Node:
    """Asks the browser to tell of this run while nobody looks at it; shown where the browser can."""
    return html.Button("notify me", id="notify-button", className="plain link", hidden=True, type="button")
