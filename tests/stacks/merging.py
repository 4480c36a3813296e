"""What several ranks left in their spools, merged into one run's points by the server's own functions."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from internist.schema.metrics import METRICS
from internist.schema.wire import Series
from internist_server.store import merge as merging
from internist_server.store.merge import codes_of, divide
from tests.client.points import records

Key = tuple[str, str, int | None, str]
"""Metric, subject, index, bound."""
Parts = list[tuple[int, Series, int, float]]
"""Step, series, entries the value stands for, value as on the wire."""


def parts_of(directory: Path) -> Parts:
    """All that one rank sent."""
    series: dict[int, Series] = {}
    plans: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    found: Parts = []
    for record in records(directory):
        series.update((each.number, each) for each in record.series or ())
        if record.plan is not None:
            plans[record.plan.number] = record.plan.series, record.plan.counts or (1,) * len(record.plan.series)
        if record.frame is not None:
            numbers, counts = plans[record.frame.plan]
            values = struct.unpack(f"<{len(numbers)}f", record.frame.values)
            found += [
                (record.frame.step, series[number], count, value)
                for number, count, value in zip(numbers, counts, values, strict=True)
            ]
    return found


def merged(ranks: Sequence[Parts]) -> dict[Key, dict[int, float]]:
    """Points by series, as the server would show them."""
    known = {_key(series): series for parts in ranks for _, series, _, _ in parts}
    columns = {key: column for column, key in enumerate(known)}
    steps = sorted({step for parts in ranks for step, *_ in parts})
    rows = {step: row for row, step in enumerate(steps)}
    codes = codes_of(known.values())
    shape = 1, len(steps), len(columns)
    sent = []
    for parts in ranks:
        part = merging.Parts(np.full(shape, np.nan, np.float32), np.zeros(shape, bool), np.ones(shape))
        for step, series, count, value in parts:
            at = 0, rows[step], columns[_key(series)]
            part.values[at], part.present[at], part.counts[at] = value, True, count
        sent.append(part)
    values, present = merging.merge(sent, codes, steps=len(steps))
    over = {
        column: columns[METRICS[key[0]].over, *key[1:]]
        for key, column in columns.items()
        if key[0] in METRICS and (METRICS[key[0]].over, *key[1:]) in columns
    }
    divide(values, present, over.items())
    return {
        key: {step: float(values[row, column]) for step, row in rows.items() if present[row, column]}
        for key, column in columns.items()
    }


def _key(series: Series) -> Key:
    return series.metric, series.subject, series.index, series.bound
