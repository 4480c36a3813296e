"""A step's module calls become series: a few batched reductions over all modules."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from internist.measures import activations as measure
from internist.measures import formats
from internist.measures.activations import Value
from internist.model.outline import Outline, WatchedModule
from internist.observe.pieces import Piece
from internist.observe.sampling import HEAVY_EVERY, Sampling
from internist.observe.seen import DEPENDENCY, RANGES
from internist.observe.tokens import PROBE_TOKENS
from internist.record.recorder import Recorder
from internist.record.series_book import Layout, SeriesBook
from internist.schema.metrics import Bound
from internist.schema.wire import Facts, Series

PAIR: tuple[Bound, Bound] = "lower", "upper"
"""Between which pieces put the whole."""


@dataclass(slots=True)
class Call:
    """One measured call of one module."""

    norms: Tensor
    """(tokens,) token RMS of the output."""
    entries: int
    abs_max: Value
    nonfinite: Value
    input_norms: Tensor | None = None
    in_piece: Piece | None = None
    """Which part of the input's features they are of; None: of all."""
    added: Value | None = None
    """Of a residual block: sum of squares of what it adds to its input,"""
    stream: Value | None = None
    """and of the input."""
    log_z: Tensor | None = None
    distances: Tensor | None = None
    """(pairs,) between the probe tokens of the output."""
    input_distances: Tensor | None = None
    ranges: Tensor | None = None
    """(4, 1) shares of the probe tokens' entries, as `measures.formats.shares` gives them,"""
    probed: int = 0
    """and how many entries those are."""


Calls = Mapping[int, Sequence[Call]]
"""The step's calls by module order."""
Entries = Mapping[int, int]
"""Entries of the outputs of all those calls, by module order."""


