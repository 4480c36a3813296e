"""The schedule factor: how far the whole run's learning rate is from its largest so far, and when it jumps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import RECOVERY, SCHEDULE_FLOOR, SCHEDULE_JUMP

Floats = NDArray[np.float64]

WARM_UP_RISE = 1.02
WARM_UP_STEPS = 100
"""Warm-up ends when the factor has not risen by more than WARM_UP_RISE over this many steps."""
ZERO_FROM = 0.05
"""Share of a group's largest rate from which a rate that falls to exactly 0 has been dropped, and not decayed to it."""
RESTART_ABOVE = 2.0
"""A rate that rises to at most this many times the largest so far is a restart of its schedule, or the next period: a
warm-up may have kept it from the peak of the first one."""
_ANCHOR_STEPS = 10
"""Factors of the last WARM_UP_STEPS are kept no closer than this."""


def schedule_factor(rates: Floats, reference: Floats, weights: Floats) -> Floats:
    """Weighted median over parameter groups of `rates / reference`, one per row; NaN where no group has both.

    Args:
        rates: (points, groups) learning rates; NaN where not measured.
        reference: (groups,) the rate each group is compared with; NaN where none was positive yet.
        weights: (groups,) number of parameters of each group.

    Run-wide on purpose: a schedule moves all groups and cancels, a mistake in one group does not. Of an even split the
    lower ratio is taken.
    """
    if not reference.size:
        return np.full(len(rates), np.nan)
    ratios = rates / reference
    if reference.size == 1:
        return np.asarray(ratios[:, 0])
    known = ~np.isnan(ratios)
    order = np.argsort(ratios, axis=1)
    cumulated = np.cumsum(np.take_along_axis(np.where(known, weights, 0.0), order, axis=1), axis=1)
    middle = np.argmax(cumulated >= cumulated[:, -1:] / 2, axis=1)
    median = np.take_along_axis(ratios, np.take_along_axis(order, middle[:, None], axis=1), axis=1)[:, 0]
    return np.where(known.any(axis=1), median, np.nan)


