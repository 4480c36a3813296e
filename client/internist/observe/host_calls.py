"""Calls on the host: measured at once, where the numbers are there when an operator returns."""

import weakref
from dataclasses import dataclass

from torch import Tensor

from internist.measures import activations as measure
from internist.measures import formats
from internist.measures.activations import Value
from internist.observe.calls import Call, CallSeries
from internist.observe.seen import WIDE_OUTPUT, Seen, Wanted
from internist.observe.tokens import at_positions, owned, version_of
from internist.record.recorder import Recorder


@dataclass(slots=True)
class _Known:
    """What was measured of a tensor, as long as it is that object, unchanged."""

    of: "weakref.ref[Tensor]"
    version: int
    norms: Tensor | None = None
    """Token RMS."""
    rest: tuple[Value, Value] | None = None
    """Largest entry, number of non-finite ones."""
    distances: Tensor | None = None
    """Between its probe tokens."""


class HostCalls:
    """A step's calls, each measured by operators of its own."""

    def __init__(self, series: CallSeries, wanted: Wanted) -> None:
        self._series, self.wanted = series, wanted
        self._calls: dict[int, list[Call]] = {}
        self._known: dict[tuple[int, int], _Known] = {}
        """By tensor and feature dimension."""
        self._marked: dict[int, int] = {}

    def knows(self, tensor: Tensor, axis: int) -> bool:
        """Whether this tensor has been measured, so that measuring it again costs nothing."""
        known = self._known.get((id(tensor), axis))
        return known is not None and known.of() is tensor and known.version == version_of(tensor)

    def measure(self, seen: Seen) -> None:
        """Measure a call."""
        out, axis, source, in_axis, wanted = seen.out, seen.axis, seen.source, seen.in_axis, self.wanted
        tokens = at_positions(out, axis) if out.shape[axis] > WIDE_OUTPUT else out
        norms, abs_max, nonfinite = self._extent(out, axis) if tokens is out else measure.extent(tokens)
        call = Call(norms, tokens.numel(), abs_max, nonfinite, in_piece=seen.in_piece)
        if source is not None and (seen.heavy or self.knows(source, in_axis)) and wanted.inputs:
            call.input_norms = self._token_rms(source, in_axis)  # on light steps only where it costs nothing
        if source is not None and seen.is_residual:
            call.input_norms = self._token_rms(source, in_axis)
            if wanted.blocks:
                call.added, call.stream = measure.contribution(out, source, call.input_norms)
        if seen.is_head and wanted.log_z:
            call.log_z = measure.log_z(tokens) if seen.piece is None else measure.log_z_of_piece(tokens)
        if seen.has_probe and wanted.ranges and formats.is_known(out.dtype):
            probe = at_positions(out, axis)
            call.ranges, call.probed = formats.shares(probe.reshape(1, -1)), probe.numel()
        if seen.piece is None and seen.has_probe and wanted.dependency:
            call.distances = self._distances(out, axis)
            if source is not None and seen.is_paired and seen.in_piece is None:
                call.input_distances = self._distances(source, in_axis)
        self._calls.setdefault(seen.watched.order, []).append(call)

    def keep(self, tensor: Tensor, axis: int, most: int) -> Tensor:
        """(at most `most`, features) the tensor's probe tokens, in memory of their own."""
        return owned(at_positions(tensor, axis, most))

    def pick(self, tensor: Tensor, axis: int, most: int) -> Tensor:
        """The same, until nobody needs it any more."""
        return self.keep(tensor.detach(), axis, most)

    def drop(self, order: int) -> None:
        """Forget a module's calls."""
        self._calls.pop(order, None)

    def mark(self) -> None:
        """A forward begins: `roll_back` forgets what is measured from here on."""
        self._marked = {order: len(calls) for order, calls in self._calls.items()}

    def roll_back(self) -> None:
        """Forget what was measured since `mark`."""
        for order, calls in list(self._calls.items()):
            del calls[self._marked.get(order, 0) :]
            if not calls:
                del self._calls[order]

    def reset(self) -> None:
        """Forget the step's calls."""
        self._calls.clear()
        self._known.clear()

    def forget(self) -> None:
        """Nothing is kept from step to step."""

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:
        """Hand the step's values to the recorder."""
        if self._calls:
            self._series.record(self._calls, recorder, sampled=sampled)

    def _token_rms(self, tensor: Tensor, axis: int) -> Tensor:
        """Token RMS of a tensor, once for all modules that see the same tensor object unchanged."""
        known = self._of(tensor, axis)
        if known.norms is None:
            known.norms = measure.token_rms(tensor, channel_dim=axis)
        return known.norms

    def _extent(self, tensor: Tensor, axis: int) -> tuple[Tensor, Value, Value]:
        """Token RMS, largest entry and number of non-finite ones, once for a tensor that several modules give back."""
        known = self._of(tensor, axis)
        if known.norms is None or known.rest is None:
            known.norms, *rest = measure.extent(tensor, channel_dim=axis)
            known.rest = rest[0], rest[1]
        return known.norms, *known.rest

    def _distances(self, tensor: Tensor, axis: int) -> Tensor:
        """Distances between a tensor's probe tokens, once for the module that gives it and those that take it."""
        known = self._of(tensor, axis)
        if known.distances is None:
            known.distances = measure.pair_distances(at_positions(tensor, axis))
        return known.distances

    def _of(self, tensor: Tensor, axis: int) -> _Known:
        key = id(tensor), axis
        known = self._known.get(key)
        version = version_of(tensor)
        if known is None or known.version != version or known.of() is not tensor:
            known = self._known[key] = _Known(weakref.ref(tensor), version)
        return known
