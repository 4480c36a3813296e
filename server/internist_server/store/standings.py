"""How runs stand, in one narrow row each: what lists show, and when time alone brings something."""

from dataclasses import dataclass, fields
from typing import Final, cast

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.orm import Session

from internist.schema.conditions import State
from internist.schema.rules import LOST_AFTER_S
from internist.schema.views import RunState
from internist_server.store.attempts import Attempt, newest_attempt
from internist_server.store.evidence import evidence_of, is_measured
from internist_server.store.judgements import JudgeState, Summary, load_state
from internist_server.store.ranks import list_ranks
from internist_server.store.roster import Roster
from internist_server.store.tables import StandingRow
from internist_server.store.vitals import (
    Vitals,
    heard_at_ms,
    last_contact_ms,
    step_reached,
    vitals_at,
    vitals_when_heard,
)

_STANDINGS: Final = cast(Table, StandingRow.__table__)
_SAVE: Final = (
    _STANDINGS.update().where(_STANDINGS.c.run_id == bindparam("of_run")).values(cursor=_STANDINGS.c.cursor + 1)
)
"""Of the table, and made once: every request saves one."""
NOTHING_DUE: Final = -1


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands by its newest attempt, until something new comes of it."""

    attempt_id: int
    state: RunState
    reason: str
    contact_ms: int
    reached: int
    last_step: int | None
    last_frame_at_ms: int | None
    heartbeat_at_ms: int | None
    step_ms: float | None
    verdict: State
    sentence: str
    violated: int
    drifting: int
    loss: float | None
    learning_rate: float | None
    overhead: float | None
    coverage: float | None

    def vitals(self, now_ms: int, *, since_ms: int = 0) -> Vitals:
        """The state of the run now, and why; `since_ms`: since when the server listens."""
        heard = Vitals(self.state, self.reason)
        return vitals_at(heard, contact_ms=self.contact_ms, step=self.reached, now_ms=now_ms, since_ms=since_ms)


_FIELDS: Final = tuple(field.name for field in fields(Standing))


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest attempt of a run, with what its standing follows from."""

    attempt: Attempt
    ranks: Roster
    judge: JudgeState

    @property
    def is_live(self) -> bool:
        """Whether a client was ever live on it: one that is only shipped afterwards is not lost."""
        return self.ranks.was_live

    def vitals(self, now_ms: int, *, since_ms: int = 0) -> Vitals:
        """Its state now, and why; `since_ms`: since when the server listens."""
        contact_ms, step = last_contact_ms(self.attempt, self.ranks), step_reached(self.ranks)
        return vitals_at(self._heard(), contact_ms=contact_ms, step=step, now_ms=now_ms, since_ms=since_ms)

    def lost_at_ms(self, now_ms: int, *, since_ms: int = 0) -> int | None:
        """When it will be lost if nothing is heard of it any more; None: never, or it is."""
        if not self.is_live or self._heard().state not in ("live", "stalled"):
            return None
        contact_ms = last_contact_ms(self.attempt, self.ranks)
        at_ms = heard_at_ms(contact_ms, now_ms=now_ms, since_ms=since_ms) + int(LOST_AFTER_S * 1000) + 1
        return at_ms if at_ms > now_ms else None

    def standing(self, *, is_measured: bool) -> Standing:
        """How the run stands; `is_measured`: a rank says that something of its model is measured."""
        heard, summary = self._heard(), self.judge.summary
        verdict, sentence = _verdict(self.ranks, summary, is_measured=is_measured)
        return Standing(
            attempt_id=self.attempt.id,
            state=heard.state,
            reason=heard.reason,
            contact_ms=last_contact_ms(self.attempt, self.ranks),
            reached=step_reached(self.ranks),
            last_step=self.ranks.last_step,
            last_frame_at_ms=self.ranks.frame_ms,
            heartbeat_at_ms=self.ranks.heartbeat_ms,
            step_ms=summary.step_ms,
            verdict=verdict,
            sentence=sentence,
            violated=summary.violated,
            drifting=summary.drifting,
            loss=summary.values.get("loss"),
            learning_rate=summary.values.get("learning_rate"),
            overhead=summary.values.get("overhead"),
            coverage=summary.values.get("coverage"),
        )

    def _heard(self) -> Vitals:
        summary = self.judge.summary
        return vitals_when_heard(self.attempt, self.ranks, step_ms=summary.step_ms, pause_ms=summary.pause_ms)


def load_standing(session: Session, run: str) -> Standing:
    """How a run stands, as it follows from what is stored.

    Raises:
        RunNotFound: there is no such run.
    """
    newest = load_newest(session, run)
    return newest.standing(is_measured=is_measured(session, newest.attempt.id))


def load_newest(session: Session, run: str) -> Newest:
    """The newest attempt of a run.

    Raises:
        RunNotFound: there is no such run.
    """
    attempt = newest_attempt(session, run)
    return Newest(attempt, Roster(list_ranks(session, attempt.id)), load_state(session, attempt.id))


def save_standing(
    session: Session, run: str, standing: Standing, *, next_check_ms: int | None, series: int | None = None
) -> None:
    """Keep how a run stands, and let its cursor rise.

    Args:
        next_check_ms: when time alone will bring something; `NOTHING_DUE`: never. None: as it is stored.
        series: their number where it may have changed.
    """
    values = {name: getattr(standing, name) for name in _FIELDS}
    if next_check_ms is not None:
        values["next_check_ms"] = None if next_check_ms == NOTHING_DUE else next_check_ms
    if series is not None:
        values["series"] = series
    session.execute(_SAVE, {"of_run": run, **values})


def due_runs(session: Session, *, now_ms: int, limit: int) -> list[str]:
    """Runs of which time alone has brought something, those that wait longest first."""
    query = select(StandingRow.run_id).where(StandingRow.next_check_ms <= now_ms)
    return list(session.scalars(query.order_by(StandingRow.next_check_ms).limit(limit)))


def look_at_all(session: Session) -> None:
    """Let every run that waits for time be looked at once: the clock by which they waited was set."""
    session.execute(update(StandingRow).where(StandingRow.next_check_ms.is_not(None)).values(next_check_ms=0))


def _verdict(ranks: Roster, summary: Summary, *, is_measured: bool) -> tuple[State, str]:
    """State and sentence of the run, by what was judged and by what is known beside it."""
    states: dict[str, State] = {"ok": "ok", "drifting": "drifting", "violated": "violated"}
    state = states.get(summary.state, "not measured")
    return evidence_of(ranks, summary, is_measured=is_measured).weigh(state, summary.sentence)
