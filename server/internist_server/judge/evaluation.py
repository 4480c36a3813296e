"""One step against its bands: for every check how far out it is, and whether that breaches or is clear."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import CRITERIA, RECOVERY, SANITY_RELATIVE_UPDATE, Basis
from internist_server.judge.bands import MUON_CRITICAL, MUON_WIDENING, muon_band
from internist_server.judge.checks import Checks, Flags, Logs, recovery_edge
from internist_server.judge.columns import MISSING
from internist_server.judge.pace import Pace
from internist_server.judge.recent import Recent
from internist_server.judge.reference import ReferenceBands, level_of
from internist_server.judge.schedule import Schedule

NONE, TARGET, REFERENCE, BASELINE, SANITY = range(5)
BASES: tuple[Basis | None, ...] = (None, "target", "reference", "baseline", "sanity")
"""What a verdict rests on, by its number."""
EDGES = ("warn_low", "warn_high", "critical_low", "critical_high")
FAR = 1.5
"""Times its log-width that a value must be away from its band's centre to need two points where others need three."""
SLUGGISH = 0.5
"""Share of the fall of a learning rate's logarithm that a step's effect may not have followed: what gradient noise
makes of weights falls like the root of the rate."""
EAGER = 1.0
"""And the share by which it may have fallen further than the rate: what swings about a minimum has gradients that fall
like the rate, and Adam divides them for a while by what it remembers of larger ones."""
TOGETHER_LOG = -1.0
"""log2 of the median ratio of all checks of a criterion under which the model has fallen as a whole: half."""
TOGETHER_CHECKS = 4
"""Fewer checks than this are no whole."""

_RECOVERY_LOG = np.float32(np.log2(RECOVERY))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One step, aligned with the checks. `ratio` is log2 of value over the band's centre, or edge (targets, sanity)."""

    measured: Flags
    """A positive finite value came."""
    judged: Flags
    """It could be compared with something."""
    ratio: Logs
    basis: NDArray[np.uint8]
    levels: Logs
    """log2 of the values, scheduled ones over what their rates were multiplied by; what trends are made of."""
    edges: tuple[Logs, Logs, Logs, Logs]
    """The band of this step, in the order of EDGES: what values, scheduled ones over the schedule's divisor, are held
    to; NaN: no such edge."""
    warns: Flags
    violates: Flags
    warning_clears: Flags
    """Inside the recovery band; only right where `judged`."""
    violation_clears: Flags
    far: Flags
    """Violated by more than FAR times the band's own width: no scatter explains it."""


@dataclass(frozen=True, slots=True)
class MuonBand:
    """The bands that optimizers promise at one step, aligned with `Checks.muon`, in the unit of R(dW)."""

    centre: Logs
    """log2; NaN where nothing is promised (no learning rate, no weight norm)."""
    half: Logs
    """Half-width of the warning band in log2."""
    low: Logs
    """Lower half-width: infinite where weight decay alone could explain any small update."""


@dataclass(frozen=True, slots=True)
class Bands:
    """The bands of all checks until baselines are taken anew; edges are log2 ratios, of (warning, violation)."""

    centre: Logs
    """log2; NaN: none yet."""
    highs: tuple[Logs, Logs]
    lows: tuple[Logs, Logs]
    """Minus infinity where too small is not bad."""
    clear_highs: tuple[Logs, Logs]
    """Edges of the recovery bands."""
    clear_lows: tuple[Logs, Logs]

    @classmethod
    def of(cls, checks: Checks, *, centre: Logs, above: Logs, below: Logs) -> "Bands":
        """Bands about these centres, wider by what each series is known to grow or to scatter (log2)."""
        highs = (checks.warn_high + above, checks.critical_high + above)
        lows = (checks.warn_low - below, checks.critical_low - below)
        clear = tuple(recovery_edge(checks, edge) for edge in (checks.warn_high, checks.critical_high))
        has_low = np.isfinite(checks.critical_low)
        clear_lows = tuple(np.where(has_low, -below - edge, np.float32(-np.inf)) for edge in clear)
        return cls(centre, highs, lows, (clear[0] + above, clear[1] + above), (clear_lows[0], clear_lows[1]))

    def under(self, ceiling: Logs) -> "Bands":
        """The same where no value that can be too high may be higher than this; log2 levels, NaN: no ceiling."""
        room = np.where(np.isfinite(self.highs[1]), ceiling - self.centre, np.float32(np.inf))
        if not (room < self.highs[1]).any():
            return self
        return replace(
            self,
            highs=(np.fmin(self.highs[0], room), np.fmin(self.highs[1], room)),
            clear_highs=(
                np.fmin(self.clear_highs[0], room + _RECOVERY_LOG),
                np.fmin(self.clear_highs[1], room + _RECOVERY_LOG),
            ),
        )

    def without_lows(self, where: Flags) -> "Bands":
        """The same where too small is not bad at these checks."""
        none = np.float32(-np.inf)
        lows = tuple(np.where(where, none, low) for low in (*self.lows, *self.clear_lows))
        return replace(self, lows=(lows[0], lows[1]), clear_lows=(lows[2], lows[3]))

    def lowered(self, by: Logs) -> "Bands":
        """The same with lower edges that many log2 lower."""
        lows = tuple(low - by for low in (*self.lows, *self.clear_lows))
        return replace(self, lows=(lows[0], lows[1]), clear_lows=(lows[2], lows[3]))

    def raised(self, by: Logs) -> "Bands":
        """The same with upper edges that many log2 higher."""
        highs = tuple(high + by for high in (*self.highs, *self.clear_highs))
        return replace(self, highs=(highs[0], highs[1]), clear_highs=(highs[2], highs[3]))

    def edges(self, checks: Checks) -> tuple[Logs, Logs, Logs, Logs]:
        """The edges as levels, in the order of EDGES; NaN: none."""
        ratios = (self.lows[0], self.highs[0], self.lows[1], self.highs[1])
        levels = [np.where(np.isfinite(ratio), np.exp2(self.centre + ratio), np.float32(np.nan)) for ratio in ratios]
        is_target = ~np.isnan(checks.target_centre)
        for at, edge in zip((1, 3), checks.target_edges, strict=True):
            levels[at] = np.where(is_target, edge, levels[at])  # a number from theory, not what its logarithm gives
        return levels[0], levels[1], levels[2], levels[3]


