"""The ranks' panel of a run page: who is silent, who is behind, who is unlike the others."""

from typing import Final

from dash import html

from internist.schema.views import Ranks, RankView
from internist_dashboard import components, words
from internist_dashboard.components import Node

SHOWN_RANKS: Final = 32
"""Those first that something is to be said of; all of them are told by the API."""
_UNLIKE: Final = {"loss": "loss", "gradient.global_norm": "gradients", "weight.replicas_differ": "weights"}
_SLOW: Final = "monitor.step_ms"


def panel() -> Node:
    """The panel, hidden while a run has one rank alone."""
    body = html.Div(id="rank-rows")
    return html.Div(
        components.panel("Ranks", body, aside=html.Span(id="ranks-note", className="quiet")), id="ranks", hidden=True
    )


def summary(ranks: Ranks) -> str:
    """How many there are, and what is to be said of them in numbers."""
    return words.listing(
        [
            words.plural(ranks.world_size, "rank"),
            f"{ranks.unseen} never seen" if ranks.unseen else "",
            f"{ranks.silent} silent" if ranks.silent else "",
            f"{ranks.unlike} unlike the others" if ranks.unlike else "",
        ]
    )


def table(ranks: Ranks) -> Node:
    """One row a rank."""
    heads = ("rank", "state", "what is to be said", "heard", "step", "loss", "gradient norm", "ms a step", "ms waited")
    rows = [
        html.Tr(
            [
                html.Th(str(one.rank), scope="row", title=_place(one)),
                html.Td(one.state),
                html.Td(said(one), className="wide"),
                html.Td(components.age(one.heard_at_ms, ranks.server_time_ms)),
                html.Td(words.step(one.step), className="num"),
                html.Td(words.number(one.loss), className="num"),
                html.Td(words.number(one.gradient_norm), className="num"),
                html.Td(words.number(one.step_ms), className="num"),
                html.Td(words.number(one.waited_ms), className="num"),
            ]
        )
        for one in ranks.ranks[:SHOWN_RANKS]
    ]
    more = ranks.world_size - ranks.unseen - len(rows)
    named = ", ".join(map(str, ranks.first_unseen)) + (", …" if ranks.unseen > len(ranks.first_unseen) else "")
    return html.Div(
        [
            html.Table(
                [html.Thead(html.Tr([html.Th(head, scope="col") for head in heads])), html.Tbody(rows)],
                className="routing",
            ),
            html.P(f"and {more} more, of which nothing is to be said before these", className="quiet pad")
            if more > 0
            else None,
            html.P(f"never seen: {named}", className="quiet pad") if ranks.unseen else None,
        ],
        className="routing-scroll",
        tabIndex=0,
        role="region",
        **{"aria-label": "ranks"},
    )


def said(rank: RankView) -> str:
    """What is to be said of a rank; empty where it is as it should be."""
    unlike = [_UNLIKE.get(metric, metric) for metric in rank.unlike if metric != _SLOW]
    return words.listing(
        [
            f"{', '.join(unlike)} unlike the others'" if unlike else "",
            "slower than the others" if _SLOW in rank.unlike else "",
            f"{words.plural(rank.behind, 'step')} behind" if rank.behind else "",
            f"pauses: {rank.pause}" if rank.pause else "",
            f"frames refused: {rank.refusal}" if rank.refusal else "",
        ]
    )


def _place(rank: RankView) -> str:
    return words.listing(f"{name} {place}" for name, place in rank.mesh.items())
