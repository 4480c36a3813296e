"""Steps become complete and are judged, in order; what the judge says becomes judgements, alerts and notifications."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from sqlalchemy.orm import Session

from internist.schema.alerts import Alert
from internist.schema.rules import QUIET_AFTER_S
from internist_server import observability
from internist_server.alerts.incidents import Policy
from internist_server.errors import Invalid
from internist_server.judge.verdicts import StepJudgement, Transition
from internist_server.judges import CHECKPOINT_STEPS, Judges, LiveJudge, keep_checkpoint, read_window, refresh
from internist_server.known import KnownAttempt
from internist_server.rulebook import RuleBook
from internist_server.store import alerts
from internist_server.store.attempts import Attempt
from internist_server.store.bands import StoredBands, add_bands, pack_bands
from internist_server.store.coverage import why_not
from internist_server.store.frames import NewFrame, pending_steps
from internist_server.store.judgements import (
    Judged,
    JudgeState,
    Summary,
    add_judgements,
    save_state,
)
from internist_server.store.matrices import MAX_CELLS, Matrix, matrix_of, read_matrix
from internist_server.store.roster import Roster, Waiting, load_waiting
from internist_server.store.series import StoredSeries
from internist_server.store.tables import NEVER
from internist_server.store.vitals import all_heard_at_ms, heard_at_ms, longest_pause_ms, step_time_ms
from internist_server.telling import tell

log = logging.getLogger(__name__)

SILENT_AFTER_MS: Final = 30_000
"""A step waits this long for a rank that sends nothing."""
STEPS_AT_ONCE: Final = 256
_OVERHEAD_MEMORY: Final = 0.8


@dataclass(frozen=True, slots=True)
class Arrived:
    """The frames of one request of one rank, before which no step waited: they are not read from where they were just
    written."""

    rank: int
    frames: Sequence[NewFrame]

    def steps(self, *, after: int) -> list[int]:
        """The steps of these frames over `after`, in order."""
        return sorted({frame.step for frame in self.frames if frame.step > after})

    def times(self, *, first: int) -> list[tuple[int, int]]:
        """(step, measured at) of the frames from a step on."""
        return [(frame.step, frame.measured_at_ms) for frame in self.frames if frame.step >= first]


class Progress:
    """Brings the judge of each attempt up to the last complete step, within the caller's transaction.

    Judges stay in memory between requests; what counts is the database, whose version number says whether they are
    still right. `forget_run` must be called when the transaction is undone.
    """

    def __init__(self, book: RuleBook, policy: Policy | None) -> None:
        """Progress by these rules.

        Args:
            book: the rules in force.
            policy: when receivers are told; None: nobody is.
        """
        self._policy = policy
        self._judges = Judges(book)

    def keep(self, session: Session, known: KnownAttempt) -> None:
        """Store what the judge knows: before its series change, since what it has learnt could not be learnt again,
        and when all is judged."""
        if known.judge.judged_step == NEVER:
            return
        live = self._judges.get(session, known)
        if live.since:
            keep_checkpoint(session, known.attempt.id, live)

    def forget(self, attempt_id: int) -> None:
        """Drop a judge in memory: its series have changed."""
        self._judges.forget(attempt_id)

    def forget_run(self, run: str) -> None:
        """Drop a run's judges in memory: a transaction was undone."""
        self._judges.forget_run(run)

    def advance(
        self,
        session: Session,
        known: KnownAttempt,
        newest: Attempt,
        *,
        now_ms: int,
        since_ms: int = 0,
        arrived: Arrived | None = None,
    ) -> bool:
        """Judge every step that is complete now; whether a notification was queued.

        Args:
            newest: the newest attempt of the run.
            since_ms: since when the server listens.
            arrived: the frames of the request, before which no step waited; None: they are to be looked up.
        """
        is_queued, attempt, roster = False, known.attempt, known.roster
        bound = complete_bound(attempt, roster, now_ms=now_ms, since_ms=since_ms)
        if roster.waiting is not None and roster.waiting.step <= bound:
            if len(roster) > 1:
                arrived = None  # others may have sent of these steps
            is_queued = self._judge_up_to(session, known, newest, bound, arrived, now_ms=now_ms)
            judged_step = known.judge.judged_step
            if arrived is None:
                roster.waiting = load_waiting(session, attempt.id, after=judged_step)
            else:
                left = arrived.steps(after=judged_step)
                roster.waiting = Waiting(left[0], now_ms) if left else None
        if attempt.finished_at_ms is not None:
            self.keep(session, known)
        return is_queued

    def _judge_up_to(
        self,
        session: Session,
        known: KnownAttempt,
        newest: Attempt,
        bound: int,
        arrived: Arrived | None,
        *,
        now_ms: int,
    ) -> bool:
        """Judge the steps up to `bound`; whether a notification was queued."""
        is_queued = False
        rows = STEPS_AT_ONCE
        while steps := _pending(session, known, arrived, up_to=bound, limit=rows):
            live = self._judges.get(session, known)
            rows = max(1, min(STEPS_AT_ONCE, MAX_CELLS // max(1, len(live.columns.ids))))
            steps = steps[:rows]
            with observability.judging(len(steps)):
                is_queued |= self._judge(session, known, newest, live, steps, arrived, now_ms=now_ms)
            if steps[-1] == bound:
                break
        return is_queued

    def _judge(
        self,
        session: Session,
        known: KnownAttempt,
        newest: Attempt,
        live: LiveJudge,
        steps: Sequence[int],
        arrived: Arrived | None,
        *,
        now_ms: int,
    ) -> bool:
        """Judge these steps; whether a notification was queued."""
        is_queued, attempt, roster = False, known.attempt, known.roster
        assert live.layouts is not None
        if arrived is None:
            matrix = read_matrix(session, attempt.id, steps, live.columns, layouts=live.layouts, is_new=True)
        else:
            matrix = matrix_of(arrived.frames, arrived.rank, steps, live.layouts, width=len(live.columns.ids))
        judged: list[Judged] = []
        bands: list[StoredBands] = []
        for row, step in enumerate(steps):
            if refresh(session, attempt, live, step):
                live.since = CHECKPOINT_STEPS  # points that come late for the window would give another baseline
            said = live.judge.judge(step, matrix.values[row], matrix.present[row], skipped=bool(matrix.skipped[row]))
            if said.basis.any():
                judged.append(_to_store(said, attempt, roster))
            if said.bands.column.size:
                packed = pack_bands(said.bands.column, said.bands.scheduled, said.bands.edges)
                bands.append(StoredBands(step, packed))
            passed = live.watch.judge(step, matrix.values[row], matrix.present[row], skipped=bool(matrix.skipped[row]))
            if changes := [*said.transitions, *passed]:
                at_ms = int(matrix.measured_at_ms[row])
                is_queued |= self._alert(session, attempt, newest, live, changes, at_ms=at_ms, now_ms=now_ms)
        add_judgements(session, attempt.id, judged)
        add_bands(session, attempt.id, bands)
        live.stored = JudgeState(
            version=live.stored.version + 1,
            judged_step=steps[-1],
            summary=self._summary(session, known, live, matrix, arrived),
        )
        known.judge = live.stored
        save_state(session, attempt.id, live.stored)
        live.since += len(steps)
        if live.since >= CHECKPOINT_STEPS:
            keep_checkpoint(session, attempt.id, live)
        live.watch.save(session, attempt)
        return is_queued

    def _alert(
        self,
        session: Session,
        attempt: Attempt,
        newest: Attempt,
        live: LiveJudge,
        changes: Sequence[Transition],
        *,
        at_ms: int,
        now_ms: int,
    ) -> bool:
        """Move the alerts of one step; whether a notification was queued.

        Step by step, so that what is notified does not depend on how frames were grouped into requests.
        """
        is_quiet = now_ms - at_ms > QUIET_AFTER_S * 1000 or attempt.id != newest.id
        changes = [_with_reason(session, attempt, live.series, one) for one in changes]
        terms = live.watch.terms(live.series)
        alerts.apply_transitions(session, attempt, changes, at_ms=at_ms, is_quiet=is_quiet, terms=terms)
        for one in changes:
            log.info("run %s step %d: %s %s: %s", attempt.run, one.step, one.rule, one.state, one.message)
        if attempt.id != newest.id:
            alerts.supersede(session, newest, now_ms=now_ms)
        return self._policy is not None and tell(session, attempt.run, self._policy, now_ms=now_ms)

    def accept(self, session: Session, known: KnownAttempt, newest: Attempt, alert: Alert, *, now_ms: int) -> bool:
        """Take what an alert tells of for the new normal of its series; whether a notification was queued.

        Raises:
            Invalid: it is judged by no baseline, or is over.
        """
        attempt, live = known.attempt, self._judges.get(session, known)
        judged_step = live.judge.judged_step
        changes: list[Transition] = []
        if alert.series is not None and alert.pending_step is not None and judged_step is not None:
            matrix = read_window(session, attempt, live.judge, live.columns, (alert.pending_step, judged_step))
            changes = live.judge.accept(alert.series, matrix.values, matrix.steps)
        if not changes:
            raise Invalid(f"alert {alert.id} is on nothing that is out of the band of its own baseline now")
        terms = live.watch.terms(live.series)
        alerts.apply_transitions(session, attempt, changes, at_ms=now_ms, is_quiet=attempt.id != newest.id, terms=terms)
        said = live.judge.summary()
        summary = replace(
            live.stored.summary,
            state=said.state,
            sentence=said.sentence,
            violated=said.violated,
            drifting=said.drifting,
        )
        live.stored = known.judge = replace(live.stored, version=live.stored.version + 1, summary=summary)
        save_state(session, attempt.id, live.stored)
        keep_checkpoint(session, attempt.id, live)
        return self._policy is not None and tell(session, attempt.run, self._policy, now_ms=now_ms)

    def _summary(
        self, session: Session, known: KnownAttempt, live: LiveJudge, matrix: Matrix, arrived: Arrived | None
    ) -> Summary:
        """What the runs table shows after these steps."""
        said = live.judge.summary()
        before = live.stored.summary
        values = dict(before.values)
        sampled_at_ms = before.sampled_at_ms
        for name, column in live.shown.items():
            rows = np.flatnonzero(matrix.present[:, column])
            if name == "overhead":
                for row in rows.tolist():
                    at_ms = int(matrix.measured_at_ms[row])
                    if sampled_at_ms is not None and at_ms > sampled_at_ms:
                        share = float(matrix.values[row, column]) / (at_ms - sampled_at_ms)
                        earlier = values.get(name, share)
                        values[name] = _OVERHEAD_MEMORY * earlier + (1 - _OVERHEAD_MEMORY) * share
                    sampled_at_ms = at_ms
            elif len(rows):
                values["overhead" if name == "share" else name] = float(matrix.values[rows[-1], column])
        last = int(matrix.steps[-1])
        added = None if arrived is None or arrived.steps(after=last) else arrived.times(first=int(matrix.steps[0]))
        step_ms = step_time_ms(known.times(session, up_to=last, added=added))
        times = [(int(step), int(at)) for step, at in zip(matrix.steps, matrix.measured_at_ms, strict=True) if at > 0]
        pause_ms = longest_pause_ms(times, last=before.last_measured, step_ms=step_ms)
        return Summary(
            state=said.state,
            sentence=said.sentence,
            violated=said.violated,
            drifting=said.drifting,
            values=values,
            step_ms=step_ms,
            sampled_at_ms=sampled_at_ms,
            pause_ms=max(before.pause_ms, pause_ms),
            last_measured=times[-1] if times else before.last_measured,
            reference=live.reference,
        )


def _pending(session: Session, known: KnownAttempt, arrived: Arrived | None, *, up_to: int, limit: int) -> list[int]:
    """Steps that are to be judged next, in order."""
    after = known.judge.judged_step
    if arrived is None:
        return pending_steps(session, known.attempt.id, after=after, up_to=up_to, limit=limit)
    return [step for step in arrived.steps(after=after) if step <= up_to][:limit]


def complete_bound(attempt: Attempt, roster: Roster, *, now_ms: int, since_ms: int = 0) -> int:
    """The last step that needs no more waiting; -1 if there is none. It is never beyond where the ranks have come to.

    A rank has delivered a step when its sampled frame of that step has come, or any frame of a later one. It is not
    waited for when it has finished, or has sent nothing for `SILENT_AFTER_MS` while the step was waiting; a rank that
    never spoke, counted from the attempt's beginning.

    Args:
        since_ms: since when the server listens: before that nobody was silent.
    """
    bound, waiting = roster.reached, roster.waiting
    if attempt.finished_at_ms is not None or waiting is None:
        return bound
    heard_ms = heard_at_ms(attempt.received_at_ms, now_ms=now_ms, since_ms=since_ms)
    if len(roster) < attempt.world_size and now_ms - heard_ms <= SILENT_AFTER_MS:
        return NEVER
    received_ms, delivered = roster.training()
    all_heard_ms = all_heard_at_ms(np.maximum(received_ms, waiting.since_ms), now_ms=now_ms, since_ms=since_ms)
    waited_for = delivered[now_ms - all_heard_ms <= SILENT_AFTER_MS]
    return int(waited_for.min(initial=bound))


def waits_until_ms(attempt: Attempt, roster: Roster, *, now_ms: int, since_ms: int) -> int | None:
    """When a step that waits may be judged: now, if a heartbeat has made it complete, else without silent ranks, or
    another of them; None: none waits."""
    waiting = roster.waiting
    if waiting is None or attempt.finished_at_ms is not None:
        return None
    if waiting.step <= complete_bound(attempt, roster, now_ms=now_ms, since_ms=since_ms):
        return now_ms
    since = np.maximum(roster.training()[0], waiting.since_ms)
    if len(roster) < attempt.world_size:
        since = np.append(since, attempt.received_at_ms)
    until = all_heard_at_ms(since, now_ms=now_ms, since_ms=since_ms) + SILENT_AFTER_MS + 1
    later = until[until > now_ms]
    return int(later.min()) if later.size else None


def _to_store(said: StepJudgement, attempt: Attempt, roster: Roster) -> Judged:
    delivered = roster.count_from(said.step)
    return Judged(said.step, said.schedule, delivered, attempt.world_size, said.ratios, said.basis, said.divisor)


def _with_reason(session: Session, attempt: Attempt, series: Sequence[StoredSeries], change: Transition) -> Transition:
    """The same; where something is measured no more, with what the client says of it."""
    if change.condition != "no_data" or change.state != "firing":
        return change
    one = next((one for one in series if one.id == change.series), None)
    why = "" if one is None else why_not(session, attempt.id, one.subject, one.metric)
    return replace(change, message=f"{change.message} ({why})") if why else change
