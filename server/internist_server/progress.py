"""Steps become complete and are judged, in order; what the judge says becomes judgements, alerts and notifications."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from sqlalchemy.orm import Session

from internist.schema.rules import QUIET_AFTER_S
from internist.schema.views import Alert
from internist_server import references
from internist_server.alerts.incidents import Policy
from internist_server.cursor import reached
from internist_server.errors import AttemptNotFound, Invalid
from internist_server.judge.errors import JudgeStateError
from internist_server.judge.verdicts import Judge, JudgedSeries, StepJudgement, Transition
from internist_server.rulebook import RuleBook
from internist_server.rulewatch import RuleWatch
from internist_server.store import alerts
from internist_server.store.attempts import LAST_STEP, Attempt, Rank, Segment, find_attempt, list_ranks, newest_attempt
from internist_server.store.bands import StoredBands, add_bands, pack_bands
from internist_server.store.frames import (
    MAX_CELLS,
    Matrix,
    first_received_ms,
    pending_steps,
    read_matrix,
    recent_times,
    steps_between,
)
from internist_server.store.judgements import (
    Judged,
    JudgeState,
    Summary,
    add_judgements,
    load_judged_step,
    load_state,
    load_version,
    save_state,
)
from internist_server.store.merge import Ids
from internist_server.store.series import NO_SERIES, Columns, StoredSeries, columns_for, list_plans, list_series
from internist_server.store.tables import NEVER
from internist_server.store.vitals import longest_pause_ms, step_time_ms
from internist_server.telling import tell

log = logging.getLogger(__name__)

SILENT_AFTER_MS: Final = 30_000
"""A step waits this long for a rank that sends nothing."""
MAX_JUDGES: Final = 64
STEPS_AT_ONCE: Final = 256
_OVERHEAD_MEMORY: Final = 0.8


@dataclass(slots=True)
class LiveJudge:
    """A judge in memory between two requests, with the columns it sees."""

    judge: Judge
    series: list[StoredSeries]
    columns: Columns
    stored: JudgeState
    watch: RuleWatch
    """The user's own rules on it."""
    reference: str | None = None
    """Why it is not held to the reference that its run names; None: it is, or names none."""


