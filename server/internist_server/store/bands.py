"""The band of a series at each of its points, from what the judge stored of them."""

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import BASELINE_CRITICAL, BASELINE_WARN, CRITERIA, Criterion
from internist.schema.views import Band
from internist_server.store.merge import Floats
from internist_server.store.numbers import numbers
from internist_server.store.series import StoredSeries

_TARGET, _BASELINE = 1, 3


def band_of(series: StoredSeries, values: Floats, ratios: NDArray[np.float16], basis: NDArray[np.uint8]) -> Band | None:
    """The band at each point: value over ratio is its centre, in the series' own unit, schedule included.

    None where the series was judged nowhere in the window.
    """
    criterion = next((one for one in CRITERIA if one.metric == series.metric), None)
    if criterion is None or not basis.any():
        return None
    with np.errstate(all="ignore"):
        centre = values / np.exp2(ratios.astype(np.float32))
    centre[~np.isfinite(centre) | (centre <= 0)] = np.nan
    if (basis == _BASELINE).any():
        return _baseline_band(criterion, np.where(basis == _BASELINE, centre, np.float32(np.nan)))
    if (basis == _TARGET).any() and criterion.target is not None:
        return _target_band(criterion, centre, basis == _TARGET)
    return None


def _baseline_band(criterion: Criterion, centre: Floats) -> Band:
    nowhere = np.full_like(centre, np.nan)
    low = centre if criterion.two_sided else nowhere
    return Band(
        basis="baseline",
        centre=_shown(centre),
        warn_low=_shown(low / np.float32(BASELINE_WARN)),
        warn_high=_shown(centre * np.float32(BASELINE_WARN)),
        critical_low=_shown(low / np.float32(BASELINE_CRITICAL)),
        critical_high=_shown(centre * np.float32(BASELINE_CRITICAL)),
    )


def _target_band(criterion: Criterion, edge: Floats, judged: NDArray[np.bool_]) -> Band:
    """Of a target the ratio is over its warning edge. A fixed target needs no division to be known exactly."""
    assert criterion.target is not None
    target = criterion.target
    if target.applies_when != "muon":
        edge = np.where(judged, np.float32(target.warn_above), np.float32(np.nan))
    factor = target.critical_above / target.warn_above if target.warn_above > 0 else 1.0
    nowhere = _shown(np.full_like(edge, np.nan))
    return Band("target", nowhere, nowhere, _shown(edge), nowhere, _shown(edge * np.float32(factor)))


def _shown(values: Floats) -> tuple[float | str | None, ...]:
    return numbers(values, absent=np.isnan(values))
