"""Transitions: what became of alerts at one judged step, each with its message."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.alerts import AlertState
from internist.schema.conditions import CONDITION, CRITERIA, Basis
from internist.schema.rules import RULE_OF_CONDITION, Severity
from internist_server.alerts.lifecycle import FIRING, INACTIVE, PENDING, Lifecycle
from internist_server.judge import sureness, wording
from internist_server.judge.checks import Checks, Flags, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.edges import Edges
from internist_server.judge.evaluation import BASES
from internist_server.judge.facts import Fact
from internist_server.judge.memory import NEVER, Memory
from internist_server.judge.series import JudgedSeries

_STATES: dict[int, AlertState] = {INACTIVE: "resolved", PENDING: "pending", FIRING: "firing"}


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert changed state at a judged step. There is one open alert per (series, rule).

    With `for` of one point an alert goes straight to `firing`. An alert that is firing already is reported as `firing`
    once more when it turns from a warning to critical: same pending step, higher severity.
    A pending alert that goes back into its band is `resolved` with `opened_step` None.
    """

    series: int | None
    """None: a series that is waited for, and that no run has had yet."""
    rule: str
    condition: str
    state: AlertState
    severity: Severity
    cause: str
    """`own`, `weight`, `learning_rate` or `feature`."""
    step: int
    """The step at which the change was judged."""
    pending_step: int
    """First step of the excursion."""
    opened_step: int | None
    """Step at which it fired, if it did."""
    value: float
    ratio: float
    """How many times it is out of its band's centre (targets: of its edge); over one also where it is too small."""
    worst_ratio: float
    basis: Basis | None
    band_low: float | None
    band_high: float | None
    message: str
    advice: str
    how_sure: str = ""
    """How sure it is, in words."""


@dataclass(frozen=True, slots=True)
class AlertPhases:
    """Where the alerts of all checks stand: by the warning lifecycle where warnings alarm, else by the critical one."""

    phase: NDArray[np.uint8]
    started: Indices
    opened: Indices
    is_critical: Flags

    @classmethod
    def of(cls, checks: Checks, warning: Lifecycle, violation: Lifecycle, is_critical: Flags) -> "AlertPhases":
        """From both lifecycles; `is_critical` is whether the open alert has been critical before."""
        early = checks.alarms_on_warning & (warning.phase >= violation.phase)
        phase = np.where(early, warning.phase, violation.phase)
        return cls(
            phase=phase,
            started=np.where(early, warning.started, violation.started),
            opened=np.where(early, warning.opened, violation.opened),
            is_critical=(is_critical & (phase != INACTIVE)) | (violation.phase == FIRING),
        )


def of_checks(
    series: Sequence[JudgedSeries],
    checks: Checks,
    memory: Memory,
    edges: Edges,
    before: AlertPhases,
    after: AlertPhases,
    worst: Logs,
    *,
    is_new_normal: bool = False,
) -> list[Transition]:
    """Transitions of the checks whose phase or severity changed at `memory.step`.

    Args:
        is_new_normal: those that end do so because someone says that the value is its new normal.
    """
    rises = (after.phase == FIRING) & after.is_critical & ~before.is_critical
    found = []
    two_sided = memory.is_two_sided(checks)
    for check in np.flatnonzero((before.phase != after.phase) | rises).tolist():
        criterion = CRITERIA[int(checks.criterion[check])]
        rule = RULE_OF_CONDITION[criterion.condition]
        one = series[int(checks.column[check])]
        state = _STATES[int(after.phase[check])]
        times = before if state == "resolved" else after
        is_critical = bool(times.is_critical[check] or not checks.alarms_on_warning[check])
        low, high = edges.of(check, is_critical=is_critical)
        basis, ratio = BASES[int(memory.basis[check])] or "baseline", float(np.exp2(memory.ratio[check]))
        value = float(memory.last[checks.column[check]])
        started = int(times.started[check])
        phrase = wording.standing(metric=one.metric, basis=basis, ratio=ratio, value=value, low=low, high=high)
        where = wording.place(one.subject, one.index)
        if state == "resolved" and is_new_normal:
            message = wording.renewed(
                f"{where}: {one.metric} was out of its band since step {started}", step=memory.step
            )
        elif state == "resolved":
            said = f"{where}: {one.metric} was out of its band since step {started}"
            message = wording.recovered(said, value=value, edges=wording.band(low, high), step=memory.step)
        else:
            message = wording.message(
                metric=one.metric, where=where, phrase=phrase, low=low, high=high, since=started, basis=basis
            )
        sure = None if state == "resolved" else sureness.of_check(memory, checks, check)
        found.append(
            Transition(
                series=one.id,
                rule=rule.name,
                condition=criterion.condition,
                state=state,
                severity=rule.violated if is_critical else rule.drifting or rule.violated,
                cause=criterion.cause,
                step=memory.step,
                pending_step=started,
                opened_step=int(times.opened[check]) if times.phase[check] == FIRING else None,
                value=value,
                ratio=_out(ratio, two_sided=bool(two_sided[check])),
                worst_ratio=float(np.exp2(worst[check], dtype=np.float64)),
                basis=basis,
                band_low=low,
                band_high=high,
                message=message,
                advice=CONDITION[criterion.condition].advice,
                how_sure=wording.SURE_OF[basis]
                if sure is None
                else wording.sureness(sure.samples, sure.deviations, sure.sure, is_out=True),
            )
        )
    return found


