"""One step against its bands: for every check how far out it is, and whether that breaches or is clear."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import RECOVERY, SANITY_RELATIVE_UPDATE, Basis
from internist_server.judge.bands import MUON_CRITICAL, MUON_WIDENING, muon_band
from internist_server.judge.checks import MISSING, Checks, Flags, Logs, recovery_edge
from internist_server.judge.schedule import Schedule

NONE, TARGET, REFERENCE, BASELINE, SANITY = range(5)
BASES: tuple[Basis | None, ...] = (None, "target", "reference", "baseline", "sanity")
"""What a verdict rests on, by its number."""

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
    """log2 of the values, scheduled ones over the schedule's divisor; what trends are made of."""
    warns: Flags
    violates: Flags
    warning_clears: Flags
    """Inside the recovery band; only right where `judged`."""
    violation_clears: Flags


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
    ceiling: Logs
    """log2 of what unscaled values must stay under; NaN: none."""
    highs: tuple[Logs, Logs]
    lows: tuple[Logs, Logs]
    """Minus infinity where too small is not bad."""
    clear_highs: tuple[Logs, Logs]
    """Edges of the recovery bands."""
    clear_lows: tuple[Logs, Logs]

    @classmethod
    def of(cls, checks: Checks, *, centre: Logs, ceiling: Logs, growth: Logs) -> "Bands":
        """Bands about these centres, wider by what each series is known to grow (log2; negative: to fall)."""
        up, down = np.maximum(growth, np.float32(0)), np.minimum(growth, np.float32(0))
        highs = (checks.warn_high + up, checks.critical_high + up)
        lows = (checks.warn_low + down, checks.critical_low + down)
        clear = tuple(recovery_edge(checks, edge) for edge in (checks.warn_high, checks.critical_high))
        has_low = np.isfinite(checks.warn_low)
        clear_lows = tuple(np.where(has_low, down - edge, np.float32(-np.inf)) for edge in clear)
        return cls(centre, ceiling, highs, lows, (clear[0] + up, clear[1] + up), (clear_lows[0], clear_lows[1]))


class Evaluator:
    """Evaluates steps for one set of checks; what does not change from step to step is computed once."""

    def __init__(self, checks: Checks) -> None:
        self.checks = checks
        self._scheduled = checks.scheduled.astype(np.float32)
        self._basis = np.where(checks.baselined, BASELINE, TARGET).astype(np.uint8)

    def evaluate(
        self,
        values: Logs,
        present: Flags,
        *,
        finite: Flags,
        bands: Bands,
        schedule: Schedule,
        last_values: Logs,
    ) -> Evaluation:
        """One step.

        Args:
            values: by column, as measured.
            present: by column, whether measured at this step.
            finite: by column, whether the value is finite.
            bands: the bands as they are now.
            schedule: the schedule, this step included.
            last_values: by column, the last value of every series, this step included.
        """
        checks = self.checks
        value = values[checks.column]
        measured = present[checks.column] & finite[checks.column]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log2(np.maximum(value, np.float32(0)))
            levels = logs - self._scheduled * np.float32(np.log2(schedule.divisor))
            ratio = levels - bands.centre
            over = logs > bands.ceiling
            if over.any():
                ratio = np.where(over, np.maximum(ratio, bands.highs[1] + logs - bands.ceiling), ratio)
            if schedule.is_low:
                bands = self._without_lows(bands)
            if checks.muon.check.size and measured[checks.muon.check].any():
                bands = self._with_muon(bands, schedule, last_values)
                at = checks.muon.check  # the others keep what their ceilings have said of them
                ratio[at] = levels[at] - bands.centre[at]
            judged = measured & ~np.isnan(ratio)
            warns, violates = (
                ((ratio > high) | (ratio < low)) & measured for high, low in zip(bands.highs, bands.lows, strict=True)
            )
            warning_clears, violation_clears = (
                (ratio <= high) & (ratio >= low) for high, low in zip(bands.clear_highs, bands.clear_lows, strict=True)
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
            measured & (value > 0), judged, ratio, basis, levels, warns, violates, warning_clears, violation_clears
        )

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

    def _without_lows(self, bands: Bands) -> Bands:
        """The same where too small a scheduled value is not bad."""
        lows = tuple(
            np.where(self.checks.scheduled, np.float32(-np.inf), low) for low in (*bands.lows, *bands.clear_lows)
        )
        return replace(bands, lows=(lows[0], lows[1]), clear_lows=(lows[2], lows[3]))

    def _with_muon(self, bands: Bands, schedule: Schedule, last_values: Logs) -> Bands:
        """The same with what optimizers promise at the present learning rates."""
        at = self.checks.muon.check
        band = self.muon_band(schedule, last_values)
        low = np.full(at.size, np.inf, np.float32) if schedule.is_low else band.low
        further = np.float32(np.log2(MUON_CRITICAL / (1 + MUON_WIDENING)))
        nearer = np.float32((1 - RECOVERY) * np.log2(1 + MUON_WIDENING))
        return Bands(
            centre=_set(bands.centre, at, band.centre),
            ceiling=bands.ceiling,
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
