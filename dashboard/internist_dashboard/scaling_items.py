"""The pieces of the scaling page: what is wrong in sentences, and a row for every exponent; pure."""

from collections.abc import Sequence

from dash import html

from internist.schema.conditions import State
from internist.schema.scaling import (
    ROLE_WORDS,
    Axis,
    Cause,
    Diagnosis,
    Excluded,
    Exponent,
    ScalingFamily,
    ScalingReport,
    ScalingVerdict,
)
from internist_dashboard import components, scaling_figures, words
from internist_dashboard.components import Node
from internist_dashboard.filters import Filter
from internist_dashboard.links import link

STATES: dict[ScalingVerdict, State] = {"PASS": "ok", "FAIL": "violated", "INCONCLUSIVE": "drifting"}
"""A verdict's shape and colour are those of the run page."""
AXES: tuple[Axis, ...] = ("width", "depth")
WINDOWS = {"init": "first sample", "early": "first rounds", "late": "last quarter"}
_WORST_FIRST: dict[ScalingVerdict, int] = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}


def key(one: Exponent) -> str:
    """Names an exponent in the URL: `width.hidden.early.update.own_mean`."""
    return f"{one.axis}.{one.role}.{one.window}.{one.metric}"


def label(one: Exponent) -> str:
    """What grows, in words: `hidden matrices`, `logits' change`."""
    return one.label or ROLE_WORDS[one.role]


def worst_first(exponents: Sequence[Exponent]) -> list[Exponent]:
    """Judged ones before the others, failures before what cannot be told, each in the report's order."""
    return sorted(exponents, key=lambda one: (not one.judged, _WORST_FIRST[one.verdict] if one.judged else 0))


def chosen(report: ScalingReport, wanted: str | None) -> Exponent | None:
    """The exponent that a key names; else the worst; None where there is none."""
    ordered = worst_first(report.exponents)
    named = (one for one in ordered if key(one) == wanted)
    return next(named, ordered[0] if ordered else None)


def sentence(report: ScalingReport) -> Node:
    """The verdict and the whole in one sentence."""
    state = STATES[report.verdict]
    return html.Div(
        [
            components.mark(state, title=report.verdict),
            html.P([html.Strong(report.verdict), html.Span(report.summary)], className="sentence-text"),
        ],
        className=f"sentence is-{words.STATE_CLASSES[state]}",
        role="status",
    )


def diagnoses(report: ScalingReport) -> Node:
    """What is wrong, most likely first, each with the mistakes that would look the same."""
    if not report.diagnoses:
        calm = (
            "None: nothing is off."
            if report.verdict == "PASS"
            else "None: no known mistake explains what is off."
            if report.verdict == "FAIL"
            else "None: nothing is known to be off."
        )
        return html.P(calm, className="quiet")
    return html.Ol([_diagnosis(one) for one in report.diagnoses], className="diagnoses")


def tables(report: ScalingReport, *, open_row: str | None, pattern: Filter | None) -> Node:
    """A table for width and one for depth, worst first; what is not judged is folded."""
    span = scaling_figures.span_of(report.exponents)
    parts: list[Node] = []
    for axis in AXES:
        members = [
            one
            for one in worst_first([one for one in report.exponents if one.axis == axis])
            if pattern is None or pattern.search(f"{label(one)} {one.metric} {one.window} {one.verdict}")
        ]
        judged, others = [one for one in members if one.judged], [one for one in members if not one.judged]
        if not members:
            continue
        sizes = sorted({size for one in members for size in one.sizes})
        parts.append(
            components.panel(
                f"Against {axis}",
                _table(judged, span, open_row=open_row) if judged else None,
                _folded(others, span, open_row=open_row) if others else None,
                aside=html.Span(f"{axis} {', '.join(map(str, sizes))}", className="quiet num"),
                class_name="area-exponents",
            )
        )
    return html.Div(parts or [html.P("No exponent matches the filter.", className="quiet pad")], className="exponents")


def family_facts(report: ScalingReport) -> Node:
    """The members of the fit, smallest first, and who was left out and why."""
    members = [
        html.Li(
            [
                html.A(one.name, href=link(f"/runs/{one.run}"), className="run-name")
                if one.run
                else html.Span(one.name),
                html.Span(
                    words.listing(
                        [
                            f"width {one.width}",
                            f"depth {one.depth}",
                            "" if one.seed is None else f"seed {one.seed}",
                            one.optimizer,
                        ]
                    ),
                    className="quiet num",
                ),
            ]
        )
        for one in report.family
    ]
    excluded = [
        html.Li(
            [
                html.Span([components.mark("not measured", title="left out"), " ", one.name or one.run]),
                html.Span(f"left out: {one.reason}", className="quiet"),
            ]
        )
        for one in report.excluded
    ]
    return html.Ul([*excluded, *members], className="members")


def options(families: Sequence[ScalingFamily]) -> list[dict[str, str | bool]]:
    """The families to pick from; those that cannot be checked say what is missing."""
    return [
        {
            "value": one.id,
            "label": words.listing([one.name, words.plural(len(one.runs), "run"), "" if one.checkable else one.reason]),
            "disabled": not one.checkable,
        }
        for one in families
    ]


