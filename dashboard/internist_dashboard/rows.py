"""The rows of the layers x steps heat map: collapsed to blocks, opened on demand, as arrays ready to draw."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.views import Number
from internist.schema.windows import Heatmap, HeatmapRow
from internist_dashboard.filters import Filter

FloatArray = NDArray[np.float32]
MOST_ROWS = 200
"""Rows of one view: a person reads no more, and a browser draws no more at once."""
HOLD = 1.5
"""A value is drawn until the next is due: for this many of its row's own median gaps, and no longer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as drawn."""

    key: str
    """Unique among the rows: what the axis calls it."""
    label: str
    block: str | None
    """The block that a click opens or closes; None: a click draws the series."""
    is_open: bool
    is_child: bool
    series: tuple[int, ...]
    ratios: tuple[Number, ...]
    values: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Cells:
    """The numbers of all rows: arrays of shape (rows, steps)."""

    ratios: FloatArray
    """log2 of value over the band's centre; NaN: not judged."""
    values: FloatArray
    measured_at: FloatArray
    """The step at which a cell's value was measured: earlier than its column where it is held."""
    nonfinite: NDArray[np.bool_]


def collapse(heatmap: Heatmap, *, opened: Iterable[str] = (), pattern: Filter | None = None) -> list[Row]:
    """Rows in forward order: one for each block, its members below it where opened, modules outside blocks as they are.

    A block's row is its own where it has one alone; else at each step the member farthest from its band speaks for it.
    With a pattern, the rows that match it, each on its own.
    """
    ordered = sorted(heatmap.rows, key=lambda row: row.order)
    if pattern is not None:
        found = (row for row in ordered if pattern.search(row.subject))
        return [Row(m.subject, m.subject, None, False, False, m.series, m.ratios, m.values) for m in found]
    is_opened = set(opened)
    groups: dict[str, list[HeatmapRow]] = {}
    for row in ordered:
        groups.setdefault(row.block or row.subject, []).append(row)
    rows: list[Row] = []
    for name, members in groups.items():
        rows += _group(name, members, is_open=name in is_opened)
    return rows


def cells(rows: Sequence[Row], steps: Sequence[int]) -> Cells:
    """The numbers of the rows, each value held until its row's next is due."""
    at = np.asarray(steps, dtype=np.float64)
    ratios = _array([row.ratios for row in rows], len(steps))
    values = _array([row.values for row in rows], len(steps))
    present = np.array([[v is not None for v in row.values] for row in rows], dtype=bool).reshape(values.shape)
    nonfinite = present & ~np.isfinite(values)
    measured_at = np.full(values.shape, np.nan, dtype=np.float32)
    for index in range(len(rows)):
        where = np.flatnonzero(present[index] | np.isfinite(ratios[index]))
        if where.size == 0:
            continue
        measured_at[index, where] = at[where]
        source = np.searchsorted(where, np.arange(len(steps)), side="right") - 1
        held = where[np.maximum(source, 0)]
        gap = float(np.median(np.diff(at[where]))) if where.size > 1 else 0.0
        held_cells = (source >= 0) & (at - at[held] <= HOLD * gap) & ~present[index]
        for array in (ratios, values, measured_at):
            array[index, held_cells] = array[index, held[held_cells]]
    return Cells(ratios, values, measured_at, nonfinite)


def _group(name: str, members: list[HeatmapRow], *, is_open: bool) -> list[Row]:
    if len(members) == 1:
        only = members[0]
        return [Row(only.subject, only.subject, _opens(only), is_open, False, only.series, only.ratios, only.values)]
    ratios, values = _farthest(members)
    series = tuple(number for member in members for number in member.series)
    rows = [Row(f"{name} ", name, name, is_open, False, series, ratios, values)]
    if is_open:
        rows += [
            Row(m.subject, m.subject.removeprefix(f"{name}."), None, False, True, m.series, m.ratios, m.values)
            for m in members
        ]
    return rows


def _opens(row: HeatmapRow) -> str | None:
    return row.block if row.block and len(row.series) > 1 else None


def _farthest(members: list[HeatmapRow]) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    ratios: list[Number] = []
    values: list[Number] = []
    for column in zip(*(zip(m.ratios, m.values, strict=True) for m in members), strict=True):
        ratio, value = max(column, key=lambda cell: (_excess(cell[1], nan=True), _excess(cell[0])))
        ratios.append(ratio)
        values.append(value)
    return tuple(ratios), tuple(values)


def _excess(x: Number, *, nan: bool = False) -> float:
    """Order of distances: absent, then by magnitude; with `nan`, only whether the value is not finite."""
    if x is None:
        return -1.0
    value = float(x)
    if nan:
        return 0.0 if math.isfinite(value) else 1.0
    return math.inf if math.isnan(value) else abs(value)


def _array(rows: Sequence[Sequence[Number]], width: int) -> FloatArray:
    flat = [[math.nan if v is None else float(v) for v in row] for row in rows]
    return np.array(flat, dtype=np.float32).reshape(len(rows), width)
