"""The verdict board: six cards, the facts of the run, and the blocks."""

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from internist.schema.conditions import CARDS, CONDITION, CRITERIA
from internist.schema.coverage import is_missing
from internist.schema.views import BlockVerdict, Card, Coverage, Run, Verdict
from internist_dashboard import components, sparkline, words
from internist_dashboard.components import Node
from internist_dashboard.filters import Filter
from internist_dashboard.links import link

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


def card(answer: Card, *, is_over: bool = False) -> Node:
    """One of the six: verdict by shape and colour, its basis, its worst member, how many stand behind it, its trail.

    Args:
        answer: what the judge says.
        is_over: whether the run has ended, so that nothing is to come.
    """
    members = answer.ok + answer.drifting + answer.violated + answer.not_measured
    count = {"violated": answer.violated, "drifting": answer.drifting}.get(answer.state, 0)
    verdict = words.verdict(answer.state, basis_name=answer.basis, count=count, of=members)
    worst = answer.worst
    line: list[Node] = []
    if answer.state == "not measured":
        line.append(html.Span(_why_not(answer), className="quiet"))
    elif answer.state == "ok":
        line.append(html.Span(_behind(answer), className="quiet"))
        if worst is not None and worst.crossing_step is not None and not is_over:
            line.append(_forecast(worst))
    elif worst is not None and worst.series is not None:
        line.append(member_button(worst))
    drawn = any(value is not None for value in answer.sparkline)
    bars = sparkline.mask(answer.sparkline)
    return html.Section(
        [
            html.Div(
                [
                    components.mark(answer.state),
                    html.H2(_explained(answer)),
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
        id={"card": answer.name},
    )


def _explained(answer: Card) -> Node:
    """The card's name, which leads to what it means."""
    name = CARD_NAMES.get(answer.name, answer.title)
    first = next((one.name for one in CONDITION.values() if one.card == answer.name), None)
    if first is None:
        return name
    told = dcc.Link(name, href=link(f"/conditions/{first}"), className="card-name")
    return components.explained(told, words.crossed(answer.summary))


def member_button(worst: Verdict) -> Node:
    """The worst member as a button that draws its series: `31× band · blocks.2`."""
    since = "" if worst.since_step is None else f"since step {words.step(worst.since_step)}"
    return html.Button(
        [html.Span(words.where(worst), className="num"), html.Span(since, className="quiet since")],
        className="plain card-member",
        title=words.listing([worst.metric, words.crossed(worst.reason), since, worst.how_sure]),
        **{"data-series": str(worst.series)},
    )


def facts(run: Run, coverage: Coverage) -> Node:
    """What the run says of itself, in six numbers, with a way to the coverage list."""
    attempts = f"attempt {len(run.attempts)}" if len(run.attempts) > 1 else ""
    titles = {
        "loss": "loss, as the run reports it",
        "step": attempts,
        "speed": "optimizer steps per second",
        "monitor": "share of the run's time that the monitor takes",
        "coverage": "share of what could be measured of the model's parts that is",
    }
    shown: dict[str, Node] = {**told(run), "coverage": _coverage_button(coverage)}
    return html.Dl(
        [
            html.Div(
                [html.Dt(FACT_NAMES[key]), html.Dd(value, className="num", id=f"fact-{key}")], title=titles.get(key, "")
            )
            for key, value in shown.items()
        ],
        className="facts panel",
    )


FACT_NAMES = {
    "loss": "Loss",
    "rate": "Learning rate",
    "step": "Step",
    "speed": "Speed",
    "monitor": "Monitor",
    "coverage": "Coverage",
}


def told(run: Run) -> dict[str, str]:
    """The numbers that change with every tick, in words, by the names of `FACT_NAMES`."""
    return {
        "loss": words.number(run.loss),
        "rate": words.number(run.learning_rate),
        "step": words.step(run.last_step),
        "speed": words.rate(run.steps_per_second),
        "monitor": words.share(run.overhead),
    }


def board_rows(blocks: Sequence[BlockVerdict], *, pattern: Filter | None = None) -> list[BoardRow]:
    """Blocks x conditions, worst first as the API orders them: the browser draws them, whatever their number."""
    shown = [block for block in blocks if pattern is None or pattern.search(block.name)]
    return [_board_row(block) for block in shown]


def _behind(answer: Card) -> str:
    """How many members stand behind a card that is well."""
    if not answer.not_measured:
        return f"{words.plural(answer.ok, 'member')}, all judged"
    return f"{answer.ok} of {words.plural(answer.ok + answer.not_measured, 'member')} judged"


def _why_not(answer: Card) -> str:
    """Why nothing of a card is judged: what the judge says, or what would have to be measured."""
    if answer.worst is not None and answer.worst.reason:
        counted = words.plural(answer.not_measured, "member")
        return f"{counted}: {words.crossed(answer.worst.reason)}"
    conditions = {name for name, condition in CONDITION.items() if condition.card == answer.name}
    metrics = dict.fromkeys(one.metric for one in CRITERIA if one.condition in conditions)
    asked = " or ".join(list(metrics)[:2])
    return f"this run sends no {asked}" if asked else "nothing of it is measured"


def _forecast(worst: Verdict) -> Node:
    return html.Button(
        f"{words.subject(worst.subject, worst.index)} leaves its band near step {words.step(worst.crossing_step)} "
        "if this goes on",
        className="plain card-member since",
        **{"data-series": str(worst.series)},
    )


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
    if worst is not None and worst.state == "ok" and worst.basis == "target":
        known = (
            False  # how far something is from a limit that it keeps, on either side, is no distance from what is well
        )
    return {
        "name": block.name,
        "states": [block.states.get(card) for card in CARDS],
        "worst": words.times(worst.ratio) if worst is not None and known else "",
        "state": worst.state if worst is not None else "not measured",
        "series": worst.series if worst is not None else None,
        "title": words.listing(
            [
                words.subject(worst.subject, worst.index),
                worst.metric,
                words.without_forecast(words.crossed(worst.reason)),
            ]
        )
        if worst is not None
        else "",
    }
