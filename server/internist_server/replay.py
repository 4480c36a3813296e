"""Rules on a stored run: what would have fired of it, and when; nothing is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy.orm import Session

from internist.schema.alerts import Alert
from internist_server.alerts.rules import Rule
from internist_server.alerts.thresholds import Thresholds
from internist_server.judge.series import JudgedSeries
from internist_server.judge.transitions import Transition
from internist_server.store import alerts
from internist_server.store.attempts import LAST_STEP, Segment, list_attempts
from internist_server.store.matrices import read_history
from internist_server.store.series import NO_SERIES, columns_for, list_plans, list_series


@dataclass(frozen=True, slots=True)
class Replayed:
    """A change of one alert, in the attempt in which it would have been."""

    attempt: str
    change: Transition


def replay(session: Session, run: str, rules: Sequence[Rule]) -> Iterator[Replayed]:
    """What thresholds would have said of a run: what fires, what resolves, attempt by attempt, in order of steps.

    Raises:
        RunNotFound: there is no such run.
    """
    for attempt in list_attempts(session, run):
        plans = list_plans(session, attempt.id)
        if not plans:
            continue
        ids = np.setdiff1d(np.concatenate([plan.series for plan in plans]), [NO_SERIES])
        known = list_series(session, ids)
        every = [JudgedSeries(s.id, s.metric, s.kind, s.subject, s.index, s.bound, s.facts) for s in known]
        series = [every[column] for column in Thresholds(rules, every).columns]
        columns = columns_for(session, np.array([one.id for one in series], np.int64), series)
        thresholds = Thresholds(rules, series)
        segment = Segment(attempt.id, 0, LAST_STEP)
        for matrix in read_history(session, [segment], columns, first=0, last=LAST_STEP, is_whole=True):
            for row in matrix.rows():
                found = thresholds.judge(row.step, row.values, row.present, skipped=row.skipped)
                yield from (Replayed(attempt.name, one) for one in found if one.opened_step is not None)


def changed_alerts(session: Session, run: str, rule: Rule, *, limit: int = 10_000) -> list[Alert]:
    """The recorded alerts of a run that a rule on a condition would have changed."""
    page = alerts.list_alerts(session, run=run, condition=rule.condition, limit=limit)
    return [alert for alert in page.alerts if rule.is_on(alert.metric, alert.subject)]