@dataclass(slots=True)
class Schedule:
    """What is known of the run's learning rates.

    `raw` is the factor against each group's first positive rate, which never changes afterwards: values divided by it
    are comparable over warm-up and decay. `factor` = raw / peak is s(t), its reference being the largest so far.
    """

    reference: Floats = field(default_factory=lambda: np.empty(0))
    rates: Floats = field(default_factory=lambda: np.empty(0))
    weights: Floats = field(default_factory=lambda: np.empty(0))
    raw: float = math.nan
    peak: float = math.nan
    warming: bool = True
    anchors: list[tuple[int, float]] = field(default_factory=list)
    highest: Floats = field(default_factory=lambda: np.empty(0))
    """The largest rate of each group so far."""
    declared: Floats = field(default_factory=lambda: np.empty(0))
    """What the run said last that it multiplies each rate by; NaN where it did not."""
    meant: Floats = field(default_factory=lambda: np.empty(0))
    """How many times each rate was meant to change at the last observed step."""
    is_told: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    """Whether the run said so, of each rate."""
    jump_from: float = math.nan
    """Rate of the group before the jump that is open; NaN: none is."""
    jump_step: int = -1
    jump_group: int = -1
    jump_worst: float = 1.0
    window: float = math.nan
    """Median divisor in the window from which baselines were last taken."""

    @property
    def factor(self) -> float:
        """s(t) in [0, 1]; NaN while no rate was positive or none is measured."""
        return self.raw / self.peak if self.peak > 0 else math.nan

    @property
    def divisor(self) -> float:
        """What a scheduled value is divided by: the raw factor, not under SCHEDULE_FLOOR of its peak; 1 if unknown."""
        return max(self.raw, self.floor) if self.peak > 0 else 1.0

    @property
    def floor(self) -> float:
        """The raw factor under which values are not compared; minus infinity while no rate was positive."""
        return SCHEDULE_FLOOR * self.peak if self.peak > 0 else -math.inf

    @property
    def is_warming_up(self) -> bool:
        """Whether rates are measured and still rising."""
        return self.warming and bool(np.isfinite(self.rates).any())

    @property
    def is_low(self) -> bool:
        """Whether s(t) is so small that a small update says nothing."""
        return self.factor < SCHEDULE_FLOOR

    @property
    def jumped(self) -> bool:
        """Whether a jump of the learning rate is open."""
        return not math.isnan(self.jump_from)

    @property
    def jump_ratio(self) -> float:
        """The rate of the group that jumped over the one before."""
        return float(self.rates[self.jump_group]) / self.jump_from

    def resize(self, weights: Sequence[float]) -> None:
        """Knows of these groups from now on; those it knew come first and stay."""
        grown = np.full(len(weights), np.nan)
        grown[: self.reference.size] = self.reference
        rates = np.full(len(weights), np.nan)
        rates[: self.rates.size] = self.rates
        highest = np.full(len(weights), np.nan)
        highest[: self.highest.size] = self.highest
        self.reference, self.rates, self.highest = grown, rates, highest
        self.weights = np.asarray(weights, dtype=np.float64)
        self.meant, self.is_told = np.ones(len(weights)), np.zeros(len(weights), bool)

    def observe(self, step: int, rates: Floats, *, declared: Floats | None = None, rise: float | None = None) -> None:
        """Takes in the learning rates of one step.

        Args:
            step: its number.
            rates: (groups,) NaN where a group's is not measured there.
            declared: (groups,) what the run says that it multiplies them by; NaN where it does not.
            rise: how many times larger it says that they will be within WARM_UP_STEPS; None where it does not.
        """
        measured = np.isfinite(rates)
        self.meant, self.is_told = np.ones(self.rates.size), np.zeros(self.rates.size, bool)
        if not measured.any():
            return
        self.meant = self._declared_moves(declared)
        before = self.rates * self.meant
        self.rates = np.where(measured, rates, self.rates)
        self.reference = np.where(np.isnan(self.reference) & (self.rates > 0), self.rates, self.reference)
        self.raw = float(schedule_factor(self.rates[None], self.reference, self.weights)[0])
        if math.isnan(self.raw):
            return
        self.peak = self.raw if math.isnan(self.peak) else max(self.peak, self.raw)
        self._watch_jump(step, before)
        self.highest = np.fmax(self.highest, self.rates)
        if rise is not None:
            self.warming = self.warming and rise > WARM_UP_RISE
        elif self.warming:
            self._watch_warm_up(step)

    def _declared_moves(self, declared: Floats | None) -> Floats:
        """How many times each rate was meant to change since it was last seen; 1 where nothing was declared."""
        if declared is None or not np.isfinite(declared).any():
            return np.ones(self.rates.size)
        known = self.declared if self.declared.size == declared.size else np.full(declared.size, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            moves = declared / known
        self.declared = np.where(np.isfinite(declared), declared, known)
        self.is_told = np.isfinite(moves)
        return np.where(self.is_told, moves, 1.0)

    def factors(self, rates: Floats) -> Floats:
        """Raw factors of earlier points, one per row of `rates`; 1 where no rate is measured in this run."""
        if not self.reference.size or not self.peak > 0:
            return np.ones(len(rates))
        return schedule_factor(rates, self.reference, self.weights)

    def _watch_warm_up(self, step: int) -> None:
        old = [raw for at, raw in self.anchors if at <= step - WARM_UP_STEPS]
        if old and self.raw <= WARM_UP_RISE * old[-1]:
            self.warming, self.anchors = False, []
            return
        kept = self.anchors[max(len(old) - 1, 0) :]
        if not kept or step - kept[-1][0] >= _ANCHOR_STEPS:
            kept = [*kept, (step, self.raw)]
        self.anchors = kept

    def _watch_jump(self, step: int, before: Floats) -> None:
        """Notice a rate that no schedule explains: one that leaves the others, one that is dropped to 0, and a rise of
        all to more than they ever had. A fall of all is a decay, a rise to what they had a restart, unless the run says
        what its rates are meant to be, and that they were not to rise."""
        if self.jumped:
            self._watch_return(step)
            return
        if self.warming:
            return
        group = self._jumping(before)
        if group is None:
            return
        self.jump_from, self.jump_step, self.jump_group = float(before[group]), step, group
        self.jump_worst = _away(self.jump_ratio)

    def _jumping(self, before: Floats) -> int | None:
        """The group that jumps now: of several the one with most parameters. Where one leaves the others it is the one
        that has moved."""
        known = (before > 0) & np.isfinite(self.rates)
        if not known.any():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            moves = np.where(known, np.log(self.rates / before), np.nan)
            dropped = known & (self.rates == 0) & (before > ZERO_FROM * self.highest)
            beyond = self.rates > RESTART_ABOVE * self.highest
            risen = (moves > math.log(SCHEDULE_JUMP)) & (beyond | self.is_told)
        moved = np.where(np.isfinite(moves), np.abs(moves), -1.0)
        finite = moves[np.isfinite(moves)]
        leaves = finite.size > 1 and np.ptp(finite) > math.log(SCHEDULE_JUMP)
        found = dropped | risen | (leaves & (moved == moved.max()))
        return int(np.argmax(np.where(found, self.weights, -1.0))) if found.any() else None

    def _watch_return(self, step: int) -> None:
        """The open jump ends when the rate is back, or has stood for a while; one to 0 when there is a rate again."""
        self.jump_worst = max(self.jump_worst, _away(self.jump_ratio))
        returned = _away(self.jump_ratio) < SCHEDULE_JUMP**RECOVERY
        if returned or (step - self.jump_step > WARM_UP_STEPS and self.jump_ratio > 0):
            self.jump_from, self.jump_step, self.jump_group, self.jump_worst = math.nan, -1, -1, 1.0


def _away(ratio: float) -> float:
    """How many times, whichever way."""
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf
