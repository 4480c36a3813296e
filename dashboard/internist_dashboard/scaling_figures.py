"""Drawing of the scaling page: an exponent's interval against its band, and its log-log plot; data in, drawing out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from dash import html

from internist.schema.scaling import MARGIN, ROLE_WORDS, Exponent, FamilyMember
from internist_dashboard import words
from internist_dashboard.components import Node
from internist_dashboard.theme import Palette, Scheme, palette, template

LIMIT = 3.0
"""Exponents beyond this are drawn at the edge: no rule is wrong by more."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
"""One for each size along the other axis: told apart without colour."""
_LEAST = 1.0
_TICK = 0.5


@dataclass(frozen=True, slots=True)
class Span:
    """The exponents that a column of forest marks shows, from `low` to `high`."""

    low: float
    high: float

    def share(self, exponent: float) -> float:
        """Where an exponent lies, from 0 at the left edge to 1 at the right; what is beyond lies at the edge."""
        return (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """Multiples of one half inside."""
        first, last = math.ceil(self.low / _TICK), math.floor(self.high / _TICK)
        return [place * _TICK for place in range(first, last + 1)]


def span_of(exponents: Sequence[Exponent]) -> Span:
    """One span for all rows: every interval and band, at least from -1 to 1, at most to `LIMIT` either way."""
    edges = [-_LEAST, _LEAST]
    for one in exponents:
        edges += [x for x in (_finite(one.low95), _finite(one.high95), _finite(one.exponent)) if x is not None]
        if one.expected is not None:
            edges += [one.expected - MARGIN, one.expected + MARGIN]
    low, high = max(min(edges), -LIMIT), min(max(edges), LIMIT)
    return Span(low - 0.05 * (high - low), high + 0.05 * (high - low))


def forest(one: Exponent, span: Span, *, state: str) -> Node:
    """An exponent with its 95 and 90 % intervals, over the band around what is expected of it.

    Args:
        one: the exponent.
        span: of the whole column.
        state: the CSS class of its verdict.
    """
    marks: list[Node] = []
    if one.expected is not None:
        marks.append(_bar("forest-band", span, one.expected - MARGIN, one.expected + MARGIN))
        marks.append(_bar("forest-expected", span, one.expected, one.expected))
    for name, low, high in (("forest-95", one.low95, one.high95), ("forest-90", one.low90, one.high90)):
        ends = _finite(low), _finite(high)
        if ends[0] is not None and ends[1] is not None:
            marks.append(_bar(f"{name} is-{state}", span, ends[0], ends[1]))
    value = _finite(one.exponent)
    if value is not None:
        marks.append(html.I(className=f"forest-point is-{state}", style={"left": _percent(span.share(value))}))
    return html.Div(marks, className="forest", role="img", **{"aria-label": spoken(one)})


def axis(span: Span) -> Node:
    """The scale over a column of forest marks."""
    ticks = [
        html.Span(signed(tick, digits=1), style={"left": _percent(span.share(tick))}, className="forest-tick")
        for tick in span.ticks
    ]
    return html.Div(ticks, className="forest forest-axis", **{"aria-hidden": "true"})


def spoken(one: Exponent) -> str:
    """The exponent for those who do not see the drawing."""
    low, high = _finite(one.low95), _finite(one.high95)
    interval = "" if low is None or high is None else f", 95 % interval {signed(low)} to {signed(high)}"
    expected = "" if one.expected is None else f", expected {signed(one.expected, digits=1)} ± {MARGIN}"
    return f"exponent {with_interval(one)}{interval}{expected}"


def with_interval(one: Exponent) -> str:
    """`+0.98 ± 0.03`: the exponent and half its 95 % interval."""
    value, low, high = _finite(one.exponent), _finite(one.low95), _finite(one.high95)
    if value is None:
        return "—"
    return signed(value) if low is None or high is None else f"{signed(value)} ± {(high - low) / 2:.2f}"


def signed(value: float, *, digits: int = 2) -> str:
    """An exponent with its sign: `+0.98`, `−0.50`, `0`."""
    rounded = round(value, digits)
    if not rounded:
        return f"{0:.{digits}f}" if digits > 1 else "0"
    return ("+" if rounded > 0 else words.MINUS) + f"{abs(rounded):.{digits}f}"


def loglog(one: Exponent, family: Sequence[FamilyMember], *, scheme: Scheme) -> go.Figure:
    """The quantity of every member against its size, both logarithmic, with the fit and what was expected.

    Where the family's other size varies too, the exponent is the joint fit's; its line runs through the middle of the
    points, and each of the other sizes has a symbol of its own.
    """
    p = palette(scheme)
    figure = _figure(one, scheme)
    points = _points(one, family)
    if not points:
        return figure
    others = sorted({point.other for point in points})
    middle = (fmean(math.log(x.size) for x in points), fmean(math.log(x.value) for x in points))
    ends = (min(x.size for x in points), max(x.size for x in points))
    fit, low, high = _finite(one.exponent), _finite(one.low95), _finite(one.high95)
    if fit is not None and low is not None and high is not None:
        _fan(figure, ends, middle, low, high, p)
    if one.expected is not None:
        _slope(figure, ends, middle, one.expected, {"color": p.muted, "width": 1.5, "dash": "dash"}, name="expected")
    if fit is not None:
        _slope(figure, ends, middle, fit, {"color": p.blue, "width": 2}, name="fit")
    other = "depth" if one.axis == "width" else "width"
    for place, size in enumerate(others):
        here = [point for point in points if point.other == size]
        figure.add_scatter(
            x=[x.size for x in here], y=[x.value for x in here], mode="markers", name=f"{other} {size}",
            customdata=[x.name for x in here],
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8, "color": p.surface,
                    "line": {"color": p.ink, "width": 1.5}},
            hovertemplate=f"<b>%{{customdata}}</b><br>{one.axis} %{{x}}, {other} {size}<br>%{{y:.4~g}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(showlegend=len(others) > 1, annotations=_direct_labels(one, ends, middle, fit, p))
    return figure


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    size: int
    other: int
    value: float


def _points(one: Exponent, family: Sequence[FamilyMember]) -> list[_Point]:
    """Members with a positive value: zero, NaN and infinities have no place on a logarithmic axis."""
    by_name = {member.name: member for member in family}
    found = []
    for name, size, number in zip(one.members, one.sizes, one.values, strict=True):
        value, member = _finite(number), by_name.get(name)
        other = 0 if member is None else member.depth if one.axis == "width" else member.width
        if value is not None and value > 0:
            found.append(_Point(name, size, other, value))
    return found


def _figure(one: Exponent, scheme: Scheme) -> go.Figure:
    sizes = sorted(set(one.sizes)) or [1]
    pad = 0.06 * max(0.3, math.log10(sizes[-1] / sizes[0]))
    return go.Figure(
        layout={
            "template": template(scheme),
            "autosize": True,
            "margin": {"l": 62, "r": 18, "t": 12, "b": 44},
            "dragmode": False,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {
                "type": "log", "title": {"text": one.axis}, "tickvals": sizes, "ticktext": [str(x) for x in sizes],
                "range": [math.log10(sizes[0]) - pad, math.log10(sizes[-1]) + pad], "fixedrange": True,
            },
            "yaxis": {
                "type": "log", "title": {"text": one.label or ROLE_WORDS[one.role]}, "fixedrange": True,
                "tickformat": ".3~g", "nticks": 6,
            },
        }
    )  # fmt: skip


def _slope(
    figure: go.Figure, ends: tuple[int, int], middle: tuple[float, float], slope: float, line: dict[str, Any], *,
    name: str,
) -> None:  # fmt: skip
    figure.add_scatter(
        x=list(ends), y=[_on_line(x, middle, slope) for x in ends], mode="lines", line=line, name=name,
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _fan(
    figure: go.Figure, ends: tuple[int, int], middle: tuple[float, float], low: float, high: float, p: Palette
) -> None:
    """Between the ends of the 95 % interval."""
    steepest = [max(_on_line(x, middle, low), _on_line(x, middle, high)) for x in ends]
    flattest = [min(_on_line(x, middle, low), _on_line(x, middle, high)) for x in ends]
    centre = math.exp(middle[0])
    xs = [ends[0], centre, ends[1]]
    hidden = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    at_centre = math.exp(middle[1])
    figure.add_scatter(x=xs, y=[flattest[0], at_centre, flattest[1]], **hidden)
    figure.add_scatter(x=xs, y=[steepest[0], at_centre, steepest[1]], fill="tonexty", fillcolor=p.band_warn, **hidden)


def _on_line(size: float, middle: tuple[float, float], slope: float) -> float:
    return math.exp(middle[1] + slope * (math.log(size) - middle[0]))


def _direct_labels(
    one: Exponent, ends: tuple[int, int], middle: tuple[float, float], fit: float | None, p: Palette
) -> list[dict[str, Any]]:
    """The lines' names at their right ends; the expected one's at the other end, where they would overlap."""
    labels = []
    if fit is not None:
        labels.append(_label(f"fit {signed(fit)}", ends[1], _on_line(ends[1], middle, fit), p.blue, is_right=True))
    if one.expected is not None:
        y = _on_line(ends[0], middle, one.expected)
        labels.append(_label(f"expected {signed(one.expected, digits=1)}", ends[0], y, p.muted, is_right=False))
    return labels


def _label(text: str, x: float, y: float, colour: str, *, is_right: bool) -> dict[str, Any]:
    return {
        "text": text, "x": math.log10(x), "y": math.log10(y), "xref": "x", "yref": "y", "showarrow": False,
        "xanchor": "right" if is_right else "left", "yanchor": "bottom", "yshift": 4,
        "font": {"size": 11, "color": colour},
    }  # fmt: skip


def _bar(name: str, span: Span, low: float, high: float) -> Node:
    left, right = span.share(low), span.share(high)
    return html.I(className=name, style={"left": _percent(left), "width": _percent(right - left)})


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _finite(value: Any) -> float | None:
    x = words.real(value)
    return x if x is not None and math.isfinite(x) else None
