"""Calls on an accelerator: each is measured by one launch into memory that waits for it, and all are reduced together
when the step ends. What costs there is not the work but that the host asks for it.

What a call says is one value of each of its series. Several calls of a module are parts of one value, which the
recorder merges on the host; so is what a module takes from another: its input's largest token is the other's value.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

from torch import Tensor

from internist.measures import activations as measure
from internist.measures import formats
from internist.observe.calls import CallSeries
from internist.observe.seen import BLOCKS, DEPENDENCY, INPUT, LOG_Z, OUTPUTS, RANGES, WIDE_OUTPUT, Seen, Wanted
from internist.observe.sheets import Page, Row, Sheet, Sheets
from internist.observe.streams import Stream, Streams
from internist.observe.token_pools import Distances, Pools, gather, picked
from internist.observe.token_pools import Kind as TokenKind
from internist.observe.tokens import PROBE_TOKENS, at_positions, version_of
from internist.record.closed_step import Also
from internist.record.recorder import Recorder
from internist.record.series_book import Layout
from internist.schema.metrics import Bound
from internist.schema.wire import Series

Where = tuple[TokenKind, int]
"""Which probe tokens, among those that are kept."""
LAYOUTS_KEPT = 256


@dataclass(slots=True)
class _Known:
    """Where a tensor was measured, as long as it is that object, unchanged."""

    of: "weakref.ref[Tensor]"
    version: int
    extent: "_Measured | None" = None
    compared: "_Measured | None" = None
    """Where a block's output was compared with it, which tells its tokens' RMS too."""
    tokens: Where | None = None


@dataclass(slots=True, eq=False)
class _Measured:
    """One row of a sheet, and whose it is."""

    row: Row
    entries: int
    tokens: int
    owner: int
    """Order of the module for which it was measured: what is said of a block's input or of logits is that one's."""
    givers: list[int] = field(default_factory=list)
    """Orders of the modules whose output it is."""
    takers: list[tuple[int, int]] = field(default_factory=list)
    """Orders of the modules whose input it is, and how many entries their outputs have."""
    fellows: list[tuple[int, int]] = field(default_factory=list)
    """The same of the modules whose input is the owner's."""


@dataclass(slots=True)
class _Marks:
    """How much was measured when a forward began."""

    measured: int = 0
    owners: list[tuple[int, int, int]] = field(default_factory=list)
    """Givers, takers and fellows of each row."""
    pairs: int = 0


