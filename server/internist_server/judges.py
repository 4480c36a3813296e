"""Judges in memory: restored from the last checkpoint and the frames since, kept while there is room.

A judge is a pure function of what it is shown, so its state, which is large, is written only now and then. What it has
learnt since follows from the frames that it has judged: those that came late were not shown to it. A checkpoint is
written at once where that would not hold: when baselines were taken anew, series came, or a person has spoken. One of
another version's judge, which judged otherwise, is of no use: then all stored steps are judged anew.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from sqlalchemy.orm import Session

from internist_server import references
from internist_server.errors import AttemptNotFound
from internist_server.judge.errors import JudgeStateError
from internist_server.judge.verdicts import Judge, JudgedSeries, StepJudgement
from internist_server.known import KnownAttempt
from internist_server.rulebook import RuleBook
from internist_server.rulewatch import RuleWatch
from internist_server.store.attempts import LAST_STEP, Attempt, Segment, find_attempt
from internist_server.store.frames import pending_steps, steps_between
from internist_server.store.judgements import (
    Checkpoint,
    JudgeState,
    load_checkpoint,
    load_judged_step,
    load_state,
    save_checkpoint,
)
from internist_server.store.layout import Layouts
from internist_server.store.matrices import MAX_CELLS, Matrix, read_history, read_matrix
from internist_server.store.merge import Ids
from internist_server.store.series import (
    NO_SERIES,
    Columns,
    StoredPlan,
    StoredSeries,
    columns_for,
    list_plans,
    list_series,
)
from internist_server.store.tables import NEVER

log = logging.getLogger(__name__)

CHECKPOINT_STEPS: Final = 64
"""Judged steps after which the state is written: so many are judged again at most when a judge is restored."""
MAX_BYTES: Final = 512 << 20
"""What judges in memory may take together."""
_BYTES_A_SERIES: Final = 2_048
"""Of a series with its facts, beside the state's arrays."""
_STEPS_AT_ONCE: Final = 64


@dataclass(slots=True)
class Restored:
    """A judge as of the database, with the columns it sees."""

    judge: Judge
    series: list[StoredSeries]
    columns: Columns
    stored: JudgeState
    since: int
    """Steps judged since the checkpoint; `CHECKPOINT_STEPS` where one is due in any case."""
    size: int
    """Bytes in memory, roughly."""


@dataclass(slots=True)
class LiveJudge(Restored):
    """A judge in memory between two requests."""

    run: str
    watch: RuleWatch
    """The user's own rules on it."""
    reference: str | None
    """Why it is not held to the reference that its run names; None: it is, or names none."""
    shown: dict[str, int]
    """Columns of what the runs table shows."""
    layouts: Layouts | None = None
    """Where its columns lie in the plans that it has looked at; None: it has not yet."""


class Judges:
    """The judges of the attempts that were busy last, as many as fit."""

    def __init__(self, book: RuleBook, *, max_bytes: int = MAX_BYTES) -> None:
        self._book = book
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._live: OrderedDict[int, LiveJudge] = OrderedDict()

    def get(self, session: Session, known: KnownAttempt) -> LiveJudge:
        """The attempt's judge, as of the database, with all series of its plans."""
        attempt = known.attempt
        with self._lock:
            live = self._live.pop(attempt.id, None)
        if live is None or live.stored.version != known.judge.version:
            live = self._load(session, attempt)
        has_more = live.layouts is None or live.layouts.plans != known.count_plans(session)
        plans = list_plans(session, attempt.id) if has_more else []
        fresh = _new_series(plans, live.columns.ids)
        if len(fresh):
            added = list_series(session, fresh)
            judged = [_judged(one) for one in added]
            live.judge.add_series(judged)
            live.watch.add_series(judged)
            live.series += added
            live.shown = _shown_columns(live.series)
            ids = np.concatenate([live.columns.ids, fresh])
            live.columns = columns_for(session, ids, live.series)
            live.since, live.size = CHECKPOINT_STEPS, live.size + _BYTES_A_SERIES * len(fresh)
        if has_more:
            live.layouts = Layouts.of(plans, live.columns)
        if attempt.reference is not None and (len(fresh) or live.reference is not None):
            found = references.find(session, attempt, keeps=True)
            if live.reference != found.reason:
                live.since = CHECKPOINT_STEPS  # what was judged before was held to something else
            live.reference = found.reason
            live.judge.hold_to(found.yardstick)
        live.watch.update(session, attempt, self._book)
        with self._lock:
            self._live[attempt.id] = live
            held = sum(one.size for one in self._live.values())
            while held > self._max_bytes and len(self._live) > 1:
                held -= self._live.popitem(last=False)[1].size
        return live

    def forget(self, attempt_id: int) -> None:
        """Drop one."""
        with self._lock:
            self._live.pop(attempt_id, None)

    def forget_run(self, run: str) -> None:
        """Drop those of all attempts of a run."""
        with self._lock:
            for attempt_id in [found for found, live in self._live.items() if live.run == run]:
                del self._live[attempt_id]

    def _load(self, session: Session, attempt: Attempt) -> LiveJudge:
        found = restore(session, attempt)
        watch = RuleWatch.load(session, attempt, [_judged(one) for one in found.series], self._book)
        looks = None if attempt.reference is None else "its reference was not looked for yet"
        return LiveJudge(
            found.judge, found.series, found.columns, found.stored, found.since, found.size, attempt.run, watch, looks,
            _shown_columns(found.series),
        )  # fmt: skip


