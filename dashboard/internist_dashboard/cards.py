"""The verdict board: six cards, the facts of the run, and the blocks."""

import re
from collections.abc import Sequence
from typing import Any

from dash import html

from internist.schema.conditions import CARDS, State
from internist.schema.coverage import is_missing
from internist.schema.views import BlockVerdict, Card, Coverage, Run, Verdict
from internist_dashboard import components, sparkline, words
from internist_dashboard.components import Node

BoardRow = dict[str, Any]
"""One block as the browser draws it."""
CARD_NAMES = {
    "forward": "Forward",
    "dependency": "Dependency",
    "update": "Update",
    "spectral": "Spectral",
    "attention": "Attention",
    "numeric": "Numeric",
}


def card(answer: Card) -> Node:
    """One of the six: verdict by shape and colour, its basis, its worst member, its trail."""
    count = {"violated": answer.violated, "drifting": answer.drifting}.get(answer.state, 0)
    verdict = words.verdict(answer.state, basis_name=answer.basis, count=count)
    worst = answer.worst
    if answer.state == "ok":
        counted = words.listing(_counts(answer, of=("ok", "not measured")))
        line: Node = html.Span(counted, className="quiet")
    elif worst is not None and worst.series is not None and answer.state != "not measured":
        line = member_button(worst)
    else:
        line = html.Span(worst.reason if worst and worst.reason else "nothing measured", className="quiet")
    drawn = any(value is not None for value in answer.sparkline)
    bars = sparkline.mask(answer.sparkline)
    return html.Section(
        [
            html.Div(
                [
                    components.mark(answer.state),
                    html.H3(CARD_NAMES.get(answer.name, answer.title)),
                    html.Span(verdict, className="card-verdict"),
                ],
                className="card-head",
            ),
            html.Div(line, className="card-line"),
            html.Div(
                className="spark",
                role="img",
                style={"maskImage": bars, "WebkitMaskImage": bars} if drawn else {"visibility": "hidden"},
                **{"aria-label": f"distance of the worst member from its band, last {len(answer.sparkline)} points"},
            ),
        ],
        className=f"card panel is-{words.STATE_CLASSES[answer.state]}",
        title=answer.summary,
        id={"card": answer.name},
    )


def member_button(worst: Verdict) -> Node:
    """The worst member as a button that draws its series: `31× band · blocks.2`."""
    since = "" if worst.since_step is None else f"since step {words.step(worst.since_step)}"
    return html.Button(
        [html.Span(words.where(worst), className="num"), html.Span(since, className="quiet since")],
        className="plain",
        title=words.listing([worst.metric, words.crossed(worst.reason), since]),
        **{"data-series": str(worst.series)},
    )


def facts(run: Run, coverage: Coverage) -> Node:
    """What the run says of itself, in six numbers, with a way to the coverage list."""
    attempts = f"attempt {len(run.attempts)}" if len(run.attempts) > 1 else ""
    rows: list[tuple[str, Node, str]] = [
        ("Loss", words.number(run.loss), "loss, as the run reports it"),
        ("Learning rate", words.number(run.learning_rate), ""),
        ("Step", words.step(run.last_step), attempts),
        ("Speed", words.rate(run.steps_per_second), "optimizer steps per second"),
        ("Monitor", words.share(run.overhead), "share of the run's time that the monitor takes"),
        (
            "Coverage",
            _coverage_button(coverage),
            "share of what could be measured of the model's parts that is",
        ),
    ]
    return html.Dl(
        [html.Div([html.Dt(name), html.Dd(value, className="num")], title=title) for name, value, title in rows],
        className="facts panel",
    )


def board_rows(blocks: Sequence[BlockVerdict], *, pattern: re.Pattern[str] | None = None) -> list[BoardRow]:
    """Blocks x conditions, worst first as the API orders them: the browser draws them, whatever their number."""
    shown = [block for block in blocks if pattern is None or pattern.search(block.name)]
    return [_board_row(block) for block in shown]


def _counts(answer: Card, *, of: tuple[State, ...]) -> list[str]:
    counts: dict[State, int] = {
        "ok": answer.ok,
        "drifting": answer.drifting,
        "violated": answer.violated,
        "not measured": answer.not_measured,
    }
    return [f"{counts[state]} {state}" for state in of if counts[state]]


def _coverage_button(coverage: Coverage) -> Node:
    missing = sum(is_missing(entry.state) for entry in coverage.entries)
    said = f"{missing} missing" if missing else ""
    return html.Button(
        [html.Span(words.share(coverage.share)), html.Span(said, className="quiet since")],
        className="plain",
        id="coverage-button",
        **{"data-panel": "coverage"},
    )


def _board_row(block: BlockVerdict) -> BoardRow:
    worst = block.worst
    known = worst is not None and worst.ratio is not None and worst.state != "not measured"
    return {
        "name": block.name,
        "states": [block.states.get(card, "not measured") for card in CARDS],
        "worst": words.times(worst.ratio) if worst is not None and known else "",
        "state": worst.state if worst is not None else "not measured",
        "series": worst.series if worst is not None else None,
        "title": words.listing([words.subject(worst.subject, worst.index), worst.metric, words.crossed(worst.reason)])
        if worst is not None
        else "",
    }