class CallSeries:
    """What is known of every module, and the series its calls are recorded as."""

    def __init__(self, outline: Outline, *, book: SeriesBook, sampling: Sampling, world_size: int) -> None:
        self._outline, self._book, self._sampling, self._world = outline, book, sampling, world_size
        self.widths: dict[int, tuple[int | None, int | None]] = {}
        """By module order: features of input and output, once seen."""
        self.pieces: dict[int, Piece] = {}
        """By module order: which part of its output's features this rank has, where that is not all."""
        self.normalized: dict[int, bool] = {}
        """By module order: whether its input is a normalisation layer's output."""
        self.light_inputs: dict[int, bool] = {}
        """By module order: whether its input is another watched module's output, whose token RMS is known."""
        self.dtypes: dict[int, torch.dtype] = {}
        """By module order: the type of its output."""

    def record(self, calls: Calls, recorder: Recorder, *, sampled: bool) -> None:
        """Hand a step's values to the recorder.

        Args:
            sampled: the values come from a replay of the probe, not from the training forward.
        """
        bound: Bound = "sampled" if sampled else "exact"
        entries = {order: sum(call.entries for call in own) for order, own in calls.items()}
        self._record_outputs(calls, entries, recorder, bound)
        self._record_inputs(calls, entries, recorder, bound)
        self._record_values(calls, entries, recorder, bound)
        self._record_log_z(calls, recorder, bound)
        self._record_spreads(calls, recorder)
        self._record_ranges(calls, recorder)

    def facts(self, watched: WatchedModule, metric: str, *, probe: int | None = None, method: str = "") -> Facts:
        """Facts of a series of this module."""
        width_in, width_out = self.widths.get(watched.order, (None, None))
        dtype = self.dtypes.get(watched.order) if metric in RANGES else None
        rare = metric == "activation.input_rms_max" and not self.light_inputs.get(watched.order, True)
        return Facts(
            method=method,
            role=watched.role,
            block=watched.block,
            module=watched.name,
            order=watched.place,
            input_normalized=self.normalized.get(watched.order, False),
            fan_in=width_in,
            fan_out=width_out,
            dtype=None if dtype is None else formats.format_of(dtype).name,
            probe=probe,
            cadence=self._sampling.cadence(metric) * (HEAVY_EVERY if rare else 1),
            placement="feature_sharded" if watched.order in self.pieces else "data_parallel",
        )

    def of(self, order: int, metric: str, bound: Bound) -> Series | None:
        """The series of a metric of this module; None if it is not wanted."""
        watched = self._outline.modules[order]
        probe = PROBE_TOKENS if metric in (*DEPENDENCY, *RANGES) else None
        method = formats.pair_of(self.dtypes[order], is_gradient=False) if metric in RANGES else ""
        return self._book.series(
            metric, "module", watched.name, lambda: self.facts(watched, metric, probe=probe, method=method), bound=bound
        )

    def wanted(self, metrics: Iterable[str]) -> list[str]:
        """Those of these metrics that are measured."""
        return [metric for metric in metrics if self._sampling.wants(metric)]

    def _record_outputs(self, calls: Calls, entries: Entries, recorder: Recorder, bound: Bound) -> None:
        self._record_pieces({order: own for order, own in calls.items() if order in self.pieces}, entries, recorder)
        calls = {order: own for order, own in calls.items() if order not in self.pieces}
        for shape, members in _grouped(calls, lambda call: call.norms.numel()).items():
            parts = [
                measure.rms_summary(torch.stack([calls[order][j].norms for order in members]))
                for j in range(len(shape))
            ]
            if len(parts) == 1:
                summary = parts[0]
            else:
                weights = [tokens / sum(shape) for tokens in shape]
                squares = sum(part[:, 0] * weight for part, weight in zip(parts, weights, strict=True))
                assert isinstance(squares, Tensor)
                summary = torch.stack(
                    (
                        squares,
                        torch.stack([p[:, 1] for p in parts]).amax(0),
                        torch.stack([p[:, 2] for p in parts]).amax(0),
                    ),
                    dim=1,
                )
            # the largest quantile of the parts is never below the quantile of all
            quantile_bound: Bound = "upper" if bound == "exact" and (len(shape) > 1 or self._world > 1) else bound
            bounds: dict[str, Bound] = {
                "activation.rms": bound,
                "activation.rms_max": bound,
                "activation.rms_q99": quantile_bound,
            }
            counts = [count for order in members for count in (entries[order], 1, 1)]
            recorder.add(self._layout(members, bounds), summary, counts)

    def _record_pieces(self, calls: Calls, entries: Entries, recorder: Recorder) -> None:
        """Outputs of which this rank has a part of each token: the RMS merges; the largest token lies between that of a
        piece and the root of the sum of all pieces' squares."""
        for order, own in calls.items():
            share, tokens = self.pieces[order].share, sum(call.norms.numel() for call in own)
            squares = torch.stack([call.norms.square().sum() for call in own]).sum() / tokens
            largest = torch.stack([call.norms.amax() for call in own]).amax().square() * share
            recorder.add(
                [
                    self.of(order, "activation.rms", "exact"),
                    self.of(order, "activation.rms_max", "lower"),
                    self.of(order, "activation.rms_max", "upper"),
                ],
                torch.stack((squares, largest.sqrt(), largest)),
                [entries[order], 1, 1],
            )

    def _record_inputs(self, calls: Calls, entries: Entries, recorder: Recorder, bound: Bound) -> None:
        rows: dict[int, list[tuple[int, Tensor]]] = {}
        for order, own in calls.items():
            if any(call.in_piece is not None for call in own):
                self._record_input_pieces(order, own, recorder)
                continue
            for call in own:
                if call.input_norms is not None:
                    rows.setdefault(call.input_norms.numel(), []).append((order, call.input_norms))
        largest: dict[int, list[Value]] = {}
        for members in rows.values():
            top = torch.stack([norms for _, norms in members]).amax(dim=1).unbind()
            for (order, _), value in zip(members, top, strict=True):
                largest.setdefault(order, []).append(value)
        self._record_reduced(entries, recorder, "activation.input_rms_max", bound, largest, torch.amax)

    def _record_input_pieces(self, order: int, own: Sequence[Call], recorder: Recorder) -> None:
        squares = [
            call.input_norms.amax().square() * call.in_piece.share
            for call in own
            if call.input_norms is not None and call.in_piece is not None
        ]
        if squares:
            watched, metric = self._outline.modules[order], "activation.input_rms_max"
            series = [
                self._book.series(
                    metric,
                    "module",
                    watched.name,
                    lambda: replace(self.facts(watched, metric), placement="feature_sharded"),
                    bound=bound,
                )
                for bound in PAIR
            ]
            largest = torch.stack(squares).amax()
            recorder.add(series, torch.stack((largest.sqrt(), largest)))

    def _record_values(self, calls: Calls, entries: Entries, recorder: Recorder, bound: Bound) -> None:
        abs_max = {order: [call.abs_max for call in own] for order, own in calls.items()}
        nonfinite = {order: [call.nonfinite for call in own] for order, own in calls.items()}
        self._record_reduced(entries, recorder, "activation.abs_max", bound, abs_max, torch.amax)
        self._record_reduced(entries, recorder, "activation.nonfinite", bound, nonfinite, torch.sum)
        self._record_blocks(calls, recorder, bound)

    def _record_blocks(self, calls: Calls, recorder: Recorder, bound: Bound) -> None:
        """What residual blocks add to their streams, and the streams: two mean squares each, which ranks can merge."""
        added = {order: [call for call in own if call.added is not None] for order, own in calls.items()}
        blocks = {order: own for order, own in added.items() if own}
        if blocks:
            counts = [sum(call.entries for call in own) for own in blocks.values()]
            pairs = (
                _means([[call.added for call in own] for own in blocks.values()], counts),
                _means([[call.stream for call in own] for own in blocks.values()], counts),
            )
            layout = self._layout(list(blocks), {"block.contribution": bound, "block.stream": bound})
            recorder.add(layout, torch.stack(pairs, dim=1), [count for count in counts for _ in pairs])

    def _record_log_z(self, calls: Calls, recorder: Recorder, bound: Bound) -> None:
        for order, own in calls.items():
            if order in self.pieces:
                self._record_log_z_of_piece(order, own, recorder)
                continue
            logs = [(call.log_z, call.norms.numel()) for call in own if call.log_z is not None]
            if logs:
                tokens = sum(number for _, number in logs)
                parts = [found if number == tokens else found[0] * (number / tokens) for found, number in logs]
                mean = parts[0][0] if len(parts) == 1 else torch.stack(parts).sum()
                recorder.add(
                    [self.of(order, "output.log_z", bound), self.of(order, "output.log_z_max", bound)],
                    torch.stack((mean, torch.stack([found[1] for found, _ in logs]).amax())),
                    [tokens, 1],
                )

    def _record_log_z_of_piece(self, order: int, own: Sequence[Call], recorder: Recorder) -> None:
        """What a piece of the vocabulary says of log Z from below and from above."""
        logs = [(call.log_z, call.norms.numel()) for call in own if call.log_z is not None]
        if not logs:
            return
        tokens, ranks = sum(number for _, number in logs), math.log(self.pieces[order].ranks)
        mean = torch.stack([found[0] * (number / tokens) for found, number in logs]).sum()
        largest, above = torch.stack([found for found, _ in logs])[:, 1:].amax(0).unbind()
        recorder.add(
            [self.of(order, metric, bound) for metric in ("output.log_z", "output.log_z_max") for bound in PAIR],
            torch.stack((mean + ranks, above + ranks, largest, largest + ranks)),
            [tokens, 1, 1, 1],
        )

    def _record_spreads(self, calls: Calls, recorder: Recorder) -> None:
        rows: dict[tuple[int, bool], list[tuple[int, Call]]] = {}
        for order, own in calls.items():
            for call in own:
                if call.distances is not None:
                    kind = call.distances.numel(), call.input_distances is not None
                    rows.setdefault(kind, []).append((order, call))
        bounds: dict[str, Bound] = {
            "activation.spread": "lower",
            "activation.spread_mean": "sampled",
            "activation.lipschitz": "lower",
        }
        found: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for (_, has_inputs), members in rows.items():
            between = torch.stack([call.distances for _, call in members if call.distances is not None])
            apart = [call.input_distances for _, call in members if call.input_distances is not None]
            spreads, measured = measure.spread(between, torch.stack(apart) if has_inputs else None)
            once = [i for i, (order, _) in enumerate(members) if len(calls[order]) == 1]
            if len(once) == len(members):
                recorder.add(self._layout([order for order, _ in members], bounds), spreads, measured=measured)
                continue
            for (order, _), spread, is_measured in zip(members, spreads.unbind(), measured.unbind(), strict=True):
                found.setdefault(order, []).append((spread, is_measured))
        for order, several in found.items():
            stacked, masks = (torch.stack(each) for each in zip(*several, strict=True))
            largest = stacked.masked_fill(~masks, -torch.inf).amax(0)
            mean = stacked.masked_fill(~masks, 0.0).sum(0) / masks.sum(0)
            value = torch.stack((largest[0], mean[1], largest[2]))
            recorder.add(self._layout([order], bounds), value, measured=masks.any(0))

    def _record_ranges(self, calls: Calls, recorder: Recorder) -> None:
        found = [(order, call, call.ranges) for order, own in calls.items() for call in own if call.ranges is not None]
        if found:
            layout = [self.of(order, metric, "sampled") for metric in RANGES for order, *_ in found]
            entries = [call.probed for _, call, _ in found] * len(RANGES)
            recorder.add(layout, torch.cat([ranges for *_, ranges in found], dim=1), entries, in_parts=True)

    def _record_reduced(
        self,
        entries: Entries,
        recorder: Recorder,
        metric: str,
        bound: Bound,
        values: Mapping[int, Sequence[Value]],
        reduce: Callable[..., Tensor],
    ) -> None:
        """Record one value per module: `reduce` over its calls, batched over modules with equally many."""
        by_calls: dict[int, list[int]] = {}
        for order, own in values.items():
            if own:
                by_calls.setdefault(len(own), []).append(order)
        for number, members in by_calls.items():
            flat = _stacked(value for order in members for value in values[order])
            if number > 1:
                flat = reduce(flat.view(len(members), number), dim=1)
            recorder.add(self._layout(members, {metric: bound}), flat, [entries[order] for order in members])

    def _layout(self, orders: Sequence[int], bounds: Mapping[str, Bound]) -> Layout:
        """The series of these metrics of each module in turn."""
        key = "calls", tuple(orders), tuple(bounds.items())
        return self._book.layout(key, lambda: [self.of(order, *each) for order in orders for each in bounds.items()])


def _grouped(calls: Calls, size: Callable[[Call], int]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for order, own in calls.items():
        groups.setdefault(tuple(size(call) for call in own), []).append(order)
    return groups


def _stacked(values: Iterable[Value]) -> Tensor:
    """One float32 tensor of numbers, each of which lies on its device or on the host."""
    listed = list(values)
    tensors = [value for value in listed if isinstance(value, Tensor)]
    if not tensors:
        return torch.tensor(listed, dtype=torch.float32, device="cpu")
    if len(tensors) == len(listed):
        return torch.stack(tensors)
    home = tensors[0].device
    return torch.stack([v.float() if isinstance(v, Tensor) else torch.tensor(v, device=home) for v in listed])


def _means(sums: Iterable[Sequence[Value | None]], counts: Sequence[int]) -> Tensor:
    """(blocks,) the sums of each block's calls over its entries."""
    totals: list[Value] = []
    for own in sums:
        given = [part for part in own if part is not None]
        totals.append(given[0] if len(given) == 1 else _stacked(given).sum())
    if len(set(counts)) == 1:
        return _stacked(totals) / counts[0]
    return _stacked(total / count for total, count in zip(totals, counts, strict=True))