def restore(session: Session, attempt: Attempt) -> Restored:
    """The attempt's judge as of the database, from its checkpoint and what it has judged since."""
    stored, checkpoint = load_state(session, attempt.id), load_checkpoint(session, attempt.id)
    order, inherited = checkpoint.order, None
    if checkpoint.state is None:
        order, inherited = _parent_state(session, attempt)
    series = list_series(session, order)
    known = [_judged(one) for one in series]
    is_mup = attempt.parametrization in references.DECLARED
    make = partial(Judge, known, mup=is_mup, every=attempt.every, is_referenced=attempt.reference is not None)
    since = 0 if checkpoint.state is not None else CHECKPOINT_STEPS
    is_anew = False
    try:
        judge = make(state=checkpoint.state)
    except JudgeStateError as error:  # of a version that judged otherwise: a run must not end with an upgrade
        log.warning("run %s attempt %s is judged anew: %s", attempt.run, attempt.name, error)
        judge, since, is_anew = make(), CHECKPOINT_STEPS, True
    if inherited is not None:
        judge.inherit(inherited)
    if attempt.reference is not None and series:
        judge.hold_to(references.find(session, attempt, keeps=False).yardstick)
    columns = columns_for(session, order, series)
    if is_anew:
        for _ in replayed(session, attempt, judge, columns, last=stored.judged_step):
            pass
    size = _size_of(checkpoint.state or b"", series)
    live = Restored(judge, series, columns, stored, since, size)
    if not since:
        _judge_again(session, attempt, live, after=checkpoint.step)
    return live


def keep_checkpoint(session: Session, attempt_id: int, live: Restored) -> None:
    """Store what the judge knows."""
    state = live.judge.state()
    step = NEVER if live.judge.judged_step is None else live.judge.judged_step
    save_checkpoint(session, attempt_id, Checkpoint(step, live.columns.ids, state))
    live.since, live.size = 0, _size_of(state, live.series)


def refresh(session: Session, attempt: Attempt, live: Restored, step: int) -> bool:
    """Let the judge take its baselines anew before it judges a step, if that is due; whether it was."""
    return _renew(session, attempt, live.judge, live.columns, step)


def read_window(session: Session, attempt: Attempt, judge: Judge, columns: Columns, window: tuple[int, int]) -> Matrix:
    """The points of a window, both ends included: of each plan those the judge asks for."""
    segment = Segment(attempt.id, 0, LAST_STEP)
    sampled = sorted({plan.number for plan in list_plans(session, attempt.id) if plan.is_sampled})
    found = steps_between(session, segment, first=window[0], last=window[1], plans=sampled)
    chosen = [judge.window_sample(np.unique(found[found[:, 1] == plan, 0])) for plan in np.unique(found[:, 1])]
    wanted = np.unique(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    height = max(8, 8 * MAX_CELLS // max(1, len(columns.ids)))
    if len(wanted) > height:  # bounded memory: a plan with so many series gets fewer points
        wanted = wanted[np.linspace(0, len(wanted) - 1, height).round().astype(np.int64)]
    return read_matrix(session, attempt.id, wanted, columns)


def replayed(
    session: Session, attempt: Attempt, judge: Judge, columns: Columns, *, last: int = LAST_STEP
) -> Iterator[StepJudgement]:
    """What a judge says of every stored step of an attempt up to `last`, one after the other."""
    segment = Segment(attempt.id, 0, LAST_STEP)
    for matrix in read_history(session, [segment], columns, first=0, last=last):
        for row in matrix.rows():
            _renew(session, attempt, judge, columns, row.step)
            yield judge.judge(row.step, row.values, row.present, skipped=row.skipped)


def _renew(session: Session, attempt: Attempt, judge: Judge, columns: Columns, step: int) -> bool:
    """Let a judge take its baselines anew before it judges a step, if that is due; whether it was."""
    window = judge.window_due(step)
    if window is None:
        return False
    points = read_window(session, attempt, judge, columns, window)
    judge.refresh(step, points.values, points.steps)
    return True


def _judge_again(session: Session, attempt: Attempt, live: Restored, *, after: int) -> None:
    """Show the judge what it has judged since its checkpoint."""
    last = live.stored.judged_step
    while steps := pending_steps(session, attempt.id, after=after, up_to=last, limit=_STEPS_AT_ONCE, is_timely=True):
        matrix = read_matrix(session, attempt.id, steps, live.columns, is_timely=True, is_new=True)
        for row in matrix.rows():
            refresh(session, attempt, live, row.step)
            live.judge.judge(row.step, row.values, row.present, skipped=row.skipped)
        live.since += len(steps)
        after = steps[-1]


def _parent_state(session: Session, attempt: Attempt) -> tuple[Ids, bytes | None]:
    """The order and state of the judge of the attempt that this one resumes; empty where that has judged nothing."""
    nothing = np.empty(0, np.int64), None
    if attempt.parent is None or attempt.parent == attempt.name:
        return nothing
    try:
        parent = find_attempt(session, attempt.run, attempt.parent)
    except AttemptNotFound:
        return nothing
    if load_judged_step(session, parent.id) == NEVER:
        return nothing
    live = restore(session, parent)
    return live.columns.ids, live.judge.state()


def _new_series(plans: Sequence[StoredPlan], known: Ids) -> Ids:
    if not plans:
        return np.empty(0, np.int64)
    return np.setdiff1d(np.concatenate([plan.series for plan in plans]), np.append(known, NO_SERIES))


def _judged(series: StoredSeries) -> JudgedSeries:
    return JudgedSeries(series.id, series.metric, series.kind, series.subject, series.index, series.bound, series.facts)


def _size_of(state: bytes, series: list[StoredSeries]) -> int:
    return 2 * len(state) + _BYTES_A_SERIES * len(series)


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
    if "share" in found:
        found.pop("overhead", None)  # the client tells the share itself
    return found
