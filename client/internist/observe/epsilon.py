"""Gradients over Adam's eps: worked out on the host from a frame's own gradient norms, so that nothing is asked of the
device for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from internist.model.outline import WatchedParameter
from internist.observe.routing import algorithm_of, is_matrix_algorithm
from internist.schema.wire import Series

METRIC = "gradient.over_eps"
OF = "gradient.rms"

Derived = tuple[Series, float, int]
"""A value, and the number of entries that it stands for."""


class Epsilons:
    """Knows what is added to the root of each parameter's second moment.

    Args:
        series: makes the series of a parameter's metric.
    """

    def __init__(self, series: Callable[[WatchedParameter, str], Series | None]) -> None:
        self._series = series
        self._known: dict[int, tuple[WatchedParameter, float]] = {}

    def note(self, parameter: WatchedParameter, eps: float | None) -> None:
        """Learn a parameter's eps; None where it is stepped without."""
        if eps is None:
            self._known.pop(parameter.order, None)
        else:
            self._known[parameter.order] = parameter, eps

    def derive(self) -> Callable[[Sequence[Series], Sequence[float], Sequence[int]], list[Derived]] | None:
        """What works out the metric from the values of a frame, on any thread; None where no eps is known."""
        found: dict[int, tuple[Series, float]] = {}
        for parameter, eps in self._known.values():
            own, of = self._series(parameter, METRIC), self._series(parameter, OF)
            if own is not None and of is not None:
                found[of.number] = own, eps
        if not found:
            return None
        return lambda series, values, counts: [
            (found[one.number][0], value / found[one.number][1] ** 2, count)  # of a gradient its mean square travels
            for one, value, count in zip(series, values, counts, strict=True)
            if one.number in found
        ]


def eps_of(optimizer: Any, group: Mapping[str, Any]) -> float | None:
    """What Adam or one of its kin adds to the root of the second moment of a group's gradients; None of others."""
    eps = group.get("eps")
    if "betas" not in group or isinstance(eps, bool) or not isinstance(eps, int | float) or not eps > 0:
        return None
    return None if is_matrix_algorithm(algorithm_of(optimizer, group)) else float(eps)