class Evaluator:
    """Evaluates steps for one set of checks; what does not change from step to step is computed once."""

    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self._basis = np.where(checks.baselined, BASELINE, TARGET).astype(np.uint8)
        self._basis[checks.recent] = BASELINE
        self._has_low = checks.follows

    def evaluate(
        self,
        values: Logs,
        present: Flags,
        *,
        finite: Flags,
        bands: Bands,
        ceiling: Logs,
        schedule: Schedule,
        pace: Pace,
        last_values: Logs,
        recent: Recent,
        first: Logs,
        reference: ReferenceBands | None = None,
    ) -> Evaluation:
        """One step.

        Args:
            values: by column, as measured.
            present: by column, whether measured at this step.
            finite: by column, whether the value is finite.
            bands: the bands as they are now.
            ceiling: log2 of what unscaled values must stay under; NaN: no ceiling.
            schedule: the schedule, this step included.
            pace: what it makes of each check's steps.
            last_values: by column, the last value of every series, this step included.
            recent: the last values of the checks that are judged by them, without this step's.
            first: the first value of each check.
            reference: where the reference run was at this step.
        """
        checks = self.checks
        value = checks.judged(values)
        measured = present[checks.column] & finite[checks.column]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log2(np.maximum(value, np.float32(0)))
            levels = logs - pace.unit
            if pace.offset.any():
                bands = replace(bands, centre=bands.centre + pace.offset)
            if pace.fallen.any():
                bands = bands.raised(np.float32(SLUGGISH) * pace.fallen).lowered(np.float32(EAGER) * pace.fallen)
            bands = bands.under(ceiling - pace.unit)
            if checks.muon.check.size and measured[checks.muon.check].any():
                bands = self._with_muon(bands, schedule, last_values)
            if checks.recent.size and measured[checks.recent].any():
                bands = self._with_recent(bands, recent)
            if checks.growing.size and measured[checks.growing].any():
                bands = self._with_growth(bands, first)
            ratio = levels - bands.centre
            if pace.is_low.any():
                bands = bands.without_lows(pace.is_low)
            bands = self._fallen_together(bands, ratio, measured)
            judged = measured & ~np.isnan(ratio)
            warns, violates = (
                ((ratio > high) | (ratio < low)) & measured for high, low in zip(bands.highs, bands.lows, strict=True)
            )
            warning_clears, violation_clears = (
                (ratio <= high) & (ratio >= low) for high, low in zip(bands.clear_highs, bands.clear_lows, strict=True)
            )
            far = violates & checks.baselined & ((ratio > FAR * bands.highs[1]) | (ratio < FAR * bands.lows[1]))
            edges = bands.edges(checks)
            basis = self._basis
            grown = np.zeros(ratio.size, bool)
            grown[checks.growing] = (warns & ~violates)[checks.growing]
            if grown.any():
                ratio, basis = np.where(grown, ratio - bands.highs[0], ratio), np.where(grown, np.uint8(TARGET), basis)
            if checks.sanity.size:
                excess, known = self._sanity(values, present, finite)
                insane = known & (excess > 0)
                calm = ~known | (excess <= _RECOVERY_LOG)
                at = checks.sanity
                worse = insane & ~violates[at]
                ratio[at] = np.where(worse, excess, ratio[at])
                warns[at] |= insane
                violates[at] |= insane
                alone = known & ~judged[at]
                warning_clears[at] = calm & (warning_clears[at] | alone)
                violation_clears[at] = calm & (violation_clears[at] | alone)
                judged[at] |= known
                basis = basis.copy()
                basis[at] = np.where(worse, SANITY, basis[at])
                # The band is on the ratio of two other series: its edge here is the value that would be just sane if
                # this module's mean change grew with its largest one.
                for edge, name in zip(edges, EDGES, strict=True):
                    sane = np.exp2(levels[at] - excess) if name == "critical_high" else np.float32(np.nan)
                    edge[at] = np.where(worse, sane, edge[at])
        found = Evaluation(
            measured & (value > 0), judged, ratio, basis, levels - pace.offset, edges, warns, violates, warning_clears,
            violation_clears, far,
        )  # fmt: skip
        if reference is None:
            return found
        return _held_to(reference, found, checks, logs, measured=measured, unit=pace.unit)

    def _fallen_together(self, bands: Bands, ratio: Logs, measured: Flags) -> Bands:
        """The same with lower edges that follow where most checks of a criterion have fallen together.

        What makes all modules smaller at once (a decay that was not seen, the end of a run, weights that shrink) is no
        fault of each of them. What only a few share a criterion with, as an output head with nobody, falls with its
        condition.
        """
        falls = measured & self._has_low & (ratio < TOGETHER_LOG)
        if np.count_nonzero(falls) < TOGETHER_CHECKS:
            return bands
        by = np.zeros(ratio.size, np.float32)
        criteria = self.checks.criterion
        for criterion in np.unique(criteria[falls]).tolist():
            at = criteria == criterion
            beside = at if np.count_nonzero(at) >= TOGETHER_CHECKS else self._has_low & _alike(criteria, criterion)
            known = ratio[beside & measured & np.isfinite(ratio)]  # what is exactly zero has not fallen with the others
            if known.size >= TOGETHER_CHECKS and (middle := float(np.median(known))) < TOGETHER_LOG:
                by[at] = -middle
        return bands.lowered(by) if by.any() else bands

    def muon_band(self, schedule: Schedule, last_values: Logs) -> MuonBand:
        """The bands promised at the present learning rates."""
        muon = self.checks.muon
        rate = schedule.rates[muon.rate]
        decay = np.where(muon.decay == MISSING, 0.0, last_values[muon.decay])
        weight = np.where(muon.weight == MISSING, np.nan, last_values[muon.weight])
        decayed = np.where(decay == 0, 0.0, rate * decay * weight)
        low, high = muon_band(rate=rate, scale=muon.scale, low=muon.low, high=muon.high, decayed=decayed)
        with np.errstate(divide="ignore", invalid="ignore"):
            upper, lower = np.log2(high * (1 + MUON_WIDENING)), np.log2(low * (1 - MUON_WIDENING))
            bounded = np.isfinite(lower)
            centre = np.where(bounded, (upper + lower) / 2, upper)
            half = upper - centre
        centre = np.where(high > 0, centre, np.nan)
        return MuonBand(
            centre.astype(np.float32), half.astype(np.float32), np.where(bounded, half, np.inf).astype(np.float32)
        )

    def _with_muon(self, bands: Bands, schedule: Schedule, last_values: Logs) -> Bands:
        """The same with what optimizers promise at the present learning rates."""
        at = self.checks.muon.check
        band = self.muon_band(schedule, last_values)
        low = np.full(at.size, np.inf, np.float32) if schedule.is_low else band.low
        further = np.float32(np.log2(MUON_CRITICAL / (1 + MUON_WIDENING)))
        nearer = np.float32((1 - RECOVERY) * np.log2(1 + MUON_WIDENING))
        return Bands(
            centre=_set(bands.centre, at, band.centre),
            highs=(_set(bands.highs[0], at, band.half), _set(bands.highs[1], at, band.half + further)),
            lows=(_set(bands.lows[0], at, -low), _set(bands.lows[1], at, -low - further)),
            clear_highs=(
                _set(bands.clear_highs[0], at, band.half - nearer),
                _set(bands.clear_highs[1], at, band.half + further - nearer),
            ),
            clear_lows=(
                _set(bands.clear_lows[0], at, nearer - low),
                _set(bands.clear_lows[1], at, nearer - low - further),
            ),
        )

    def _with_recent(self, bands: Bands, recent: Recent) -> Bands:
        """The same with the bands that last values make."""
        at = self.checks.recent
        high, low = np.log2(recent.high / recent.centre), np.log2(recent.low / recent.centre)
        high[np.isnan(high)], low[np.isnan(low)] = np.inf, -np.inf
        none = np.full(at.size, np.inf, np.float32)
        inside = np.float32(RECOVERY)
        return Bands(
            centre=_set(bands.centre, at, np.log2(recent.centre)),
            highs=(_set(bands.highs[0], at, none), _set(bands.highs[1], at, high)),
            lows=(_set(bands.lows[0], at, -none), _set(bands.lows[1], at, low)),
            clear_highs=(_set(bands.clear_highs[0], at, none), _set(bands.clear_highs[1], at, inside * high)),
            clear_lows=(_set(bands.clear_lows[0], at, -none), _set(bands.clear_lows[1], at, inside * low)),
        )

    def _with_growth(self, bands: Bands, first: Logs) -> Bands:
        """The same where what may not grow beyond a multiple of its first value warns from there on."""
        at = self.checks.growing
        edge = self.checks.growth_limit + np.maximum(np.log2(first[at]), np.float32(0)) - bands.centre[at]
        (_, high), (_, clear) = bands.highs, bands.clear_highs
        return replace(
            bands,
            highs=(_set(bands.highs[0], at, np.fmin(high[at], edge)), high),
            clear_highs=(_set(bands.clear_highs[0], at, np.fmin(clear[at], edge + _RECOVERY_LOG)), clear),
        )

    def _sanity(self, values: Logs, present: Flags, finite: Flags) -> tuple[Logs, Flags]:
        """log2 of the relative update over its limit, and where it is known."""
        mean, reference = self.checks.sanity_mean, self.checks.sanity_reference
        known = present[mean] & present[reference] & finite[mean] & finite[reference] & (values[reference] > 0)
        excess = np.log2(values[mean] / values[reference]) - np.float32(np.log2(SANITY_RELATIVE_UPDATE))
        return excess, known


