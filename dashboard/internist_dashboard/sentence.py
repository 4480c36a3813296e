"""The sentence on top of a run's page: how the run lives where that is amiss, else the worst thing the judge knows."""

from collections.abc import Sequence
from typing import Final, get_args

from dash import html

from internist.schema.alerts import Alert
from internist.schema.conditions import State
from internist.schema.rules import RUN_RULES
from internist.schema.views import Run, Verdicts
from internist.schema.wire import Outcome
from internist_dashboard import components, story, words
from internist_dashboard.components import Node

ADVICE: Final = {rule.state: rule.advice for rule in RUN_RULES}
"""Where to look first, by the state that a run is in. What has such advice is told before any verdict."""

ENDED: Final = get_args(Outcome)
"""States of runs that are over."""


def of_run(run: Run, verdicts: Verdicts, alerts: Sequence[Alert] = ()) -> Node:
    """How the run lives where that is amiss, then what the judge says: as news, or as a last word; then, as alerts tell
    it, how it came about."""
    said, advice, more = _parts(verdicts.sentence or run.sentence)
    if verdicts.state in ("violated", "drifting"):
        ended = run.last_step if run.state in ENDED else None
        came_about = story.told(alerts, condition=said.partition(" — ")[0], ended=ended)
        more = " ".join(part for part in (came_about, more) if part)
    if run.state in ADVICE:
        judged = words.listing([_as_of(verdicts), verdicts.state, said])
        return _line(
            components.life_mark(run.state),
            [html.Strong(run.state), html.Span(_life(run)), html.Span(f"  {judged}", className="quiet")],
            "drifting",
            ("Look at: ", ADVICE[run.state]),
        )
    if run.state == "finished":
        ending = html.Span(f"Finished at step {words.step(run.last_step)}. ", className="quiet")
        return verdict(verdicts.state, words.without_forecast(said), "", more, before=ending)
    pause = f" The run is {run.state_reason}." if run.state_reason else ""
    return verdict(verdicts.state, said, advice, more + pause)


def verdict(state: State, said: str, advice: str, more: str = "", *, before: Node = None) -> Node:
    """A verdict in words, and what to try: grey when all is well."""
    loud = html.Strong(state) if state in ("violated", "drifting") else None
    text = [before, loud, html.Span(said), html.Span(f" {more}", className="quiet") if more else None]
    return _line(components.mark(state), text, state, ("Try: ", advice) if advice else None)


def _line(mark: Node, text: list[Node], state: State, aside: tuple[str, str] | None) -> Node:
    beside = None if aside is None else [html.Span(aside[0], className="quiet"), aside[1]]
    return html.Div(
        [mark, html.P(text, className="sentence-text"), html.Div(beside, className="sentence-aside")],
        className=f"sentence is-{words.STATE_CLASSES[state]}",
        role="status",
    )


def _parts(text: str) -> tuple[str, str, str]:
    """What the judge says, what to try, and what else there is."""
    said, _, rest = words.crossed(text).partition(" Try: ")
    advice, _, more = rest.partition(". ")
    return said, advice.rstrip("."), more


def _life(run: Run) -> str:
    """What is known of a run that does not live as it should, as a sentence."""
    if run.state_reason:
        return run.state_reason[0].upper() + run.state_reason[1:] + "."
    return f"It ended at step {words.step(run.last_step)}."


def _as_of(verdicts: Verdicts) -> str:
    return "Nothing was judged" if verdicts.step is None else f"Last judged at step {words.step(verdicts.step)}"
