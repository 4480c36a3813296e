"""What the judge remembers between steps: arrays aligned with its checks and its series, packed into bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internist_server.alerts import lifecycle
from internist_server.alerts.lifecycle import Lifecycle
from internist_server.judge import drift, packing
from internist_server.judge import recent as recent_values
from internist_server.judge.checks import Checks, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.drift import Trends
from internist_server.judge.errors import JudgeStateError
from internist_server.judge.own_rates import OwnRates
from internist_server.judge.recent import Recent
from internist_server.judge.schedule import Schedule
from internist_server.judge.sparklines import Sparklines

NEVER = -1

_FILL_OF_CHECK = {
    "baseline": np.nan,
    "growth": 0.0,
    "ceiling": np.nan,
    "ceiling_factor": np.nan,
    "ratio": np.nan,
    "worst": 0.0,
    "above": 0.0,
    "below": 0.0,
    "warn_low": np.nan,
    "warn_high": np.nan,
    "critical_low": np.nan,
    "critical_high": np.nan,
    "unit": 1.0,
    "first": np.nan,
    "samples": 0.0,
    "scatter": np.nan,
}
_STEPS_OF_CHECK = ("out_first", "out_last", "accepted")
_FIRST_OF_CHECK = ("baseline", "growth", "ceiling", "ceiling_factor", "ratio", "worst")
"""Those that every version has."""
_REFERENCE = 2
_LIFECYCLES = ("warning", "violation", "numeric")
_SCALARS = ("step", "origin", "grid", "regular", "stride")
_LATER_SCALARS: dict[str, Any] = {
    "numeric_column": NEVER,
    "numeric_step": NEVER,
    "silent_column": NEVER,
    "silent_step": NEVER,
    "facts": (),
}
"""Those that states of earlier versions lack, as they are then."""
_OWN_RATES = ("raw", "highest", "window")
_SCHEDULE_SCALARS = (
    "raw",
    "peak",
    "warming",
    "anchors",
    "jump_from",
    "jump_step",
    "jump_group",
    "jump_worst",
)


LEAPS = ("decay", "weight", "state", "logits")
"""What leaps as nothing explains: a group's weight decay, a weight's RMS, the steps that an optimizer's state saw, an
attention's largest logits."""


@dataclass(frozen=True, slots=True)
class Leap:
    """One that is open."""

    column: int
    step: int
    before: float


OpenFact = tuple[int, int, float, float, str, str]
"""Column, step since which, last value, bound, what it is and whose the bound is in words."""


def _floats() -> Logs:
    return np.empty(0, np.float32)


def _integers() -> Indices:
    return np.empty(0, np.int64)