def plot_head(one: Exponent) -> Node:
    """What is drawn: the quantity, its exponent in large, and its verdict with the reason."""
    state: State = STATES[one.verdict] if one.judged else "not measured"
    return html.Div(
        [
            html.P(
                [
                    html.Strong([label(one), html.Span(one.metric, className="quiet metric")]),
                    html.Span(scaling_figures.with_interval(one), className="num big"),
                ],
                className="series-head",
            ),
            html.P(
                [
                    components.mark(state),
                    html.Span(
                        words.listing(
                            [one.verdict if one.judged else "not judged", WINDOWS[one.window], f"in {one.axis}"]
                        )
                    ),
                    html.Span(one.reason, className="quiet") if one.reason else None,
                ],
                className="plot-verdict",
            ),
        ],
        className="plot-head",
    )


def choice(families: Sequence[ScalingFamily], excluded: Sequence[Excluded]) -> Node:
    """No family is chosen: those there are, as buttons; without any that can be checked, what is missing."""
    checkable = [one for one in families if one.checkable]
    short = [(one.name, one.reason) for one in families if not one.checkable]
    missing = html.Ul([_line(name, why) for name, why in short + [(one.name, one.reason) for one in excluded]])
    if checkable:
        body: list[Node] = [
            html.H1("Which family?"),
            html.P("Runs of one project that differ in width, depth and seed alone are checked together."),
            html.Ul([html.Li(_button(one)) for one in checkable], className="families"),
        ]
    else:
        body = [
            html.H1("No family yet"),
            html.P(
                "The scaling check compares runs of one project that differ in width or depth, and in nothing else "
                "but the seed. It needs three widths or three depths. A few steps of each will do:"
            ),
            components.code(_EXAMPLE, "scaling-lines"),
        ]
    if short or excluded:
        body += [html.H2("Cannot be checked yet"), missing]
    return html.Section(body, className="empty panel")


_EXAMPLE = 'internist.watch(model, optimizer, project="sizes", config={"seed": 0}, every=1)'


def _button(one: ScalingFamily) -> Node:
    sizes = [f"width {_listed(one.widths)}", f"depth {_listed(one.depths)}", words.plural(len(one.runs), "run")]
    return html.Button(
        [html.Span(one.name, className="run-name"), html.Span(words.listing(sizes), className="quiet num")],
        className="plain",
        **{"data-family": one.id},
    )


def _line(name: str, why: str) -> Node:
    return html.Li([html.Span(name), html.Span(why, className="quiet since")])


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _diagnosis(one: Diagnosis) -> Node:
    explained = f"explains {', '.join(one.explains)}" if one.explains else ""
    several = len(one.causes) > 1
    causes = [
        html.Li([html.Span(cause.sentence) if several else None, html.Span(_told(cause), className="quiet evidence")])
        for cause in one.causes
    ]
    return html.Li(
        [
            html.P(one.sentence, className="diagnosis"),
            html.P(explained, className="quiet hint") if explained else None,
            html.P("These look the same in every exponent; what tells them apart:", className="hint")
            if several
            else None,
            html.Ul(causes, className="causes"),
        ]
    )


def _told(cause: Cause) -> str:
    """What the runs recorded of the fact that shows a cause."""
    return f"{cause.fact}: {cause.evidence}" if cause.evidence else f"not recorded: {cause.fact}"


def _table(exponents: Sequence[Exponent], span: scaling_figures.Span, *, open_row: str | None) -> Node:
    heads: list[tuple[Node, str]] = [
        ("", "cell-mark"),
        ("quantity", ""),
        ("when", ""),
        (scaling_figures.axis(span), "cell-forest"),
        ("exponent", "right"),
        ("expected", "right cell-minor"),
        ("verdict", "cell-verdict-word"),
    ]
    head = html.Tr([html.Th(name, scope="col", className=kind) for name, kind in heads])
    body = [_row(one, span, is_open=key(one) == open_row) for one in exponents]
    return html.Table([html.Thead(head), html.Tbody(body)], className="scaling")


def _folded(exponents: Sequence[Exponent], span: scaling_figures.Span, *, open_row: str | None) -> Node:
    return html.Details(
        [
            html.Summary(f"{len(exponents)} more, shown but not judged"),
            _table(exponents, span, open_row=open_row),
        ],
        className="folded",
        open=any(key(one) == open_row for one in exponents),
    )


def _row(one: Exponent, span: scaling_figures.Span, *, is_open: bool) -> Node:
    state: State = STATES[one.verdict] if one.judged else "not measured"
    verdict = one.verdict if one.judged else "not judged"
    expected = "—" if one.expected is None else scaling_figures.signed(one.expected, digits=1)
    bends = html.Span("bends", className="bends", title="The points bend: larger sizes may differ.")
    name = html.Button(
        [html.Span(label(one)), html.Span(one.metric, className="quiet")],
        className="plain quantity",
        **{"data-exponent": key(one), "aria-expanded": "true" if is_open else "false"},
    )
    cells: list[tuple[Node, str]] = [
        (components.mark(state, title=verdict), "cell-mark"),
        ([name, None if one.judged else html.Span(one.reason, className="quiet reason")], "cell-quantity"),
        (html.Span(one.window, title=WINDOWS[one.window]), "quiet"),
        (scaling_figures.forest(one, span, state=words.STATE_CLASSES[state]), "cell-forest"),
        (scaling_figures.with_interval(one), "num right"),
        (expected, "num right quiet cell-minor"),
        ([verdict, bends if one.curvature_warning else None], f"cell-verdict-word is-{words.STATE_CLASSES[state]}"),
    ]
    return html.Tr(
        [html.Td(content, className=kind) for content, kind in cells],
        className="is-open" if is_open else "",
        **{"data-exponent": key(one)},
    )
