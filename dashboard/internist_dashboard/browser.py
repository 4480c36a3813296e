"""What the browser does by itself: the state of the view, kept in stores and in the URL. No request is made for it."""

from typing import Any

import dash
from dash import ClientsideFunction, Input, Output, State


def wire(app: dash.Dash) -> None:
    """Connect the stores of the view with the functions of `assets/board.js`."""

    def connect(function: str, *wiring: Any, initial: bool = False) -> None:
        app.clientside_callback(ClientsideFunction("internist", function), *wiring, prevent_initial_call=not initial)

    connect("start", Output("scheme", "data"), Output("narrow", "data"), Input("mantine", "id"), initial=True)
    connect(
        "switchScheme",
        Output("scheme", "data", allow_duplicate=True),
        Input("theme-button", "n_clicks"),
        State("scheme", "data"),
    )
    connect("paint", Output("mantine", "forceColorScheme"), Input("scheme", "data"), initial=True)
    connect(
        "open",
        Output("window", "data"),
        Output("heat", "data"),
        Output("filter", "data"),
        Output("panel", "data"),
        Output("filter-box", "value"),
        Input("page", "data"),
    )
    connect(
        "filter", Output("filter", "data", allow_duplicate=True), Input("filter-box", "value"), State("filter", "data")
    )
    connect(
        "pickMetric",
        Output("heat", "data", allow_duplicate=True),
        Input("metric", "value"),
        State("heat-shown", "data"),
        State("heat", "data"),
    )
    connect(
        "brush",
        Output("window", "data", allow_duplicate=True),
        Input("loss-graph", "relayoutData"),
        Input("heat-graph", "relayoutData"),
        Input("logit-graph", "relayoutData"),
        Input("optimizer-graph", "relayoutData"),
        Input("reset-zoom", "n_clicks"),
    )
    for chart in ("heat", "logit"):
        connect("unfold", Output(f"{chart}-graph", "figure"), Input(f"{chart}-sent", "data"))
    connect("keepAxis", Output("axis", "className"), Input("axis", "value"))
    connect("windowed", Output("reset-zoom", "hidden"), Input("window", "data"), initial=True)
    connect(
        "pressRow",
        Output("heat", "data", allow_duplicate=True),
        Output("panel", "data", allow_duplicate=True),
        Input("heat-graph", "clickData"),
        State("heat-graph", "figure"),
        State("heat", "data"),
    )
    connect(
        "pressHead",
        Output("panel", "data", allow_duplicate=True),
        Input("logit-graph", "clickData"),
        State("logit-graph", "figure"),
    )
    for page in ("run", "runs", "alerts"):
        connect("headline", Output(f"{page}-headline", "modified_timestamp"), Input(f"{page}-headline", "data"))
    connect("clear", Output("notice", "children", allow_duplicate=True), Input("tick", "data"))
    connect("drawBoard", Output("board", "title"), Input("board-rows", "data"))
    connect("openDrawer", Output("drawer", "opened"), Input("panel", "data"), initial=True)
    connect(
        "closeDrawer", Output("panel", "data", allow_duplicate=True), Input("drawer", "opened"), State("panel", "data")
    )
    connect("detailTick", Output("detail-tick", "data"), Input("tick", "data"), State("panel", "data"))
    connect("openScaling", Output("scaling-view", "data"), Input("page", "data"))
    connect(
        "pickFamily",
        Output("scaling-view", "data", allow_duplicate=True),
        Input("family", "value"),
        State("scaling-shown", "data"),
    )
    connect("fallback", Output("poll", "data"), Input("fallback-clock", "n_intervals"))
    connect("beat", Output("runs-tick", "data"), Input("runs-clock", "n_intervals"))
    connect("beat", Output("alerts-tick", "data"), Input("alerts-clock", "n_intervals"))