@dataclass(slots=True)
class Memory:
    """All that a judge knows of the past."""

    step: int = NEVER
    """Last judged step."""
    origin: int = NEVER
    """First judged step."""
    grid: int = NEVER
    """Grid point at which baselines were last taken."""
    regular: int = NEVER
    """Last step of the regular grid at which something was measured."""
    stride: int = 1
    """How many times more rarely than by default regular steps come."""
    schedule: Schedule = field(default_factory=Schedule)
    own_rates: OwnRates = field(default_factory=OwnRates)
    sparklines: Sparklines = field(default_factory=Sparklines)

    column: Indices = field(default_factory=_integers)
    """Columns of the checks."""
    rate_columns: Indices = field(default_factory=_integers)
    """Columns of the groups' learning rates."""
    baseline: Logs = field(default_factory=_floats)
    """By check: NaN unknown, zero where the median is not positive."""
    growth: Logs = field(default_factory=_floats)
    """log2 of the growth since the baseline's window that is allowed for."""
    ceiling: Logs = field(default_factory=_floats)
    """Largest baseline of the unscaled values so far, and the schedule's raw factor in its window."""
    ceiling_factor: Logs = field(default_factory=_floats)
    ratio: Logs = field(default_factory=_floats)
    """log2 ratio at the last judged point."""
    worst: Logs = field(default_factory=_floats)
    """log2 of the worst excess of the present excursion."""
    above: Logs = field(default_factory=_floats)
    below: Logs = field(default_factory=_floats)
    """log2 of how far the window's own spread lets a value be from its centre."""
    warn_low: Logs = field(default_factory=_floats)
    warn_high: Logs = field(default_factory=_floats)
    critical_low: Logs = field(default_factory=_floats)
    critical_high: Logs = field(default_factory=_floats)
    """The band that the last judged point was held to, as levels (values, scheduled ones over the schedule's divisor);
    NaN: no such edge."""
    unit: Logs = field(default_factory=_floats)
    """What such a level is multiplied by to be a value at that point."""
    first: Logs = field(default_factory=_floats)
    """The first positive value; NaN: none yet."""
    samples: Logs = field(default_factory=_floats)
    """How many values its baseline was taken from; 0 unknown."""
    scatter: Logs = field(default_factory=_floats)
    """log2 of their standard deviation about their trend."""
    out_first: Indices = field(default_factory=_integers)
    out_last: Indices = field(default_factory=_integers)
    """First and last step of the last excursion that fired: its points make no baseline."""
    accepted: Indices = field(default_factory=_integers)
    """Step from which on someone has called a check's values its new normal; earlier ones make no baseline."""
    basis: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    is_critical: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    """Whether the open alert has been critical."""
    warning: Lifecycle = field(default_factory=lambda: Lifecycle.inactive(0))
    """Of values beyond the warning band."""
    violation: Lifecycle = field(default_factory=lambda: Lifecycle.inactive(0))
    """Of values beyond the critical band."""
    trends: Trends = field(default_factory=lambda: Trends.none(0))
    recent: Recent = field(default_factory=lambda: Recent.none(0))
    """Aligned with `Checks.recent`."""

    seen: Indices = field(default_factory=_integers)
    """By series: step of the last point."""
    last: Logs = field(default_factory=_floats)
    """By series: value of the last point."""
    numeric: Lifecycle = field(default_factory=lambda: Lifecycle.inactive(0))
    """By series: of values that are not finite."""
    numeric_column: int = NEVER
    """Column of the series that the open alert on numbers names; NEVER: none is open."""
    numeric_step: int = NEVER
    """Step at which it was opened."""
    facts: Sequence[OpenFact] = ()
    """Facts of the first step that are still beyond their bounds."""
    silent_column: int = NEVER
    """Column of the series that the open alert on absence names; NEVER: none is open."""
    silent_step: int = NEVER
    """Step at which it was opened."""
    leaps: dict[str, Leap] = field(default_factory=dict)
    """Those that are open, by what leaps."""

    def grow(self, checks: Checks, size: int) -> None:
        """Room for these checks and this number of series, those it knows coming first."""
        count = checks.column.size
        if not np.array_equal(self.column, checks.column[: self.column.size]):
            raise JudgeStateError("the state is of a judge with other checks: its series or its parametrisation differ")
        for name, fill in _FILL_OF_CHECK.items():
            setattr(self, name, _extended(getattr(self, name), count, fill))
        for name in _STEPS_OF_CHECK:
            setattr(self, name, _extended(getattr(self, name), count, NEVER))
        self.basis = _extended(self.basis, count, 0)
        self.is_critical = _extended(self.is_critical, count, False)
        self.warning, self.violation = self.warning.extended(count), self.violation.extended(count)
        self.trends = self.trends.extended(count)
        self.recent = self.recent.extended(checks.recent.size)
        self.column = checks.column
        self.seen, self.last = _extended(self.seen, size, NEVER), _extended(self.last, size, np.nan)
        self.numeric = self.numeric.extended(size)
        self.rate_columns = checks.rate_columns
        self.schedule.resize(checks.rate_weights)
        self.own_rates.resize(len(checks.rate_weights))

    def is_two_sided(self, checks: Checks) -> NDArray[np.bool_]:
        """By check: whether its last point was held to a lower edge as well."""
        two_sided: NDArray[np.bool_] = checks.two_sided | (self.basis == _REFERENCE)
        return two_sided

    def begin(self, step: int, *, every: int, is_sampled: bool) -> None:
        """Moves on to a step."""
        self.step = step
        if self.origin == NEVER:
            self.origin = step
        if is_sampled and step % every == 0:
            if self.regular != NEVER:
                self.stride = max(1, (step - self.regular) // every)
            self.regular = step

    def inherit(self, parent: "Memory", columns: Sequence[int]) -> None:
        """Takes over baselines and schedule of the attempt that this one resumes.

        Args:
            parent: the parent's memory.
            columns: column here of each of the parent's series; -1: none.
        """
        here = {int(column): check for check, column in enumerate(self.column)}
        pairs = [(here[columns[c]], check) for check, c in enumerate(parent.column.tolist()) if columns[c] in here]
        if pairs:
            mine, theirs = np.array(pairs, np.int64).T
            for name in (
                "baseline", "growth", "above", "below", "ceiling", "ceiling_factor", "first", "samples", "scatter"
            ):  # fmt: skip
                if getattr(parent, name).size:  # a state of an earlier version lacks some
                    getattr(self, name)[mine] = getattr(parent, name)[theirs]
        groups = {int(column): group for group, column in enumerate(self.rate_columns)}
        for group, column in enumerate(parent.rate_columns.tolist()):
            if columns[column] in groups:
                mine = groups[columns[column]]
                self.schedule.reference[mine] = parent.schedule.reference[group]
                self.schedule.rates[mine] = parent.schedule.rates[group]
                if parent.schedule.highest.size:
                    self.schedule.highest[mine] = parent.schedule.highest[group]
        for name in ("raw", "peak", "warming", "anchors"):
            setattr(self.schedule, name, getattr(parent.schedule, name))

    def pack(self, order: Sequence[int]) -> bytes:
        """All of it as bytes; `order` are the ids of its series."""
        schedule = self.schedule
        arrays: dict[str, NDArray[np.generic]] = {
            "order": np.asarray(order, np.int64),
            "column": self.column.astype(np.int32),
            "rate_columns": self.rate_columns,
            "basis": self.basis,
            "is_critical": self.is_critical,
            "seen": self.seen,
            "last": self.last,
            "reference": schedule.reference,
            "highest": schedule.highest,
            "declared": schedule.declared,
            "rates": schedule.rates,
            "spark_steps": self.sparklines.steps,
            "spark_excess": self.sparklines.excess,
            "spark_drawn": self.sparklines.drawn,
        }
        own = self.own_rates
        arrays |= {f"own_{name}": getattr(own, name) for name in _OWN_RATES}
        arrays |= {name: getattr(self, name) for name in _FILL_OF_CHECK}
        marked = np.flatnonzero((self.out_first != NEVER) | (self.accepted != NEVER))
        arrays |= {"marked": marked} | {name: getattr(self, name)[marked] for name in _STEPS_OF_CHECK}
        arrays |= {f"trend_{name}": getattr(self.trends, name) for name in drift.FIELDS}
        arrays |= {f"recent_{name}": getattr(self.recent, name) for name in recent_values.FIELDS}
        for name in _LIFECYCLES:
            arrays |= _sparse(name, getattr(self, name))
        numbers: dict[str, object] = {name: getattr(self, name) for name in (*_SCALARS, *_LATER_SCALARS)}
        numbers |= {name: getattr(schedule, name) for name in _SCHEDULE_SCALARS} | {"window": schedule.window}
        numbers |= {"own_leaps": own.leaps, "own_run": own.run, "own_run_highest": own.run_highest}
        for kind, leap in self.leaps.items():
            numbers |= {f"{kind}_column": leap.column, f"{kind}_step": leap.step, f"{kind}_before": leap.before}
        return packing.pack(numbers, arrays)

    @classmethod
    def unpack(cls, packed: bytes) -> tuple[list[int], "Memory"]:
        """Ids of its series, and the memory.

        Raises:
            JudgeStateError: it cannot be read.
        """
        numbers, arrays = packing.unpack(packed)
        try:
            scalars = {name: numbers[name] for name in _SCALARS}
            scalars |= {name: numbers.get(name, absent) for name, absent in _LATER_SCALARS.items()}
            memory = cls(**scalars)  # type: ignore[arg-type]
            for name in _SCHEDULE_SCALARS:
                setattr(memory.schedule, name, numbers[name])
            memory.facts = tuple(
                (int(c), int(at), float(v), float(b), str(said), str(*whose))
                for c, at, v, b, said, *whose in memory.facts
            )
            for kind in LEAPS:
                column, step, before = (numbers.get(f"{kind}_{part}", NEVER) for part in ("column", "step", "before"))
                if column != NEVER:
                    memory.leaps[kind] = Leap(int(column), int(step), float(before))  # type: ignore[call-overload, arg-type]
            memory.schedule.window = float(numbers.get("window", math.nan))  # type: ignore[arg-type]
            memory.schedule.anchors = [(int(step), float(raw)) for step, raw in memory.schedule.anchors]
            for name in ("reference", "rates"):
                setattr(memory.schedule, name, arrays[name])
            memory.schedule.highest = arrays.get("highest", arrays["rates"])  # type: ignore[assignment]
            memory.schedule.declared = arrays.get("declared", np.empty(0))  # type: ignore[assignment]
            if "own_raw" in arrays:
                memory.own_rates = _own_rates(numbers, arrays)
            for name in ("basis", "is_critical", "seen", "last"):
                setattr(memory, name, arrays[name])
            for name in _FILL_OF_CHECK:
                if name in arrays or name in _FIRST_OF_CHECK:  # those of later versions are filled by `grow`
                    setattr(memory, name, arrays[name])
            for name in _STEPS_OF_CHECK if "marked" in arrays else ():
                whole = np.full(arrays["column"].size, NEVER, np.int64)
                whole[arrays["marked"]] = arrays[name]
                setattr(memory, name, whole)
            memory.column = arrays["column"].astype(np.int64)
            memory.rate_columns = arrays["rate_columns"].astype(np.int64)
            memory.trends = Trends(*(arrays[f"trend_{name}"] for name in drift.FIELDS))  # type: ignore[arg-type]
            if "recent_taken" in arrays:
                memory.recent = Recent(*(arrays[f"recent_{name}"] for name in recent_values.FIELDS))  # type: ignore[arg-type]
            sizes = (memory.column.size, memory.column.size, memory.seen.size)
            for name, size in zip(_LIFECYCLES, sizes, strict=True):
                setattr(memory, name, _dense(name, arrays, size))
            lines = memory.sparklines
            lines.steps, lines.excess, lines.drawn = (  # type: ignore[assignment]
                arrays[f"spark_{name}"] for name in ("steps", "excess", "drawn")
            )
            return [int(one) for one in arrays["order"].tolist()], memory
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise JudgeStateError(f"a judge's state of {len(packed)} bytes lacks a part: {error!r}") from error


def _own_rates(numbers: dict[str, Any], arrays: dict[str, Any]) -> OwnRates:
    return OwnRates(
        leaps=[(int(step), int(group), float(far)) for step, group, far in numbers["own_leaps"]],
        run=float(numbers["own_run"]),
        run_highest=float(numbers["own_run_highest"]),
        **{name: arrays[f"own_{name}"] for name in _OWN_RATES},
    )


def _extended(array: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    return np.concatenate([array, np.full(size - array.size, fill, array.dtype)])


def _sparse(name: str, life: Lifecycle) -> dict[str, NDArray[np.generic]]:
    """A lifecycle as arrays of those that are not inactive."""
    at = np.flatnonzero(life.phase)
    return {f"{name}_at": at} | {f"{name}_{part}": getattr(life, part)[at] for part in lifecycle.FIELDS}


def _dense(name: str, arrays: dict[str, NDArray[np.generic]], size: int) -> Lifecycle:
    life, at = Lifecycle.inactive(size), arrays[f"{name}_at"]
    parts = []
    for part in lifecycle.FIELDS:
        whole = getattr(life, part).copy()
        whole[at] = arrays[f"{name}_{part}"]
        parts.append(whole)
    return Lifecycle(*parts)
