"""A reference run as bands: where a smaller run that is well was at the same step, in the same place of the model.

The band of a check is the reference's own in the bins about that step, moved by the powers of width and depth that
carry its quantity to this size, wider by what of those powers is open, and by REFERENCE_EDGE on either side.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internist.scaling.members import Role
from internist.scaling.transfer import Sizes, Transfer
from internist.schema.conditions import CRITERIA, RECOVERY, REFERENCE_EDGE
from internist.schema.reference import BINS_PER_OCTAVE, TRAJECTORY_VERSION, Curve, Trajectory, bin_of
from internist_server.judge.bands import ROUNDING
from internist_server.judge.checks import Checks, Flags, Logs, is_held_to_reference
from internist_server.judge.columns import Indices
from internist_server.judge.schedule import Schedule
from internist_server.judge.series import JudgedSeries

_NUMBERS = re.compile(r"\d+")
START_STEPS = 64
"""Steps in which a run has not learned enough to move differently from its reference."""
ZERO = -1000.0
"""log2 that stands for zero: a number, since JSON knows no other."""
_ROUNDING = math.log2(ROUNDING)
_STALE_BINS = BINS_PER_OCTAVE
"""A bin without points stands in for by the nearest earlier one within an octave: metrics of a rare cadence."""

Place = tuple[str, str, bool]
"""Metric, place, and whether it lies in a block."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """A reference, and how the run that is held to it differs from it."""

    trajectory: Trajectory
    sizes: Sizes
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class ReferenceBands:
    """The bands of one step; all arrays are aligned with `check`, in log2 of levels."""

    check: Indices
    centre: Logs
    low: Logs
    high: Logs
    clear_low: Logs
    clear_high: Logs
    is_start: bool
    """How large updates are is told by how the run is set up, and not yet by what it has learned."""


class Expected:
    """What a reference expects of the checks of one run.

    Args:
        yardstick: the reference.
        series: of the run.
        checks: of these series.
        blocks: names of the run's blocks in forward order.
    """

    def __init__(
        self, yardstick: Yardstick, series: Sequence[JudgedSeries], checks: Checks, blocks: Sequence[str]
    ) -> None:
        by_place: dict[Place, list[Curve]] = {}
        for curve in yardstick.trajectory.curves:
            by_place.setdefault((curve.metric, curve.place, curve.depth is not None), []).append(curve)
        depths = _depths(blocks)
        self._check: list[int] = []
        self._tables: list[_Table] = []
        reach: list[tuple[float, float]] = []
        tables: dict[tuple[Place, float | None], _Table] = {}
        for check, column in enumerate(checks.column.tolist()):
            one = series[column]
            key = place_of(one), depths.get(one.facts.block or "")
            curves = by_place.get(key[0])
            if not curves or not is_held_to_reference(one):
                continue
            if key not in tables:
                tables[key] = _Table.of(curves, key[1])
            self._check.append(check)
            self._tables.append(tables[key])
            reach.append(yardstick.transfer.reach(one.metric, role_of(one), yardstick.sizes))
        self._reach = np.array(reach, np.float32).reshape(-1, 2)
        self._scheduled = _scheduled(checks, np.array(self._check, np.int64))
        self._name = yardstick.trajectory.name

    @property
    def count(self) -> int:
        """How many checks it speaks for."""
        return len(self._check)

    def at(self, step: int, schedule: Schedule) -> ReferenceBands:
        """The bands at a step. Scheduled quantities are compared over the learning rate's share of its peak; while it
        still rises the peak is not known, and a small update says nothing."""
        at = bin_of(step)
        bands = np.array([table.at(at) for table in self._tables], np.float32).reshape(-1, 3)
        low, middle, high = bands.T
        centre = middle + self._reach.mean(axis=1)
        edge = np.float32(math.log2(REFERENCE_EDGE))
        above = high + self._reach[:, 1] + edge - centre
        below = centre - (low + self._reach[:, 0] - edge)
        share = schedule.factor
        share = share if math.isfinite(share) and share > 0 else 1.0
        centre = centre + np.where(self._scheduled, np.float32(math.log2(share)), 0)
        if schedule.is_warming_up or schedule.is_low:
            below = np.where(self._scheduled, np.float32(np.inf), below)
        keep = np.flatnonzero(~np.isnan(centre))
        centre, above, below = centre[keep], above[keep], below[keep]
        return ReferenceBands(
            check=np.array(self._check, np.int64)[keep],
            centre=centre.astype(np.float32),
            low=(centre - below).astype(np.float32),
            high=(centre + above).astype(np.float32),
            clear_low=(centre - np.float32(RECOVERY) * below).astype(np.float32),
            clear_high=(centre + np.float32(RECOVERY) * above).astype(np.float32),
            is_start=step < START_STEPS,
        )


def trajectory_of(
    series: Sequence[JudgedSeries],
    blocks: Sequence[str],
    steps: NDArray[np.int64],
    values: Logs,
    shares: NDArray[np.float64],
    *,
    head: "Head",
) -> Trajectory:
    """The trajectory of a run.

    Args:
        series: those with a metric that a reference speaks of.
        blocks: names of its blocks in forward order.
        steps: (steps,) rising.
        values: (steps, series); NaN: absent.
        shares: (steps,) the learning rate's share of its largest; 1 where none is known.
        head: whose it is, and of which size.
    """
    depths = _depths(blocks)
    columns: dict[tuple[Place, float | None], list[int]] = {}
    for column, one in enumerate(series):
        if is_held_to_reference(one):
            columns.setdefault((place_of(one), depths.get(one.facts.block or "")), []).append(column)
    bins = np.array([bin_of(int(step)) for step in steps], np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where((values >= 0) & np.isfinite(values), level_of(np.log2(values)), np.nan)
        by_share = np.log2(np.where(shares > 0, shares, np.nan))
    curves = []
    for (place, depth), at in columns.items():
        own = logs[:, at]
        if place[0] in _SCHEDULED:
            own = np.where(own > ZERO, own - by_share[:, None], own)
        curve = _curve(place, depth, bins, own)
        if curve is not None:
            curves.append(curve)
    last = int(steps[-1]) if len(steps) else 0
    return Trajectory(
        TRAJECTORY_VERSION, head.run, head.name, head.width, head.depth, head.head_width, head.parametrization, last,
        tuple(curves),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """Whose trajectory it is."""

    run: str
    name: str
    width: int
    depth: int
    head_width: float | None
    parametrization: str


def level_of(logs: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """log2 of values as they are compared: what is zero, or lost in rounding, is one level far below all others."""
    return np.where(logs < _ROUNDING, ZERO, logs)


def place_of(series: JudgedSeries) -> Place:
    """Where in the model a series is measured, in words that models of other sizes share."""
    block = series.facts.block
    name = series.subject
    if block is not None and (name == block or name.startswith(block + ".")):
        return series.metric, _NUMBERS.sub("*", name[len(block) + 1 :]), True
    return series.metric, _NUMBERS.sub("*", name), False


def role_of(series: JudgedSeries) -> Role:
    """What the series belongs to, as the scaling rules see it."""
    facts, metric = series.facts, series.metric
    if metric.startswith("attention."):
        return "attention"
    if facts.role == "block":
        return "residual"
    if series.kind == "parameter" and facts.view is None and facts.role != "embedding":
        return "bias" if series.subject.endswith("bias") else "gain"
    if facts.role == "head" or (facts.role == "root" and series.kind == "module"):
        return "head"
    return "embedding" if facts.role == "embedding" else "hidden"


class _Table:
    """The curves of one place, brought to one depth: (low, middle, high) by bin."""

    def __init__(self, rows: Mapping[int, tuple[float, float, float]]) -> None:
        self._rows = rows
        self._last = max(rows, default=-1)

    @classmethod
    def of(cls, curves: Sequence[Curve], depth: float | None) -> "_Table":
        """Of the curves on both sides of a depth, the extremes and the median between theirs."""
        if depth is not None and len(curves) > 1:
            ordered = sorted(curves, key=lambda curve: curve.depth or 0.0)
            below = [c for c in ordered if (c.depth or 0.0) <= depth][-1:] or ordered[:1]
            above = [c for c in ordered if (c.depth or 0.0) >= depth][:1] or ordered[-1:]
            curves = [*below, *above]
        rows: dict[int, list[tuple[float, float, float]]] = {}
        for curve in curves:
            for at, *row in zip(curve.bins, curve.low, curve.middle, curve.high, strict=True):
                rows.setdefault(at, []).append((row[0], row[1], row[2]))
        return cls({at: _joined(found) for at, found in rows.items()})

    def at(self, place: int) -> tuple[float, float, float]:
        """At a bin: the widest of it and of its neighbours; NaN where the reference says nothing, or was zero."""
        if place > self._last + 1:
            return math.nan, math.nan, math.nan
        near = [self._rows[at] for at in (place - 1, place, place + 1) if at in self._rows]
        if not near:
            earlier = [at for at in range(place - 2, place - 1 - _STALE_BINS, -1) if at in self._rows]
            near = [self._rows[earlier[0]]] if earlier else []
        if not near:
            return math.nan, math.nan, math.nan
        middle = self._rows.get(place, near[0])[1]
        if middle <= ZERO:
            return math.nan, math.nan, math.nan
        return min(row[0] for row in near), middle, max(row[2] for row in near)


def _joined(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    middles = [row[1] for row in rows]
    return min(row[0] for row in rows), sum(middles) / len(middles), max(row[2] for row in rows)


def _depths(blocks: Sequence[str]) -> dict[str, float]:
    return {name: (place + 0.5) / len(blocks) for place, name in enumerate(blocks)}


def _curve(place: Place, depth: float | None, bins: Indices, logs: NDArray[np.float64]) -> Curve | None:
    found: list[tuple[int, float, float, float]] = []
    for at in np.unique(bins).tolist():
        own = logs[bins == at]
        own = own[~np.isnan(own)]
        if own.size:
            ends = (float(own.min()), float(np.median(own)), float(own.max()))
            found.append((at, *(round(end, 3) for end in ends)))
    if not found:
        return None
    numbers, low, middle, high = zip(*found, strict=True)
    return Curve(place[0], place[1], depth, numbers, low, middle, high)


def _scheduled(checks: Checks, check: Indices) -> Flags:
    return np.array([CRITERIA[number].scheduled for number in checks.criterion[check].tolist()], bool)


_SCHEDULED = frozenset(criterion.metric for criterion in CRITERIA if criterion.scheduled)
REFERENCE_METRICS: tuple[str, ...] = tuple(criterion.metric for criterion in CRITERIA if criterion.reference)
"""What a trajectory is made of."""
