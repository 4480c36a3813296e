"""Tensors and arrays as they were before a forward: their content, memory, version and gradient, to be put back."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from internist.model.plain import PLAIN
from internist.observe.reachable import Place, name_of
from internist.observe.tokens import version_of

SAVED_BYTES = 256 << 20
"""Tensors and arrays outside the parameters are copied up to this; parameters too, where asked."""


@dataclass(slots=True)
class Trace:
    """What a forward did that was not, or may not have been, undone."""

    left: list[str]
    """Names of what moved and could not be put back."""
    written: set[int]
    """Parameters, and tensors of optimizers, by id, that the forward wrote to: to be copied at every replay."""


class _Memory(NamedTuple):
    """Where a tensor's entries lie: looked up without an operator, as there are many tensors."""

    storage: torch.UntypedStorage
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Memory":
        """Of a plain tensor."""
        offset = int(tensor.storage_offset())
        return cls(tensor.untyped_storage(), tensor.dtype, tensor.shape, tensor.stride(), offset)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor's entries still lie there."""
        return (
            tensor.untyped_storage()._cdata == self.storage._cdata
            and tensor.storage_offset() == self.offset
            and tensor.shape == self.shape
            and tensor.stride() == self.strides
            and tensor.dtype == self.dtype
        )

    def tensor(self) -> Tensor:
        """A tensor of the entries there."""
        empty = torch.empty(0, dtype=self.dtype, device=self.storage.device)
        return empty.set_(self.storage, self.offset, self.shape, self.strides)


@dataclass(slots=True)
class _Kept:
    """One tensor or array as it was."""

    place: Place
    version: int
    memory: "_Memory | None" = None
    """What it is given back when its data are exchanged."""
    grad: Tensor | None = None
    grad_version: int = -1
    wants_grad: bool = False
    copy: Any = None
    """Its content; None where it was not copied."""


class KeptTensors:
    """All tensors and arrays among some places, with as many copies as the budget allows."""

    def __init__(self, places: list[Place], written: set[int] | None) -> None:
        """Keep them.

        Args:
            places: where they are.
            written: parameters (and tensors of optimizers), by id, to be copied; None: as many as fit.
        """
        self._places, self._finds_written = places, written is None
        self._kept: list[_Kept] = []
        self._large = _parameters_and_their_optimizers(places)
        left = {"other": SAVED_BYTES, "parameter": SAVED_BYTES}
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            for place in places:
                if place.kind not in ("tensor", "array"):
                    continue
                thing = place.thing
                kept = _kept(place)
                self._kept.append(kept)
                is_large = id(thing) in self._large
                if is_large and written is not None and id(thing) not in written:
                    continue
                budget, size = "parameter" if is_large else "other", _bytes_of(thing)
                if size <= left[budget]:
                    left[budget] -= size
                    kept.copy = _copy_of(thing)

    def put_back(self, trace: Trace) -> None:
        """Put everything back; what moved and has no copy is named in the trace, parameters written to are noted."""
        rewritten: list[_Kept] = []
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            for kept in self._kept:
                try:
                    if self._has_moved(kept, trace):
                        rewritten.append(kept)
                except Exception as error:
                    trace.left.append(f"{name_of(kept.place, self._places)} ({type(error).__name__}: {error})"[:200])
            self._note_written([kept for kept in rewritten if id(kept.place.thing) in self._large], trace)
            for kept in rewritten:
                try:
                    _write(kept)
                except Exception as error:
                    trace.left.append(f"{name_of(kept.place, self._places)} ({type(error).__name__}: {error})"[:200])

    def _has_moved(self, kept: _Kept, trace: Trace) -> bool:
        """Whether the content must be written back; all that is not content is put back at once."""
        thing = kept.place.thing
        if kept.place.kind == "array":
            return kept.copy is not None and thing.tobytes() != kept.copy.tobytes()
        if kept.memory is not None and not kept.memory.holds(thing):
            thing.data = kept.memory.tensor()
        if thing.is_leaf:
            if thing.requires_grad != kept.wants_grad:
                thing.requires_grad_(kept.wants_grad)
            if thing.grad is not kept.grad:
                thing.grad = kept.grad
        if kept.grad is not None and version_of(kept.grad) != kept.grad_version:
            trace.left.append(f"{name_of(kept.place, self._places)}.grad")
        has_new_version = version_of(thing) != kept.version
        if kept.copy is None:
            if has_new_version:
                trace.left.append(name_of(kept.place, self._places))
            return False
        # `.data` hides writes from the version. On an accelerator looking would wait for it, and writing is cheap
        return has_new_version or thing.device.type != "cpu" or not _is_equal(thing.detach(), kept.copy)

    def _note_written(self, parameters: list[_Kept], trace: Trace) -> None:
        trace.written.update(id(kept.place.thing) for kept in parameters if kept.place.thing.device.type == "cpu")
        there = [kept for kept in parameters if kept.place.thing.device.type != "cpu"]
        if not there or not self._finds_written:
            trace.written.update(id(kept.place.thing) for kept in there)
            return
        flags = [(kept.place.thing.detach() != kept.copy).any() for kept in there]
        devices = {flag.device: None for flag in flags}
        for device in devices:  # one wait for each, once in a run
            here = [(kept, flag) for kept, flag in zip(there, flags, strict=True) if flag.device == device]
            moved = torch.stack([flag for _, flag in here]).tolist()
            trace.written.update(id(kept.place.thing) for (kept, _), was in zip(here, moved, strict=True) if was)


