"""The ranks' part of a run page."""

from typing import Any

import dash
from dash import Input, Output, State

from internist_dashboard import rank_items
from internist_dashboard.api import Api


def register(app: dash.Dash, api: Api) -> None:
    """The panel's callback."""

    @app.callback(  # type: ignore[untyped-decorator]
        Output("ranks", "hidden"),
        Output("ranks-note", "children"),
        Output("rank-rows", "children"),
        Input("tick", "data"),
        State("page", "data"),
    )
    async def draw(_: object, page: dict[str, Any]) -> Any:
        ranks = await api.ranks(page["run"], limit=rank_items.SHOWN_RANKS)
        if ranks.world_size < 2:
            return True, "", None
        return False, rank_items.summary(ranks), rank_items.table(ranks)
