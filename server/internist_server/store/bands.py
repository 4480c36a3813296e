"""The band of a series at each of its points, from what the judge stored of them."""

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import BASELINE_CRITICAL, BASELINE_WARN, CRITERIA, Criterion, Target
from internist.schema.views import Band, Number
from internist_server.store.merge import Floats
from internist_server.store.numbers import numbers
from internist_server.store.series import StoredSeries

_TARGET, _BASELINE = 1, 3


def band_of(series: StoredSeries, values: Floats, ratios: NDArray[np.float16], basis: NDArray[np.uint8]) -> Band | None:
    """The band at each point: value over ratio is its centre, in the series' own unit, schedule included.

    None where the series was judged nowhere in the window, or by an optimizer's promise, which is not stored.
    """
    criterion = next((one for one in CRITERIA if one.metric == series.metric), None)
    if criterion is None or not basis.any():
        return None
    with np.errstate(all="ignore"):
        centre = (values / np.exp2(ratios.astype(np.float32))).astype(np.float32)
    centre[~np.isfinite(centre) | (centre <= 0)] = np.nan
    if (basis == _BASELINE).any():
        return _baseline_band(criterion, np.where(basis == _BASELINE, centre, np.float32(np.nan)))
    if criterion.target is not None and criterion.target.applies_when != "muon" and (basis == _TARGET).any():
        return _target_band(criterion.target, basis == _TARGET)
    return None


def _baseline_band(criterion: Criterion, centre: Floats) -> Band:
    low = centre if criterion.two_sided else np.full_like(centre, np.nan)
    return Band(
        basis="baseline",
        centre=_shown(centre),
        warn_low=_shown(low / np.float32(BASELINE_WARN)),
        warn_high=_shown(centre * np.float32(BASELINE_WARN)),
        critical_low=_shown(low / np.float32(BASELINE_CRITICAL)),
        critical_high=_shown(centre * np.float32(BASELINE_CRITICAL)),
    )


def _target_band(target: Target, judged: NDArray[np.bool_]) -> Band:
    nowhere: tuple[Number, ...] = (None,) * len(judged)

    def edge(value: float | None) -> tuple[Number, ...]:
        return tuple(value if here else None for here in judged.tolist())

    return Band("target", nowhere, nowhere, edge(target.warn_above), nowhere, edge(target.critical_above))


def _shown(values: Floats) -> tuple[Number, ...]:
    return numbers(values, absent=np.isnan(values))
