"""A step that is over: from its one copy to the host, to the values of a frame."""

import math
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from internist.record.series_book import Layout
from internist.record.transfer import Transfer
from internist.schema.metrics import METRICS, combine_of
from internist.schema.wire import Series

Derive = Callable[[Sequence[Series], Sequence[float], Sequence[int]], Sequence[tuple[Series, float, int]]]
"""What works further values, with the entries that each stands for, out of the series, values and counts of a frame;
called on the sender's thread."""
Also = tuple[int, Series, int]
"""A value that is a second series' too: its place among the values, that series, entries it stands for."""


class Arrived(NamedTuple):
    """Values on the host, as a frame has them."""

    layout: list[Series | None]
    counts: list[int]
    raw: bytes
    """float32, one after another."""
    skipped: bool
    """Whether a gradient scaler skipped the step: nothing is said of its update."""


@dataclass(frozen=True, slots=True)
class Late:
    """Values of a step that became known after it was closed."""

    layout: Layout
    counts: Sequence[int]
    transfer: Transfer


@dataclass(slots=True)
class ClosedStep:
    """A step that is over."""

    step: int
    measured_at_ms: int
    closed_s: float
    layout: list[Series | None]
    counts: list[int]
    transfer: Transfer | None
    host_values: list[tuple[Series, float]]
    flags: int
    """Number of leading entries that are `found_inf` flags of gradient scalers."""
    masks: list[tuple[int, int]]
    """By trailing entries: which of the values (from, to) they say of whether they were measured."""
    also: list[Also]
    in_parts: bool
    """Whether a series may have several values, which are parts of one."""
    derive: Sequence[Derive] = ()
    more: set[str] = field(default_factory=set)
    """Names of what values of it are still to come from,"""
    late: list[Late] = field(default_factory=list)
    """and those that came."""

    @property
    def has_arrived(self) -> bool:
        """Whether all its copies have."""
        return all(
            transfer is None or transfer.arrived() for transfer in (self.transfer, *(e.transfer for e in self.late))
        )

    def take(self) -> Arrived:
        """Its values, once all copies have arrived: without what was not measured, and with what came late."""
        raw = b"" if self.transfer is None else self.transfer.take()
        skipped = any(v != 0 for v in struct.unpack_from(f"<{self.flags}f", raw))
        end = 4 * (self.flags + len(self.layout))
        masks, raw = raw[end:], raw[4 * self.flags : end]
        layout, counts = self.layout, self.counts
        unmeasured = _unmeasured(masks, self.masks)
        second = [each for each in self.also if each[0] not in unmeasured]
        second_values = [struct.unpack_from("<f", raw, 4 * place)[0] for place, _, _ in second]
        if skipped or unmeasured or None in layout:
            values = array("f", raw)
            keep = [
                i
                for i, series in enumerate(layout)
                if series is not None and i not in unmeasured and not (skipped and _is_of_update(series))
            ]
            raw = array("f", [values[i] for i in keep]).tobytes()
            layout, counts = [layout[i] for i in keep], [counts[i] for i in keep]
        if second:
            raw += struct.pack(f"<{len(second)}f", *second_values)
            layout, counts = layout + [each for _, each, _ in second], counts + [count for *_, count in second]
        if self.in_parts and len(set(map(id, layout))) < len(layout):
            layout, counts, raw = _merged(layout, counts, raw)
        return Arrived(*_with_late(layout, counts, raw, () if skipped else self.late), skipped)


def single(value: float) -> float:
    """The value as float32 can hold it: what is too large becomes an infinity instead of an error."""
    if math.isfinite(value) and abs(value) > 3.4028235677973366e38:
        return math.copysign(math.inf, value)
    return value


def _with_late(
    layout: Sequence[Series | None], counts: Sequence[int], raw: bytes, late: Sequence[Late]
) -> tuple[list[Series | None], list[int], bytes]:
    """Values of a step, followed by those that became known later."""
    layout, counts = list(layout), list(counts)
    for each in late:
        values = array("f", each.transfer.take())
        keep = [i for i, series in enumerate(each.layout) if series is not None]
        layout += [each.layout[i] for i in keep]
        counts += [each.counts[i] for i in keep]
        raw += array("f", [values[i] for i in keep]).tobytes()
    return layout, counts, raw


def _unmeasured(masks: bytes, ranges: Sequence[tuple[int, int]]) -> set[int]:
    """Places of values that were not measured."""
    if not ranges:
        return set()
    flags, at = array("f", masks), 0
    found: set[int] = set()
    for start, stop in ranges:
        found.update(start + i for i in range(stop - start) if flags[at + i] == 0)
        at += stop - start
    return found


def _merged(
    layout: Sequence[Series | None], counts: Sequence[int], raw: bytes
) -> tuple[list[Series | None], list[int], bytes]:
    """Values of which several may be parts of one series, as one value each, by the rule of its metric."""
    parts: dict[int, tuple[Series, list[int], list[float]]] = {}
    for series, count, value in zip(layout, counts, array("f", raw), strict=True):
        assert series is not None
        _, own_counts, own_values = parts.setdefault(series.number, (series, [], []))
        own_counts.append(count)
        own_values.append(value)
    values = array("f")
    for series, own_counts, own_values in parts.values():
        values.append(own_values[0] if len(own_values) == 1 else single(_as_one(series, own_counts, own_values)))
    merged = [sum(own) if combine_of(s.metric) in _WEIGHTED else max(own) for s, own, _ in parts.values()]
    return [series for series, *_ in parts.values()], merged, values.tobytes()


_WEIGHTED = ("mean_square", "mean")


def _as_one(series: Series, counts: Sequence[int], values: Sequence[float]) -> float:
    combine = combine_of(series.metric)
    if combine in _WEIGHTED:
        return sum(count * value for count, value in zip(counts, values, strict=True)) / sum(counts)
    if combine == "max":
        return next((value for value in values if math.isnan(value)), max(values))
    return values[0] if combine == "first" else sum(values)


def _is_of_update(series: Series) -> bool:
    """Whether the value says something of an update: there is none where the step was skipped."""
    known = METRICS.get(series.metric)
    return known is not None and known.family == "update"