class Progress:
    """Brings the judge of each attempt up to the last complete step, within the caller's transaction.

    Judges stay in memory between requests; what counts is the database, whose version number says whether they are
    still right. `forget` must be called when the transaction is undone.
    """

    def __init__(self, book: RuleBook, policy: Policy | None) -> None:
        """Progress by these rules.

        Args:
            book: the rules in force.
            policy: when receivers are told; None: nobody is.
        """
        self._book, self._policy = book, policy
        self._judges: dict[int, LiveJudge] = {}

    def forget(self, attempt_id: int) -> None:
        """Drop a judge in memory: its series have changed."""
        self._judges.pop(attempt_id, None)

    def forget_all(self) -> None:
        """Drop every judge in memory: a transaction was undone."""
        self._judges.clear()

    def is_due(self, session: Session, attempt: Attempt, *, now_ms: int) -> bool:
        """Whether a step is complete and not judged."""
        judged_step = load_judged_step(session, attempt.id)
        bound = _bound(session, attempt, list_ranks(session, attempt.id), judged_step, now_ms=now_ms)
        return bool(pending_steps(session, attempt.id, after=judged_step, up_to=bound, limit=1))

    def advance(self, session: Session, attempt: Attempt, *, now_ms: int) -> bool:
        """Judge every step that is complete now; whether a notification was queued."""
        ranks = list_ranks(session, attempt.id)
        newest = newest_attempt(session, attempt.run)
        judged_step = load_judged_step(session, attempt.id)
        bound = _bound(session, attempt, ranks, judged_step, now_ms=now_ms)
        is_queued = False
        rows = STEPS_AT_ONCE
        while steps := pending_steps(session, attempt.id, after=judged_step, up_to=bound, limit=rows):
            live = self._live_judge(session, attempt)
            rows = max(1, min(STEPS_AT_ONCE, MAX_CELLS // max(1, len(live.columns.ids))))
            steps = steps[:rows]
            is_queued |= self._judge(session, attempt, newest, live, steps, ranks, now_ms=now_ms)
            judged_step = steps[-1]
        return is_queued

    def _judge(
        self,
        session: Session,
        attempt: Attempt,
        newest: Attempt,
        live: LiveJudge,
        steps: Sequence[int],
        ranks: Sequence[Rank],
        *,
        now_ms: int,
    ) -> bool:
        """Judge these steps; whether a notification was queued."""
        is_queued = False
        matrix = read_matrix(session, attempt.id, steps, live.columns)
        judged: list[Judged] = []
        bands: list[StoredBands] = []
        for row, step in enumerate(steps):
            window = live.judge.window_due(step)
            if window is not None:
                self._refresh(session, attempt, live, step, window)
            said = live.judge.judge(step, matrix.values[row], matrix.present[row], skipped=bool(matrix.skipped[row]))
            if said.basis.any():
                judged.append(_to_store(said, attempt, ranks))
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
            order=live.columns.ids,
            state=live.judge.state(),
            summary=self._summary(session, attempt, live, matrix),
        )
        save_state(session, attempt.id, live.stored)
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
        terms = live.watch.terms(live.series)
        alerts.apply_transitions(session, attempt, changes, at_ms=at_ms, is_quiet=is_quiet, terms=terms)
        for one in changes:
            log.info("run %s step %d: %s %s: %s", attempt.run, one.step, one.rule, one.state, one.message)
        if attempt.id != newest.id:
            alerts.supersede(session, newest, now_ms=now_ms)
        return self._policy is not None and tell(session, attempt.run, self._policy, now_ms=now_ms)

    def accept(self, session: Session, attempt: Attempt, alert: Alert, *, now_ms: int) -> bool:
        """Take what an alert tells of for the new normal of its series; whether a notification was queued.

        Raises:
            Invalid: it is judged by no baseline, or is over.
        """
        live = self._live_judge(session, attempt)
        judged_step = live.judge.judged_step
        changes: list[Transition] = []
        if alert.series is not None and alert.pending_step is not None and judged_step is not None:
            matrix = read_window(session, attempt, live.judge, live.columns, (alert.pending_step, judged_step))
            changes = live.judge.accept(alert.series, matrix.values, matrix.steps)
        if not changes:
            raise Invalid(f"alert {alert.id} is on nothing that is out of the band of its own baseline now")
        newest = newest_attempt(session, attempt.run)
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
        live.stored = replace(
            live.stored, version=live.stored.version + 1, order=live.columns.ids, state=live.judge.state(),
            summary=summary,
        )  # fmt: skip
        save_state(session, attempt.id, live.stored)
        return self._policy is not None and tell(session, attempt.run, self._policy, now_ms=now_ms)

    def _refresh(self, session: Session, attempt: Attempt, live: LiveJudge, step: int, window: tuple[int, int]) -> None:
        """Hand the judge the points of a window."""
        matrix = read_window(session, attempt, live.judge, live.columns, window)
        live.judge.refresh(step, matrix.values, matrix.steps)

    def _live_judge(self, session: Session, attempt: Attempt) -> LiveJudge:
        """The attempt's judge, as of the database, with all series of its plans."""
        live = self._judges.pop(attempt.id, None)
        if live is None or live.stored.version != load_version(session, attempt.id):
            live = _load(session, attempt, self._book)
        fresh = _new_series(session, attempt, live.columns.ids)
        if len(fresh):
            added = list_series(session, fresh)
            judged = [_judged(one) for one in added]
            live.judge.add_series(judged)
            live.watch.add_series(judged)
            live.series += added
            ids = np.concatenate([live.columns.ids, fresh])
            live.columns = columns_for(session, ids, live.series)
        if attempt.reference is not None and (len(fresh) or live.reference is not None):
            found = references.find(session, attempt, keeps=True)
            live.reference = found.reason
            live.judge.hold_to(found.yardstick)
        live.watch.update(session, attempt, self._book)
        while len(self._judges) >= MAX_JUDGES:
            self._judges.pop(next(iter(self._judges)), None)
        self._judges[attempt.id] = live
        return live

    def _summary(self, session: Session, attempt: Attempt, live: LiveJudge, matrix: Matrix) -> Summary:
        """What the runs table shows after these steps."""
        said = live.judge.summary()
        before = live.stored.summary
        values = dict(before.values)
        sampled_at_ms = before.sampled_at_ms
        shown = _shown_columns(live.series)
        if "share" in shown:
            shown.pop("overhead", None)  # the client tells the share itself
        for name, column in shown.items():
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
        step_ms = step_time_ms(recent_times(session, attempt.id, up_to=int(matrix.steps[-1])))
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


def complete_bound(attempt: Attempt, ranks: Sequence[Rank], *, now_ms: int, waiting_since_ms: int | None) -> int:
    """The last step that needs no more waiting; -1 if there is none. It is never beyond where the ranks have come to.

    A rank has delivered a step when its sampled frame of that step has come, or any frame of a later one. It is not
    waited for when it has finished, or has sent nothing for `SILENT_AFTER_MS` while the step was waiting; a rank that
    never spoke, counted from the attempt's beginning.

    Args:
        waiting_since_ms: when the earliest step that is not judged came.
    """
    bound = max((reached(rank) for rank in ranks), default=NEVER)
    if attempt.finished_at_ms is not None or waiting_since_ms is None:
        return bound
    if len(ranks) < attempt.world_size and now_ms - attempt.received_at_ms <= SILENT_AFTER_MS:
        return NEVER
    for rank in ranks:
        is_silent = now_ms - max(rank.received_at_ms, waiting_since_ms) > SILENT_AFTER_MS
        if rank.finished_at_ms is None and not is_silent:
            bound = min(bound, max(rank.last_step - 1, rank.sampled_step))
    return bound


def read_window(session: Session, attempt: Attempt, judge: Judge, columns: Columns, window: tuple[int, int]) -> Matrix:
    """The points of a window, both ends included: of each plan those the judge asks for."""
    segment = Segment(attempt.id, 0, LAST_STEP)
    sampled = sorted({plan.number for plan in list_plans(session, attempt.id) if plan.is_sampled})
    found = np.array(
        steps_between(session, segment, first=window[0], last=window[1], plans=sampled), dtype=np.int64
    ).reshape(-1, 2)
    chosen = [judge.window_sample(np.unique(found[found[:, 1] == plan, 0])) for plan in np.unique(found[:, 1])]
    wanted = np.unique(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    height = max(8, 8 * MAX_CELLS // max(1, len(columns.ids)))
    if len(wanted) > height:  # bounded memory: a plan with so many series gets fewer points
        wanted = wanted[np.linspace(0, len(wanted) - 1, height).round().astype(np.int64)]
    return read_matrix(session, attempt.id, wanted.tolist(), columns)


def _bound(session: Session, attempt: Attempt, ranks: Sequence[Rank], judged_step: int, *, now_ms: int) -> int:
    waiting = first_received_ms(session, attempt.id, after=judged_step)
    return complete_bound(attempt, ranks, now_ms=now_ms, waiting_since_ms=waiting)


def _parent_order(session: Session, attempt: Attempt) -> tuple[Ids, bytes | None]:
    """The order and state of the judge of the attempt that this one resumes; empty without one."""
    if attempt.parent is None or attempt.parent == attempt.name:
        return np.empty(0, np.int64), None
    try:
        parent = find_attempt(session, attempt.run, attempt.parent)
    except AttemptNotFound:
        return np.empty(0, np.int64), None
    stored = load_state(session, parent.id)
    return stored.order, stored.state


def _load(session: Session, attempt: Attempt, book: RuleBook) -> LiveJudge:
    judge, series, stored = _load_judge(session, attempt)
    columns = columns_for(session, stored.order, series)
    watch = RuleWatch.load(session, attempt, [_judged(one) for one in series], book)
    looks = None if attempt.reference is None else "its reference was not looked for yet"
    return LiveJudge(judge, series, columns, stored, watch, looks)


def _load_judge(session: Session, attempt: Attempt) -> tuple[Judge, list[StoredSeries], JudgeState]:
    """The judge of an attempt as of the database, its series, and what is stored of it."""
    stored = load_state(session, attempt.id)
    inherited: bytes | None = None
    if stored.state is None:
        order, inherited = _parent_order(session, attempt)
        stored = replace(stored, order=order)
    series = list_series(session, stored.order)
    known = [_judged(one) for one in series]
    is_mup = attempt.parametrization in references.DECLARED
    make = partial(Judge, known, mup=is_mup, every=attempt.every, is_referenced=attempt.reference is not None)
    try:
        judge = make(state=stored.state)
    except JudgeStateError as error:  # of a version that judged otherwise: a live run must not end with an upgrade
        log.warning("run %s attempt %s is judged anew from here on: %s", attempt.run, attempt.name, error)
        judge = make()
    if inherited is not None:
        judge.inherit(inherited)
    if attempt.reference is not None and series:
        judge.hold_to(references.find(session, attempt, keeps=False).yardstick)
    return judge, series, stored


def load_judge(session: Session, attempt: Attempt) -> Judge:
    """The judge of an attempt as of the database, for reading."""
    return _load_judge(session, attempt)[0]


def _new_series(session: Session, attempt: Attempt, known: Ids) -> Ids:
    plans = list_plans(session, attempt.id)
    if not plans:
        return np.empty(0, np.int64)
    return np.setdiff1d(np.concatenate([plan.series for plan in plans]), np.append(known, NO_SERIES))


def _judged(series: StoredSeries) -> JudgedSeries:
    return JudgedSeries(series.id, series.metric, series.kind, series.subject, series.index, series.bound, series.facts)


def _to_store(said: StepJudgement, attempt: Attempt, ranks: Sequence[Rank]) -> Judged:
    delivered = sum(rank.last_step >= said.step for rank in ranks)
    return Judged(said.step, said.schedule, delivered, attempt.world_size, said.ratios, said.basis, said.divisor)


def _shown_columns(series: Sequence[StoredSeries]) -> dict[str, int]:
    """Columns of what the runs table shows."""
    wanted = {
        "loss": "loss",
        "learning_rate": "learning_rate",
        "monitor.overhead_ms": "overhead",
        "monitor.share": "share",
        "monitor.coverage": "coverage",
    }
    found: dict[str, int] = {}
    for column, one in enumerate(series):
        if one.metric in wanted:
            found.setdefault(wanted[one.metric], column)
    return found