def of_finite(series: Sequence[JudgedSeries], memory: Memory, places: Indices) -> list[Transition]:
    """The transition of the one alert on numbers at `memory.step`: opened by the first series in forward order that
    is not finite, ended when all are finite again. What else turns NaN meanwhile follows from the first.

    Args:
        series: all of them.
        memory: with the lifecycles of this step; what it knows of the open alert is brought up to date.
        places: forward order of the series.
    """
    bad = np.flatnonzero(memory.numeric.phase == FIRING)
    if bool(bad.size) == (memory.numeric_column != NEVER):
        return []
    if bad.size:
        column, memory.numeric_step = int(bad[np.lexsort((bad, places[bad]))[0]]), memory.step
        memory.numeric_column = column
    else:
        column = memory.numeric_column
    fires, since = bool(bad.size), memory.numeric_step
    one, value = series[column], float(memory.last[column])
    where = wording.place(one.subject, one.index)
    if fires:
        others = f"; {bad.size - 1} more series are not finite" if bad.size > 1 else ""
        message = f"{where}: {wording.nonfinite(one.metric, value)}, since step {since}{others}"
    else:
        message = f"{where}: {one.metric} was not finite since step {since}; all is finite again at step {memory.step}"
        memory.numeric_column = memory.numeric_step = NEVER
    rule, condition = RULE_OF_CONDITION["numeric"], CONDITION["numeric"]
    return [
        Transition(
            series=one.id,
            rule=rule.name,
            condition=condition.name,
            state="firing" if fires else "resolved",
            severity=rule.violated,
            cause="own",
            step=memory.step,
            pending_step=since,
            opened_step=since,
            value=value,
            ratio=np.inf if fires else 1.0,
            worst_ratio=np.inf,
            basis="target",
            band_low=None,
            band_high=None,
            message=message,
            advice=condition.advice,
            how_sure=wording.COUNTED,
        )
    ]


def of_fact(series: Sequence[JudgedSeries], memory: Memory, fact: Fact, *, since: int, is_over: bool) -> Transition:
    """The transition of a fact of the first step that is found at `memory.step`, or is over."""
    rule, condition, one = RULE_OF_CONDITION["first_step"], CONDITION["first_step"], series[fact.column]
    where, is_open = wording.place(one.subject, one.index), not is_over
    said = f"{where}: {wording.fact(fact.said, fact.value, fact.bound, whose=fact.whose)}"
    return Transition(
        series=one.id,
        rule=rule.name,
        condition=condition.name,
        state="firing" if is_open else "resolved",
        severity=rule.violated,
        cause="own",
        step=memory.step,
        pending_step=since,
        opened_step=since,
        value=fact.value,
        ratio=fact.excess,
        worst_ratio=fact.excess,
        basis="target",
        band_low=None,
        band_high=fact.bound,
        message=f"{said}, at step {since}" if is_open else f"{said} at step {memory.step}: inside its bound again",
        advice=condition.advice,
        how_sure=wording.SURE_OF["target"],
    )


def of_silence(
    series: Sequence[JudgedSeries], checks: Checks, memory: Memory, silent: Flags, places: Indices
) -> list[Transition]:
    """The transition of the one alert on what is no longer measured: opened by the first in forward order of the checks
    that have stopped, ended when none has.

    Args:
        series: all of them.
        checks: the judged ones.
        memory: what it knows of the open alert is brought up to date.
        silent: by check, whether it was judged and has not been measured for too long.
        places: forward order of the series.
    """
    gone = checks.column[silent]
    if bool(gone.size) == (memory.silent_column != NEVER):
        return []
    if gone.size:
        memory.silent_column, memory.silent_step = int(gone[np.lexsort((gone, places[gone]))[0]]), memory.step
    column, since = memory.silent_column, int(memory.seen[memory.silent_column])
    one, opened = series[column], memory.silent_step
    where = wording.place(one.subject, one.index)
    others = len({series[at].subject for at in gone.tolist()} - {one.subject})
    if gone.size:
        more = f"; {others} more modules or parameters with it" if others else ""
        message = f"{where}: no data of {one.metric} since step {since}{more}"
    else:
        message = f"{where}: {one.metric} is measured again at step {memory.step}"
        memory.silent_column = memory.silent_step = NEVER
    rule, condition = RULE_OF_CONDITION["no_data"], CONDITION["no_data"]
    return [
        Transition(
            series=one.id,
            rule=rule.name,
            condition=condition.name,
            state="firing" if gone.size else "resolved",
            severity=rule.violated,
            cause="own",
            step=memory.step,
            pending_step=opened,
            opened_step=opened,
            value=float(memory.last[column]),
            ratio=1.0,
            worst_ratio=1.0,
            basis=None,
            band_low=None,
            band_high=None,
            message=message,
            advice=condition.advice,
            how_sure=wording.COUNTED,
        )
    ]


def first_causes_first(
    changes: list[Transition], order: Sequence[int], place: Indices, distances: NDArray[np.float64]
) -> list[Transition]:
    """What a step changed, in the order of causes: what shows in a module before what shows in the whole model, unless
    that began earlier than the module can have; then by time, and in forward order.

    Args:
        changes: of one step.
        order: ids of the series.
        place: forward order of the series.
        distances: steps between two points of the series.
    """
    if len(changes) < 2:
        return changes
    column: dict[int | None, int] = {one: at for at, one in enumerate(order)}
    earliest = min(change.pending_step for change in changes)

    def key(change: Transition) -> tuple[bool, bool, int, int]:
        at = column[change.series]
        is_late = change.pending_step - max(float(distances[at]), 1.0) >= earliest
        return is_late, change.cause == "model", change.pending_step, int(place[at])

    return sorted(changes, key=key)


def _out(ratio: float, *, two_sided: bool) -> float:
    """How many times out: ratios under one count as their inverse where too small is bad too."""
    if not two_sided or ratio >= 1:
        return ratio
    return 1 / ratio if ratio > 0 else float("inf")
