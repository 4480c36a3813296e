"""Limits that a run sets for itself: what `watch(thresholds=…)` was given, checked."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from internist.errors import ConfigurationError
from internist.schema.metrics import METRICS
from internist.schema.wire import Threshold

_EXPECTED = "a number that the metric must not be over, or (lowest, highest) with None for no edge"


def limits(thresholds: Any) -> tuple[Threshold, ...]:
    """The limits in what was given as such: by metric a number it must not be over, or a pair of edges.

    Raises:
        ConfigurationError: a metric is not in the catalogue (the nearest one is offered), or an edge is no number.
    """
    if thresholds is None:
        return ()
    if not isinstance(thresholds, Mapping):
        raise ConfigurationError(
            f"thresholds={thresholds!r}: expected a mapping such as {{'gradient.global_norm': 5.0}}"
        )
    return tuple(_limit(metric, edges) for metric, edges in thresholds.items())


def _limit(metric: Any, edges: Any) -> Threshold:
    if metric not in METRICS:
        near = difflib.get_close_matches(str(metric), METRICS, n=1, cutoff=0.0)
        raise ConfigurationError(
            f"thresholds names {metric!r}, which is not in the catalogue; did you mean {near[0]!r}?"
        )
    is_pair = isinstance(edges, tuple | list) and len(edges) == 2
    low, high = (_edge(metric, edge, edges) for edge in (edges if is_pair else (None, edges)))
    if low is None and high is None:
        raise ConfigurationError(f"thresholds[{metric!r}]={edges!r}: expected {_EXPECTED}")
    if low is not None and high is not None and low >= high:
        raise ConfigurationError(f"thresholds[{metric!r}]={edges!r}: the lowest value lies under the highest one")
    return Threshold(metric, above=high, below=low)


def _edge(metric: str, edge: Any, given: Any) -> float | None:
    if edge is None:
        return None
    if isinstance(edge, bool) or not isinstance(edge, int | float) or not math.isfinite(edge):
        raise ConfigurationError(f"thresholds[{metric!r}]={given!r}: expected {_EXPECTED}")
    return float(edge)