class DeviceCalls:
    """A step's calls on one device."""

    def __init__(self, series: CallSeries, wanted: Wanted, *, world_size: int) -> None:
        self._series, self.wanted, self._world = series, wanted, world_size
        metrics = set(series.wanted((*OUTPUTS, INPUT, *BLOCKS, *LOG_Z)))
        self._sheets = Sheets(frozenset(metrics | {"activation.rms_max"} if INPUT in metrics else metrics))
        self._streams = Streams()
        self._distances = Distances(distances=wanted.dependency, ranges=wanted.ranges)
        self._kept = Pools()
        self._known: dict[tuple[int, int], _Known] = {}
        """By tensor and feature dimension."""
        self._measured: list[_Measured] = []
        self._pairs: list[tuple[int, Where, Where | None]] = []
        """Module order, probe tokens of its output, those of its input."""
        self._marks = _Marks()
        self._layouts: dict[object, tuple[Layout, Sequence[int], Sequence[Also]]] = {}
        self._is_used = False

    def knows(self, tensor: Tensor, axis: int) -> bool:
        """Whether this tensor has been measured, so that measuring it again costs nothing."""
        return self._found(tensor, axis) is not None

    def measure(self, seen: Seen) -> None:
        """Measure a call."""
        out, source, wanted, order = seen.out, seen.source, self.wanted, seen.watched.order
        stream = self._streams.now(out.device)
        self._is_used = True
        against = source if seen.is_residual and (wanted.blocks or wanted.inputs) else None
        log_z = seen.is_head and wanted.log_z
        if wanted.outputs or wanted.inputs or against is not None or log_z:
            self._output(seen, stream, against, log_z=log_z).givers.append(order)
        if source is not None and wanted.inputs and against is None:
            known = self._found(source, seen.in_axis)
            if known is not None and known.extent is None and known.compared is not None:
                known.compared.fellows.append((order, out.numel()))
            elif known is not None or seen.heavy:
                self._extent(source, seen.in_axis, stream, owner=order).takers.append((order, out.numel()))
        if seen.has_probe and (wanted.dependency or wanted.ranges):
            between, entered = self._tokens(out, seen.axis, stream), None
            if wanted.dependency and source is not None and seen.is_paired:
                entered = self._tokens(source, seen.in_axis, stream)
            self._pairs.append((order, between, entered))

    def keep(self, tensor: Tensor, axis: int, most: int) -> Tensor:
        """(at most `most`, features) the tensor's probe tokens, until the next sampled step begins."""
        self._is_used = True
        pool = self._kept.pool(tensor, axis, most, self._streams.now(tensor.device))
        place = pool.place()
        gather(tensor, axis, most, place)
        pool.advance()
        return place

    def pick(self, tensor: Tensor, axis: int, most: int) -> Tensor:
        """The same, in memory of their own: until nobody needs them any more."""
        return picked(tensor, axis, most)

    def drop(self, order: int) -> None:
        """Forget a module's calls."""
        for measured in self._measured:
            measured.givers = [giver for giver in measured.givers if giver != order]
            measured.takers = [taker for taker in measured.takers if taker[0] != order]
            measured.fellows = [taker for taker in measured.fellows if taker[0] != order]
        self._pairs = [pair for pair in self._pairs if pair[0] != order]

    def mark(self) -> None:
        """A forward begins: `roll_back` forgets what is measured from here on."""
        counts = [(len(each.givers), len(each.takers), len(each.fellows)) for each in self._measured]
        self._marks = _Marks(len(self._measured), counts, len(self._pairs))

    def roll_back(self) -> None:
        """Forget what was measured since `mark`."""
        marks = self._marks
        new = len(self._measured) - marks.measured
        before = chain(marks.owners, repeat((0, 0, 0), new))
        for measured, (givers, takers, fellows) in zip(self._measured, before, strict=True):
            del measured.givers[givers:], measured.takers[takers:], measured.fellows[fellows:]
        del self._pairs[marks.pairs :]

    def reset(self) -> None:
        """Forget the step's calls; their memory waits for the next sample."""
        if not self._is_used:
            return
        self._is_used = False
        self._known.clear()
        self._measured.clear()
        self._pairs.clear()
        self._marks = _Marks()
        self._sheets.begin()
        self._distances.begin()
        self._kept.begin()

    def forget(self) -> None:
        """Give all memory back."""
        self.reset()
        self._sheets.forget()
        self._distances.forget()
        self._kept.forget()

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the step's values to the recorder."""
        if not (self._measured or self._pairs):
            return
        bound: Bound = "sampled" if sampled else "exact"
        calls: dict[int, int] = {}
        for measured in self._measured:
            for giver in measured.givers:
                calls[giver] = calls.get(giver, 0) + 1
        by_page: dict[tuple[Sheet, int], list[_Measured]] = {}
        for measured in self._measured:
            by_page.setdefault((measured.row.sheet, measured.row.page), []).append(measured)
        for sheet, page in self._sheets.close():
            self._record_page(page, by_page.get((sheet, page.number), ()), calls, recorder, bound)
        if self.wanted.dependency:
            self._record_spreads(recorder)
        if self.wanted.ranges:
            self._record_ranges(recorder)

    # ---- in a forward ----------------------------------------------------------------------------------------------

    def _output(self, seen: Seen, stream: Stream, against: Tensor | None, *, log_z: bool) -> _Measured:
        """The row of a call's output."""
        out, order = seen.out, seen.watched.order
        if out.shape[seen.axis] > WIDE_OUTPUT:
            tokens = at_positions(out, seen.axis)
            entered = None if against is None else at_positions(against, seen.in_axis)
            return self._added(tokens, stream, entered, owner=order, log_z=log_z)
        if against is None and not log_z:
            return self._extent(out, seen.axis, stream, owner=order)
        entered = None if against is None else _as_tokens(against, seen.in_axis)
        known = self._of(out, seen.axis)
        known.extent = self._added(_as_tokens(out, seen.axis), stream, entered, owner=order, log_z=log_z)
        if against is not None:
            self._of(against, seen.in_axis).compared = known.extent
        return known.extent

    def _extent(self, tensor: Tensor, axis: int, stream: Stream, *, owner: int) -> _Measured:
        """The row of a tensor, once for all modules that give or take it."""
        known = self._of(tensor, axis)
        if known.extent is None:
            known.extent = self._added(_as_tokens(tensor, axis), stream, None, owner=owner, log_z=False)
        return known.extent

    def _added(self, x: Tensor, stream: Stream, source: Tensor | None, *, owner: int, log_z: bool) -> _Measured:
        row = self._sheets.take(x, stream, source, log_z=log_z)
        measured = _Measured(row, x.numel(), x.numel() // x.shape[-1], owner)
        self._measured.append(measured)
        return measured

    def _tokens(self, tensor: Tensor, axis: int, stream: Stream) -> Where:
        """A tensor's probe tokens, once for the module that gives it and those that take it."""
        known = self._of(tensor, axis)
        if known.tokens is None:
            known.tokens = self._distances.keep(tensor, axis, PROBE_TOKENS, stream)
        return known.tokens

    def _found(self, tensor: Tensor, axis: int) -> _Known | None:
        """What is known of a tensor, if it is still as it was."""
        known = self._known.get((id(tensor), axis))
        if known is None or known.of() is not tensor or known.version != version_of(tensor):
            return None
        return known

    def _of(self, tensor: Tensor, axis: int) -> _Known:
        known = self._found(tensor, axis)
        if known is None:
            known = self._known[id(tensor), axis] = _Known(weakref.ref(tensor), version_of(tensor))
        return known

    # ---- series ----------------------------------------------------------------------------------------------------

    def _record_page(
        self, page: Page, rows: Sequence[_Measured], calls: Mapping[int, int], recorder: Recorder, bound: Bound
    ) -> None:
        whose = tuple(
            (each.row.place, each.owner, tuple(each.givers), tuple(each.takers), tuple(each.fellows)) for each in rows
        )
        several = tuple(order for order, number in calls.items() if number > 1)
        key = page.metrics, page.rows, whose, tuple(each.entries for each in rows), several, bound
        found = self._layouts.get(key)
        if found is None:
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.clear()
            found = self._layouts[key] = self._page_layout(page, rows, calls, bound)
        layout, counts, also = found
        recorder.add(layout, page.values, counts, also=also, in_parts=True)

    def _page_layout(
        self, page: Page, rows: Sequence[_Measured], calls: Mapping[int, int], bound: Bound
    ) -> tuple[Layout, Sequence[int], Sequence[Also]]:
        layout: list[Series | None] = [None] * (len(page.metrics) * page.rows)
        counts = [1] * len(layout)
        also: list[Also] = []
        for line, metric in enumerate(page.metrics):
            for each in rows:
                at = line * page.rows + each.row.place
                owners = each.givers if metric in OUTPUTS else [o for o in each.givers if o == each.owner]
                for position, order in enumerate(owners):
                    series = self._series.of(order, metric, self._bound_of(metric, bound, calls[order]))
                    count = _count(metric, each)
                    if position == 0:
                        layout[at], counts[at] = series, count
                    elif series is not None:
                        also.append((at, series, count))
                if metric == "activation.rms_max":
                    also += self._inputs(at, each.takers, bound)
                elif metric == INPUT:
                    also += self._inputs(at, each.fellows, bound)
        return layout, counts, also

    def _inputs(self, at: int, takers: Iterable[tuple[int, int]], bound: Bound) -> Iterable[Also]:
        for order, entries in takers:
            series = self._series.of(order, INPUT, bound)
            if series is not None:
                yield at, series, entries

    def _bound_of(self, metric: str, bound: Bound, calls: int) -> Bound:
        # the largest quantile of the parts is never below the quantile of all
        is_quantile = metric == "activation.rms_q99" and bound == "exact"
        return "upper" if is_quantile and (calls > 1 or self._world > 1) else bound

    def _record_spreads(self, recorder: Recorder) -> None:
        kinds: dict[tuple[int, bool], list[tuple[int, Where, Where | None]]] = {}
        for pair in self._pairs:
            kinds.setdefault((pair[1][0].tokens, pair[2] is not None), []).append(pair)
        for (_, has_inputs), members in kinds.items():
            outputs = [out for _, out, _ in members]
            inputs = [entered for _, _, entered in members if entered is not None]
            apart = self._distances.of([*outputs, *inputs])
            between = apart[: len(outputs)]
            values, measured = measure.spread(between, apart[len(outputs) :] if has_inputs else None)
            bounds: tuple[Bound, ...] = ("lower", "sampled", "lower")
            layout = [
                self._series.of(order, metric, bound)
                for order, _, _ in members
                for metric, bound in zip(DEPENDENCY, bounds, strict=True)
            ]
            recorder.add(layout, values, measured=measured, in_parts=True)

    def _record_ranges(self, recorder: Recorder) -> None:
        members = [(order, out) for order, out, _ in self._pairs if formats.is_known(out[0].dtype)]
        if members:
            layout = [self._series.of(order, metric, "sampled") for metric in RANGES for order, _ in members]
            entries = [out[0].tokens * out[0].features for _, out in members] * len(RANGES)
            recorder.add(layout, self._distances.ranges([out for _, out in members]), entries, in_parts=True)


def _as_tokens(x: Tensor, axis: int) -> Tensor:
    """([batch,] tokens, features) the same entries, without a copy where their strides allow that."""
    if axis not in (-1, x.dim() - 1):
        x = x.movedim(axis, -1)
    if x.dim() in (2, 3):
        return x
    return x.unsqueeze(0) if x.dim() == 1 else x.reshape(x.shape[0], -1, x.shape[-1])


def _count(metric: str, measured: _Measured) -> int:
    """Entries that a part stands for."""
    if metric in ("activation.rms_max", "activation.rms_q99", "output.log_z_max"):
        return 1
    return measured.tokens if metric == "output.log_z" else measured.entries
