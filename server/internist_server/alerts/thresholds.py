"""The user's own thresholds on the series of one attempt: step by step, which of them fire. Pure, on arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from internist.schema.alerts import AlertState
from internist.schema.rules import ABSENT, THRESHOLD, Severity
from internist_server.alerts.lifecycle import FIELDS, FIRING, INACTIVE, PENDING, Flags, Lifecycle, Steps, advance
from internist_server.alerts.rules import Rule
from internist_server.alerts.threshold_checks import NOWHERE, Levels, ThresholdChecks
from internist_server.judge import wording
from internist_server.judge.series import JudgedSeries
from internist_server.judge.transitions import Transition

DEFAULT_SEVERITY: Final[Severity] = "warning"
_STATES: Final[dict[int, AlertState]] = {INACTIVE: "resolved", PENDING: "pending", FIRING: "firing"}
_UNSEEN: Final = -1


@dataclass(frozen=True, slots=True)
class _Kept:
    """One check that is not inactive, as it is kept between two requests."""

    rule: str
    series: int
    life: tuple[int, ...]
    worst: float


@dataclass(frozen=True, slots=True)
class _State:
    """All that is kept."""

    origin: int = _UNSEEN
    open: tuple[_Kept, ...] = ()
    seen: dict[int, int] = field(default_factory=dict)
    """By series that are waited for: step of the last point."""


class Thresholds:
    """Which thresholds are passed, by rule and series, with what is remembered of each.

    The state is that of the checks that are not inactive, by the rule's key and the series' id: it outlives a restart,
    series that come later and rules that change. What was open of a rule that is gone resolves at the next step.
    """

    def __init__(self, rules: Sequence[Rule], series: Sequence[JudgedSeries], *, state: bytes | None = None) -> None:
        """Thresholds of an attempt.

        Args:
            rules: of which those on a condition are left out.
            series: all of the attempt so far.
            state: what `state` returned, of these or of other rules.
        """
        self.rules = tuple(rule for rule in rules if rule.condition is None)
        self._series = list(series)
        self._orphans: list[_Kept] = []
        self._origin = _UNSEEN
        self._checks = ThresholdChecks.of(self.rules, self._series)
        self._life: Lifecycle = Lifecycle.inactive(0)
        self._worst: Levels = np.zeros(0)
        self._seen: Steps = np.zeros(0, np.int64)
        self._take_up(self._checks, _State() if state is None else msgspec.msgpack.decode(state, type=_State))

    def add_series(self, series: Sequence[JudgedSeries]) -> None:
        """Watches these too from now on; their columns come last."""
        kept = self._state()
        self._series.extend(series)
        self._take_up(ThresholdChecks.of(self.rules, self._series), kept)

    def change_rules(self, rules: Sequence[Rule]) -> None:
        """Watches by these from now on."""
        kept = self._state()
        self.rules = tuple(rule for rule in rules if rule.condition is None)
        self._take_up(ThresholdChecks.of(self.rules, self._series), kept)

    @property
    def columns(self) -> NDArray[np.int64]:
        """Columns of the series that some rule is on."""
        column = self._checks.column
        return np.unique(column[column != NOWHERE])

    def judge(
        self, step: int, values: NDArray[np.float32], present: Flags, *, skipped: bool = False
    ) -> list[Transition]:
        """What changes at this step, which is later than the one before.

        Args:
            step: that was measured.
            values: by column; NaN is a value where present, and passes every threshold.
            present: by column, whether it was measured.
            skipped: the optimizer step was skipped by a gradient scaler: infinite gradients are its ordinary work.
        """
        if self._origin == _UNSEEN:
            self._origin = step
        found = [self._orphaned(one, step) for one in self._orphans]
        self._orphans = []
        checks = self._checks
        if not checks.column.size:
            return found
        here, value = self._measure(step, values, present)
        if skipped:
            here &= ~checks.is_gradient
        before = self._life
        self._life = advance(
            before, step=step, breach=checks.are_beyond(value), clear=checks.are_back(value), measured=here,
            cadence=checks.apart, needed=checks.needed, recovery=checks.recovery,
        )  # fmt: skip
        excess = checks.excess(value)
        is_open = self._life.phase != INACTIVE
        self._worst = np.where(is_open, np.where(here, np.fmax(self._worst, excess), self._worst), 0.0)
        changed = np.flatnonzero(before.phase != self._life.phase).tolist()
        return found + [self._transition(c, step, before, value=float(value[c]), excess=excess) for c in changed]

    def state(self) -> bytes:
        """All it knows, for the next of this attempt."""
        return msgspec.msgpack.encode(self._state())

    def _take_up(self, checks: ThresholdChecks, kept: _State) -> None:
        """Goes on with these checks from what is remembered, of these or of others."""
        ids = [NOWHERE if at == NOWHERE else self._series[at].id for at in checks.column.tolist()]
        keys = [self.rules[rule].key for rule in checks.rule]
        place = {pair: check for check, pair in enumerate(zip(keys, ids, strict=True))}
        life = Lifecycle.inactive(len(ids))
        arrays = {name: getattr(life, name).copy() for name in FIELDS}
        self._worst = np.zeros(len(ids))
        self._orphans = []
        for one in kept.open:
            check = place.get((one.rule, one.series))
            if check is None:
                self._orphans.append(one)
                continue
            for name, value in zip(FIELDS, one.life, strict=True):
                arrays[name][check] = value
            self._worst[check] = one.worst
        self._checks, self._life, self._origin = checks, Lifecycle(**arrays), kept.origin
        self._seen = np.array([kept.seen.get(one, _UNSEEN) for one in ids], np.int64)

    def _measure(self, step: int, values: NDArray[np.float32], present: Flags) -> tuple[Flags, Levels]:
        """By check, whether there is something to compare now, and what: a value, or steps since the last one."""
        checks = self._checks
        somewhere = checks.column != NOWHERE
        here = np.zeros(checks.column.size, bool)
        here[somewhere] = present[checks.column[somewhere]]
        value = np.full(checks.column.size, np.nan)
        value[somewhere] = values[checks.column[somewhere]]
        awaits = checks.awaited > 0
        if awaits.any():
            first = np.where(somewhere, step, self._origin)  # it is waited for from when it is known on
            self._seen = np.where(here & awaits, step, np.where(self._seen == _UNSEEN, first, self._seen))
            value = np.where(awaits, step - self._seen, value)
            here |= awaits
        return here, value

    def _transition(self, check: int, step: int, before: Lifecycle, *, value: float, excess: Levels) -> Transition:
        rule, phase = self.rules[self._checks.rule[check]], int(self._life.phase[check])
        times = before if phase == INACTIVE else self._life
        since, opened = int(times.started[check]), int(times.opened[check])
        one = None if self._checks.column[check] == NOWHERE else self._series[int(self._checks.column[check])]
        where, metric = ("the run", rule.metric) if one is None else (wording.place(one.subject, one.index), one.metric)
        if rule.absent is not None:
            said = _absence(rule.absent, value, step, metric=metric, is_over=phase == INACTIVE)
        else:
            said = _standing(rule, value, since, step, metric=metric, is_over=phase == INACTIVE)
        low, high = (None, None) if rule.absent is not None else (rule.below, rule.above)
        return Transition(
            series=None if one is None else one.id,
            rule=rule.name,
            condition=THRESHOLD if rule.absent is None else ABSENT,
            state=_STATES[phase],
            severity=rule.severity or DEFAULT_SEVERITY,
            cause="own",
            step=step,
            pending_step=since,
            opened_step=opened if times.phase[check] == FIRING else None,
            value=value,
            ratio=float(excess[check]),
            worst_ratio=float(max(self._worst[check], excess[check])),
            basis="target",
            band_low=low,
            band_high=high,
            message=f"{where}: {said}",
            advice=rule.annotations.get("advice", ""),
        )

    def _orphaned(self, one: _Kept, step: int) -> Transition:
        """The end of an alert whose rule is gone, or says something else."""
        life = dict(zip(FIELDS, one.life, strict=True))
        name = one.rule.rpartition("/")[0]
        is_there = one.series == NOWHERE and any(rule.key == one.rule for rule in self.rules)
        said = "a series that it is on has come" if is_there else "it was changed or taken away"
        return Transition(
            series=None if one.series == NOWHERE else one.series, rule=name, condition=THRESHOLD, state="resolved",
            severity=DEFAULT_SEVERITY, cause="own", step=step, pending_step=life["started"],
            opened_step=life["opened"] if life["phase"] == FIRING else None, value=np.nan, ratio=1.0,
            worst_ratio=one.worst, basis="target", band_low=None, band_high=None, advice="",
            message=f"rule {name}: {said}, before step {step}",
        )  # fmt: skip

    def _state(self) -> _State:
        kept = []
        for check in np.flatnonzero(self._life.phase).tolist():
            at = int(self._checks.column[check])
            life = tuple(int(getattr(self._life, name)[check]) for name in FIELDS)
            series = NOWHERE if at == NOWHERE else self._series[at].id
            kept.append(_Kept(self.rules[self._checks.rule[check]].key, series, life, float(self._worst[check])))
        awaited = np.flatnonzero(
            (self._checks.awaited > 0) & (self._seen != _UNSEEN) & (self._checks.column != NOWHERE)
        )
        seen = {self._series[int(self._checks.column[check])].id: int(self._seen[check]) for check in awaited.tolist()}
        return _State(self._origin, (*kept, *self._orphans), seen)


def _standing(rule: Rule, value: float, since: int, step: int, *, metric: str, is_over: bool) -> str:
    """Where a value is, in words."""
    if is_over:
        back = f"at step {step} it is back at {wording.figure(value)}"
        return f"{metric} was past the threshold of {rule.name} since step {since}; {back}"
    if np.isnan(value):
        return f"{metric} is NaN, since step {since}"
    over = rule.above is not None and value > rule.above
    edge = rule.above if over else rule.below
    assert edge is not None
    return (
        f"{metric} is {wording.figure(value)}, {'over' if over else 'under'} {wording.figure(edge)}, since step {since}"
    )


def _absence(awaited: int, steps: float, step: int, *, metric: str, is_over: bool) -> str:
    """That a series does not come, in words."""
    if is_over:
        return f"{metric} is measured again at step {step}"
    return f"{metric} has not been measured for {steps:.0f} steps, up to step {step}; expected every {awaited}"
