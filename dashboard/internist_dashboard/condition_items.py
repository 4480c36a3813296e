"""What a condition asks, in words, and a picture of a run that leaves it, drawn as the board draws any series."""

import math
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go
from dash import dcc, html

from internist.schema.conditions import BASELINE_CRITICAL, CONDITIONS, CRITERIA, FOLLOWED_PAIR, Condition, Criterion
from internist.schema.metrics import METRICS
from internist.schema.views import Number
from internist.schema.windows import Band, Points, SeriesView
from internist.schema.wire import Facts
from internist_dashboard import components, figures, words
from internist_dashboard.components import Node
from internist_dashboard.frame import Frame
from internist_dashboard.links import link

STEPS: Final = range(0, 610, 10)
BREAKS: Final = 310
"""The step of the picture at which something goes wrong."""
_CENTRE: Final = 1.0
_APPLIES: Final = {
    "always": "in every run",
    "mup": "in runs that declare a μP or spectral parametrisation",
    "muon": "for updates that are orthogonalised",
}

_SCALES: Final = {
    "one": "",
    "inverse_root_rank": " times 1/√rank",
    "followed_pair": f" times {FOLLOWED_PAIR:g} where the pair is followed (retract)",
}
"""What the edges of a target are multiplied by."""


@dataclass(frozen=True, slots=True)
class Edges:
    """A band as the picture has it."""

    centre: float
    warning: float | None
    critical: float | None
    low: float | None = None


def index() -> Node:
    """All conditions, a line each."""
    rows = [
        html.Tr([html.Th(_link(one), scope="row"), html.Td(one.card), html.Td(words.crossed(one.summary))])
        for one in CONDITIONS
    ]
    heads = html.Tr([html.Th(head, scope="col") for head in ("condition", "card", "what must hold")])
    return components.panel(
        "Conditions", html.Table([html.Thead(heads), html.Tbody(rows)], className="routing conditions")
    )


def told(condition: Condition) -> list[Node]:
    """What must hold, what is wrong when it does not, what to try first, and what is judged by which band."""
    criteria = _criteria(condition)
    siblings = [one for one in CONDITIONS if one.card == condition.card and one is not condition]
    also: list[Node] = [html.Span("On the same card: ", className="quiet")] if siblings else []
    for place, one in enumerate(siblings):
        also += [" · " if place else "", _link(one)]
    return [
        html.P(words.crossed(condition.summary), className="condition-summary"),
        components.definition(
            [
                ("When it does not hold", f"{condition.fault}."),
                ("Try first", f"{condition.advice[0].upper()}{condition.advice[1:]}."),
                ("Is only a sign", "that it is well says nothing of its card" if condition.is_sign else ""),
            ]
        ),
        html.Ul([html.Li(_judged_by(one)) for one in criteria], className="condition-criteria"),
        html.P(also),
    ]


def picture(condition: Condition, frame: Frame) -> go.Figure:
    """A series that keeps the condition until a step, and then does not."""
    criteria = _criteria(condition)
    if not criteria:
        return figures.empty("No metric of its own: it is judged by what the run declares.", frame)
    criterion = criteria[0]
    edges = edges_of(criterion)
    return figures.series(_example(criterion, edges), [], frame)


def edges_of(criterion: Criterion) -> Edges:
    """The band that a criterion asks for: its target, else what a baseline of one makes of it."""
    target = criterion.target
    if target is not None:
        return Edges(target.warn_above / 3 or 0.0, target.warn_above, target.critical_above)
    low = _CENTRE / BASELINE_CRITICAL if criterion.two_sided or criterion.vanishing is not None else None
    return Edges(_CENTRE, None, _CENTRE * BASELINE_CRITICAL, low)


def _example(criterion: Criterion, edges: Edges) -> Points:
    metric = METRICS[criterion.metric]
    values = [_value(step, criterion, edges) for step in STEPS]
    many = len(values)
    band = Band(
        "target" if criterion.target else "baseline", (edges.centre,) * many, (None,) * many, (edges.warning,) * many,
        (edges.low,) * many, (edges.critical,) * many,
    )  # fmt: skip
    view = SeriesView(
        0, metric.name, metric.unit, metric.kind, "example", None, "exact", Facts(), STEPS[-1], values[-1]
    )
    shown = tuple(values)
    return Points(view, tuple(STEPS), tuple(STEPS), shown, shown, shown, (0,) * many, band, False)


def _value(step: int, criterion: Criterion, edges: Edges) -> Number:
    wave = 1 + 0.08 * math.sin(step / 17) + 0.05 * math.sin(step / 5.3)
    gone = max(0.0, (step - BREAKS) / (STEPS[-1] - BREAKS))
    if criterion.vanishing is not None:
        return float(edges.centre * wave * (edges.low or _CENTRE) ** (1.6 * gone))
    top = 2 * (edges.critical or edges.warning or 1.0)
    start = edges.centre or top / 8
    if edges.warning == 0:  # a count: none is well, one is too many
        return 3.0 if step >= BREAKS else 0.0
    return float(start * wave * (top / start) ** gone)


def _judged_by(criterion: Criterion) -> list[Node]:
    metric = METRICS[criterion.metric]
    return [
        html.Strong(metric.name),
        f": {words.crossed(metric.summary)} ",
        html.Span(_band(criterion), className="quiet"),
    ]


def _band(criterion: Criterion) -> str:
    said = []
    target = criterion.target
    if target is not None and target.critical_above == 0:
        said.append("One is too many.")
    elif target is not None:
        violated = "" if target.critical_above is None else f", violated over {target.critical_above:g}"
        scale = _SCALES[target.times]
        said.append(
            f"Drifting over {target.warn_above:g}{violated}{scale}, {_APPLIES[target.applies_when]} ({target.source})."
        )
    if criterion.recent is not None:
        said.append("Judged at every step by its own last values.")
    elif criterion.vanishing is not None:
        said.append("Violated where next to nothing is left of its own earlier value.")
    elif criterion.baseline:
        sides = f"more than {BASELINE_CRITICAL:g} times"
        sides += f", or less than 1/{BASELINE_CRITICAL:g} of," if criterion.two_sided else ""
        said.append(f"Without a target violated at {sides} its own earlier value.")
    return " ".join(said)


def _criteria(condition: Condition) -> list[Criterion]:
    return [one for one in CRITERIA if one.condition == condition.name]


def _link(condition: Condition) -> Node:
    return dcc.Link(condition.title, href=link(f"/conditions/{condition.name}"), className="link")