def _alike(criteria: NDArray[np.int64], criterion: int) -> Flags:
    """The checks whose criteria are of the same condition as one."""
    return np.isin(criteria, [n for n, one in enumerate(CRITERIA) if one.condition == CRITERIA[criterion].condition])


def _held_to(
    reference: ReferenceBands, found: Evaluation, checks: Checks, logs: Logs, *, measured: Flags, unit: Logs
) -> Evaluation:
    """The same with the reference's bands beside the others: out of either is out, and what is well in both is well by
    the reference.

    Args:
        reference: its bands, of values.
        found: by the other bands.
        checks: the same.
        logs: log2 of the values.
        measured: whether a finite value came, zero included.
        unit: log2 of what levels are multiplied by to be values.
    """
    criteria = checks.criterion
    is_known = measured[reference.check]
    at = reference.check[is_known]
    value = level_of(logs[at])
    centre, low, high, clear_low, clear_high = (
        getattr(reference, name)[is_known] for name in ("centre", "low", "high", "clear_low", "clear_high")
    )
    low = low - _slower_together(criteria[at], value - centre, reference)
    out = (value > high) | (value < low)
    tells = out | ~(found.warns[at] | found.violates[at])
    where = at[tells]
    alone = ~found.judged[at]
    judged, warns, violates = found.judged.copy(), found.warns.copy(), found.violates.copy()
    ratio, basis = found.ratio.copy(), found.basis.copy()
    edges = tuple(edge.copy() for edge in found.edges)
    ratio[where], basis[where] = (logs[at] - centre)[tells], REFERENCE
    for edge, of_reference in zip(edges, (low, high, low, high), strict=True):
        edge[where] = np.exp2(of_reference[tells] - unit[where])
    is_calm = (value <= clear_high) & (value >= clear_low)
    clears = []
    for clear in (found.warning_clears, found.violation_clears):
        both = clear.copy()
        both[at] = is_calm & (alone | clear[at])
        clears.append(both)
    judged[at] = True
    warns[at] |= out
    violates[at] |= out
    return replace(
        found, judged=judged, ratio=ratio, basis=basis, edges=(edges[0], edges[1], edges[2], edges[3]), warns=warns,
        violates=violates, warning_clears=clears[0], violation_clears=clears[1],
    )  # fmt: skip


def _slower_together(criteria: NDArray[np.int64], ratio: Logs, reference: ReferenceBands) -> Logs:
    """How much lower than the reference's updates may be where most of a criterion's are, once the start is over: a
    larger model learns sooner, and moves less from then on."""
    by = np.zeros(ratio.size, np.float32)
    if reference.is_start:
        return by
    for criterion in np.unique(criteria).tolist():
        at = criteria == criterion
        if CRITERIA[criterion].scheduled and np.count_nonzero(at) >= TOGETHER_CHECKS:
            by[at] = max(-float(np.median(ratio[at])), 0.0)
    return by


def _set(array: Logs, at: NDArray[np.int64], values: Logs) -> Logs:
    changed = array.copy()
    changed[at] = values
    return changed