def _parameters_and_their_optimizers(places: list[Place]) -> set[int]:
    """Ids of the tensors that are too many to be copied at every replay: parameters, and states of optimizers that hang
    on a module."""
    inside: set[int] = set()
    large: set[int] = set()
    for index, place in enumerate(places):
        if place.parent in inside or isinstance(place.thing, torch.optim.Optimizer):
            inside.add(index)
        if place.kind == "tensor" and (index in inside or isinstance(place.thing, nn.Parameter)):
            large.add(id(place.thing))
    return large


def _kept(place: Place) -> _Kept:
    tensor = place.thing
    if place.kind == "array":
        return _Kept(place, -1)
    grad = tensor.grad if tensor.is_leaf and tensor.requires_grad else None
    return _Kept(
        place,
        version_of(tensor),
        memory=_Memory.of(tensor) if is_plain(tensor) and not tensor.is_inference() else None,
        grad=grad,
        grad_version=-1 if grad is None else version_of(grad),
        wants_grad=tensor.requires_grad,
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is memory and nothing else; other classes are told by their version alone."""
    return (
        type(tensor) in PLAIN
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        and not tensor.is_nested
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _bytes_of(thing: Any) -> int:
    if isinstance(thing, Tensor):
        return thing.numel() * thing.element_size() if is_plain(thing) else 0
    return int(thing.nbytes)


def _copy_of(thing: Any) -> Any:
    """A copy of a tensor or array; None where one could not be written back."""
    if isinstance(thing, Tensor):
        return thing.detach().clone() if is_plain(thing) else None
    return None if thing.dtype.hasobject or not thing.flags.writeable else thing.copy()


def _is_equal(tensor: Tensor, copy: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values; False where the dtype cannot be compared."""
    try:
        return torch.equal(tensor, copy)
    except RuntimeError:
        return False


def _write(kept: _Kept) -> None:
    """Give a tensor or array its content back. Graphs that saved it are right still, so its version goes back too."""
    thing, copy = kept.place.thing, kept.copy
    if kept.place.kind == "array":
        thing[...] = copy
        return
    if thing.is_inference():
        with torch.inference_mode():
            thing.copy_(copy)
        return
    target = thing.data
    for dim in range(target.dim()):
        if target.stride(dim) == 0 and target.shape[dim] > 1:  # an expanded tensor: its one row
            target, copy = target.narrow(dim, 0, 1), copy.narrow(dim, 0, 1)
    target.copy_(copy)
    if version_of(thing) != kept.version:
        _set_version(thing, kept.version)


def _set_version(tensor: Tensor, version: int) -> None:
    rewind: Any = torch._C._autograd._unsafe_set_version_counter
    try:
        rewind((tensor,), (version,))
    except TypeError:  # as older releases of torch take it
        rewind(tensor, version)
