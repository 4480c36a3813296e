"""Reads what a run left in its spool: points by series, as the server would see them."""

import struct
from pathlib import Path

import msgspec

from internist.schema.metrics import METRICS, combine_of
from internist.schema.wire import Frame, Record, Series

Key = tuple[str, str, int | None]


def records(directory: Path) -> list[Record]:
    """All records of one rank's spool, in order."""
    found = []
    for segment in sorted(directory.glob("*.spool")):
        data, offset = segment.read_bytes(), 0
        while offset < len(data):
            length, _ = struct.unpack_from("<II", data, offset)
            found.append(msgspec.msgpack.decode(data[offset + 8 : offset + 8 + length], type=Record))
            offset += 8 + length
    return found


def read(directory: Path) -> tuple[dict[Key, dict[int, float]], dict[Key, Series], list[Frame]]:
    """Points (values as defined, roots taken), declarations and frames, by (metric, subject, index)."""
    series: dict[int, Series] = {}
    plans: dict[int, tuple[int, ...]] = {}
    points: dict[Key, dict[int, float]] = {}
    frames = []
    for record in records(directory):
        for each in record.series or ():
            series[each.number] = each
        if record.plan is not None:
            plans[record.plan.number] = record.plan.series
        if record.frame is not None:
            frames.append(record.frame)
            numbers = plans[record.frame.plan]
            values = struct.unpack(f"<{len(numbers)}f", record.frame.values)
            for number, value in zip(numbers, values, strict=True):
                each = series[number]
                squared = combine_of(each.metric) in ("mean_square", "sum_square")
                key = each.metric, each.subject, each.index
                points.setdefault(key, {})[record.frame.step] = value**0.5 if squared and value >= 0 else value
    for (metric, subject, index), own in points.items():
        over = points.get((METRICS[metric].over, subject, index)) if metric in METRICS else None
        own.update({step: value / over[step] for step, value in own.items() if over and step in over})
    declared = {(s.metric, s.subject, s.index): s for s in series.values()}
    return points, declared, frames
