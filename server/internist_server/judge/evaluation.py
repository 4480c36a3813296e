"""One step against its bands: for every check how far out it is, and whether that breaches or is clear."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import BASELINE_CRITICAL, RECOVERY, SANITY_RELATIVE_UPDATE
from internist_server.judge import bands
from internist_server.judge.checks import MISSING, Checks, Flags, Logs, recovery_edge
from internist_server.judge.schedule import Schedule

NONE, TARGET, REFERENCE, BASELINE, SANITY = range(5)
"""What a verdict rests on, as numbers."""

_CRITICAL_LOG = np.float32(np.log2(BASELINE_CRITICAL))
_RECOVERY_LOG = np.float32(np.log2(RECOVERY))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One step, aligned with the checks; `ratio` is log2 of value over the band's centre, for targets and sanity its edge."""

    judged: Flags
    ratio: Logs
    basis: NDArray[np.uint8]
    levels: Logs
    """log2 of the values, scheduled ones over the schedule's divisor; what trends are made of."""
    warns: Flags
    violates: Flags
    warning_clears: Flags
    violation_clears: Flags
    is_quiet: bool
    """Nothing warns or violates; `..._clears` are only right where `judged`."""


@dataclass(frozen=True, slots=True)
class MuonBand:
    """The bands that optimizers promise at one step, aligned with `Checks.muon`, in the unit of R(dW)."""

    centre: Logs
    """log2; NaN where nothing is promised (no learning rate, no weight norm)."""
    half: Logs
    """Half-width of the warning band in log2."""
    low: Logs
    """Lower half-width: infinite where weight decay alone could explain any small update."""


class Evaluator:
    """Evaluates steps for one set of checks; what does not change from step to step is computed once."""

    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self._scheduled = checks.scheduled.astype(np.float32)
        self._basis = np.where(checks.baselined, BASELINE, TARGET).astype(np.uint8)
        self._lows = (checks.warn_low, checks.critical_low)
        self._lows_at_low_rate = tuple(np.where(checks.scheduled, -np.inf, low).astype(np.float32) for low in self._lows)
        warning, violation = recovery_edge(checks, checks.warn_high), recovery_edge(checks, checks.critical_high)
        self._clear_high = (warning, violation)
        self._has_low = np.isfinite(checks.warn_low)

    def evaluate(
        self,
        values: Logs,
        present: Flags,
        *,
        finite: Flags,
        centre: Logs,
        ceiling: Logs,
        schedule: Schedule,
        last_values: Logs,
    ) -> Evaluation:
        """One step.

        Args:
            values: by column, as measured.
            present: by column, whether measured at this step.
            finite: by column, whether the value is finite.
            centre: log2 of each check's centre; NaN: none yet.
            ceiling: log2 of what the unscaled value must stay under; NaN: none.
            schedule: the schedule, this step included.
            last_values: by column, the last value of every series, this step included.
        """
        checks = self.checks
        value = values[checks.column]
        measured = present[checks.column] & finite[checks.column]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log2(np.maximum(value, np.float32(0)))
            levels = logs - self._scheduled * np.float32(np.log2(schedule.divisor))
            ratio = levels - centre
            over = logs > ceiling
            if over.any():
                ratio = np.where(over, np.maximum(ratio, logs - ceiling + _CRITICAL_LOG), ratio)
            lows = self._lows_at_low_rate if schedule.is_low else self._lows
            highs = (checks.warn_high, checks.critical_high)
            clear_highs = self._clear_high
            if checks.muon.check.size and measured[checks.muon.check].any():
                ratio, highs, lows, clear_highs = self._with_muon(logs, ratio, highs, lows, clear_highs, schedule, last_values)
            judged = measured & ~np.isnan(ratio)
            warns = ((ratio > highs[0]) | (ratio < lows[0])) & measured
            violates = ((ratio > highs[1]) | (ratio < lows[1])) & measured
            warning_clears, violation_clears = (
                (ratio <= high) & ((ratio >= -high) | ~self._has_low | ~np.isfinite(low))
                for high, low in zip(clear_highs, lows, strict=True)
            )
            basis = self._basis
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
        return Evaluation(
            judged, ratio, basis, levels, warns, violates, warning_clears, violation_clears, not bool(warns.any())
        )

    def muon_band(self, schedule: Schedule, last_values: Logs) -> MuonBand:
        """The bands promised at the present learning rates."""
        muon = self.checks.muon
        rate = schedule.rates[muon.rate]
        decay = np.where(muon.decay == MISSING, 0.0, last_values[muon.decay])
        weight = np.where(muon.weight == MISSING, np.nan, last_values[muon.weight])
        decayed = np.where(decay == 0, 0.0, rate * decay * weight)
        low, high = bands.muon_band(rate=rate, scale=muon.scale, low=muon.low, high=muon.high, decayed=decayed)
        with np.errstate(divide="ignore", invalid="ignore"):
            upper, lower = np.log2(high * (1 + bands.MUON_WIDENING)), np.log2(low * (1 - bands.MUON_WIDENING))
            bounded = np.isfinite(lower)
            centre = np.where(bounded, (upper + lower) / 2, upper)
            half = upper - centre
        centre = np.where(high > 0, centre, np.nan)
        return MuonBand(
            centre.astype(np.float32), half.astype(np.float32), np.where(bounded, half, np.inf).astype(np.float32)
        )

    def _with_muon(
        self,
        logs: Logs,
        ratio: Logs,
        highs: tuple[Logs, Logs],
        lows: tuple[Logs, ...],
        clear_highs: tuple[Logs, Logs],
        schedule: Schedule,
        last_values: Logs,
    ) -> tuple[Logs, tuple[Logs, Logs], tuple[Logs, ...], tuple[Logs, Logs]]:
        at = self.checks.muon.check
        band = self.muon_band(schedule, last_values)
        critical = np.float32(np.log2(bands.MUON_CRITICAL / (1 + bands.MUON_WIDENING)))
        ratio = ratio.copy()
        ratio[at] = logs[at] - band.centre
        low = np.full(at.size, np.inf, np.float32) if schedule.is_low else band.low
        slack = np.float32((1 - RECOVERY) * np.log2(1 + bands.MUON_WIDENING))
        return (
            ratio,
            (_set(highs[0], at, band.half), _set(highs[1], at, band.half + critical)),
            (_set(lows[0], at, -low), _set(lows[1], at, -low - critical)),
            (_set(clear_highs[0], at, band.half - slack), _set(clear_highs[1], at, band.half)),
        )

    def _sanity(self, values: Logs, present: Flags, finite: Flags) -> tuple[Logs, Flags]:
        """log2 of the relative update over its limit, and where it is known."""
        mean, reference = self.checks.sanity_mean, self.checks.sanity_reference
        known = present[mean] & present[reference] & finite[mean] & finite[reference] & (values[reference] > 0)
        excess = np.log2(values[mean] / values[reference]) - np.float32(np.log2(SANITY_RELATIVE_UPDATE))
        return excess, known


def _set(array: Logs, at: NDArray[np.int64], values: Logs) -> Logs:
    changed = array.copy()
    changed[at] = values
    return changed
