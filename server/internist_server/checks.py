"""Checks of stored runs: all steps of an attempt are judged once more, by a judge that nobody else sees, and what was
out of its band is listed."""

from typing import Final

import numpy as np
from sqlalchemy.orm import Session

from internist.schema.check import Check, Deviation
from internist.schema.conditions import State
from internist.schema.reference import Trajectory
from internist_server import references
from internist_server.judge.members import number
from internist_server.judge.verdicts import Judge, JudgedSeries, Transition
from internist_server.judges import replayed
from internist_server.store.attempts import Attempt
from internist_server.store.series import NO_SERIES, Columns, columns_for, list_plans, list_series

MAX_DEVIATIONS: Final = 1_000
_SHOWN: Final = 3
_GRAVE: Final = "critical"


def check(
    session: Session, attempt: Attempt, *, reference: str | None = None, trajectory: Trajectory | None = None
) -> Check:
    """Judge a stored attempt once more.

    Args:
        session: of the request; nothing is written.
        attempt: which one.
        reference: a stored run to hold it to, by id or by name; None: the one that the run itself names, if any.
        trajectory: what to hold it to instead.

    Raises:
        RunNotFound, Invalid: the reference is none that this run can be held to.
    """
    found = _reference(session, attempt, reference, trajectory)
    series, columns = _series(session, attempt)
    judge = Judge(
        series,
        mup=attempt.parametrization in references.DECLARED,
        every=attempt.every,
        is_referenced=found is not None,
    )
    yardstick = None if found is None else found.yardstick
    judge.hold_to(yardstick)
    log, steps = _Log(series), 0
    for said in replayed(session, attempt, judge, columns):
        steps += 1
        for one in said.transitions:
            log.note(one)
    name = None if yardstick is None else yardstick.trajectory.name
    reason = None if found is None else found.reason
    if yardstick is not None and not judge.held:
        reason = f"nothing of {name!r} has the name of anything in this run"
    state, sentence = log.verdict(judge, reason)
    deviations = tuple(log.deviations[:MAX_DEVIATIONS])
    return Check(attempt.run, attempt.name, name, state, sentence, steps, judge.held, deviations)


def _reference(
    session: Session, attempt: Attempt, reference: str | None, trajectory: Trajectory | None
) -> references.Found | None:
    """What the attempt is held to; None: to nothing."""
    if trajectory is None and reference is not None:
        trajectory = references.trajectory_of(session, reference)
    if trajectory is not None:
        return references.Found(references.yardstick(session, attempt, trajectory))
    return None if attempt.reference is None else references.find(session, attempt, keeps=False)


def _series(session: Session, attempt: Attempt) -> tuple[list[JudgedSeries], Columns]:
    """All series of an attempt, and their columns."""
    of_plans = [plan.series for plan in list_plans(session, attempt.id)]
    ids = np.unique(np.concatenate(of_plans)) if of_plans else np.empty(0, np.int64)
    ids = ids[ids != NO_SERIES]
    series = [
        JudgedSeries(one.id, one.metric, one.kind, one.subject, one.index, one.bound, one.facts)
        for one in list_series(session, ids)
    ]
    return series, columns_for(session, ids, series)


class _Log:
    """What opened and closed."""

    def __init__(self, series: list[JudgedSeries]) -> None:
        self._series = {one.id: one for one in series}
        self._open: dict[tuple[int, str], int] = {}
        self.deviations: list[Deviation] = []

    def note(self, one: Transition) -> None:
        """Take in a transition."""
        if one.series is None:  # the user's own rules wait for series that there are not: no judge does
            return
        key = one.series, one.rule
        if one.state == "firing":
            series = self._series[one.series]
            deviation = Deviation(
                condition=one.condition,
                severity=one.severity,
                basis=one.basis,
                series=one.series,
                metric=series.metric,
                subject=series.subject,
                index=series.index,
                block=series.facts.block,
                opened_step=one.step if one.opened_step is None else one.opened_step,
                closed_step=None,
                value=number(one.value),
                band_low=None if one.band_low is None else number(one.band_low),
                band_high=None if one.band_high is None else number(one.band_high),
                message=one.message,
                advice=one.advice,
                how_sure=one.how_sure,
            )
            if key in self._open:
                self.deviations[self._open[key]] = deviation  # it became critical
            else:
                self._open[key] = len(self.deviations)
                self.deviations.append(deviation)
        elif key in self._open:
            at = self._open.pop(key)
            self.deviations[at] = _closed(self.deviations[at], one.step)

    def verdict(self, judge: Judge, reason: str | None) -> tuple[State, str]:
        """The gravest that was told, in a sentence; else what the judge says at the end."""
        found = self.deviations
        if found:
            graver = any(one.severity == _GRAVE for one in found)
            worst = [one for one in found if not graver or one.severity == _GRAVE]
            said = "; ".join(one.message for one in worst[:_SHOWN])
            more = f"; {len(found) - min(len(worst), _SHOWN)} more" if len(found) > min(len(worst), _SHOWN) else ""
            return ("violated" if graver else "drifting"), f"{said}{more}."
        if reason is not None:
            return "not measured", f"It is not held to its reference: {reason}."
        summary = judge.summary()
        return summary.state, summary.sentence


def _closed(one: Deviation, step: int) -> Deviation:
    values = {name: getattr(one, name) for name in one.__slots__}
    return Deviation(**(values | {"closed_step": step}))
