"""A forward that leaves no trace: within, evaluation mode; afterwards everything that the model can reach is as it was.

What is put back: every random state; every module's `__dict__` (flags, hooks, submodules, parameters, buffers and plain
attributes, assigned or changed in place, created or deleted); lists, dicts, sets, deques, tensors, arrays, generators
and objects that hang on them; what hooks and the user's own functions reach by closure, default, attribute or a global
they name; torch's global switches. An object keeps its identity: a list is the same list with its old content.

What cannot be: files, prints and messages, iterators that have moved, attributes of classes written in C, globals of
installed libraries, and what `reachable` does not look into. The first replay's digest reports those it can see.
"""

import collections
import operator
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from internist.observe.kept_tensors import KeptTensors, Trace
from internist.observe.reachable import (
    MISSING,
    Place,
    cell_value,
    own_slots,
    reachable,
    roots_of,
    watched_globals,
)

DEPTH = 10
"""References followed from a module: an object's attribute is two away from the object."""
COPIED_ENTRIES = 100_000
"""Longer containers are not copied: only what was added at their end is taken off again."""

Undo = Callable[[], None]


@contextmanager
def untouched(root: nn.Module, *, written: Iterable[int] | None = ()) -> Iterator[Trace]:
    """Evaluation mode within; afterwards everything as it was.

    Args:
        root: the model whose forward runs within.
        written: parameters, by id, that are known to be written to by a forward; None: it is not known, so as many as
            fit are copied.
    """
    reach = reachable(roots_of(root), depth=DEPTH)
    places = reach.places
    tensors = KeptTensors(places, None if written is None else set(written))
    undos = [undo for place in places if (undo := _undo(place)) is not None]
    undos += _switches()
    undos += _global_generators(places)
    trace = Trace([], set())
    try:
        undos += [_evaluate(place.thing) for place in places if place.parent < 0 and isinstance(place.thing, nn.Module)]
        undos.append(_without_cached_weights())
        yield trace
    finally:
        for container in reach.empty:
            if container:
                container.clear()
        for undo in undos:
            try:
                undo()
            except Exception as error:
                trace.left.append(f"something that could not be put back ({type(error).__name__}: {error})"[:200])
        tensors.put_back(trace)


def _without_cached_weights() -> Undo:
    """Within `parametrize.cached()` too a replay computes its weights: cached ones miss the step, and ours have no
    graph."""
    cache = nn.utils.parametrize
    depth, cache._cache_enabled = cache._cache_enabled, 0
    return lambda: setattr(cache, "_cache_enabled", depth)


def _evaluate(module: nn.Module) -> Undo:
    own = vars(module)
    flag = module.training
    if "training" in own:
        own["training"] = False  # past an overridden __setattr__
    else:
        module.training = False  # a ScriptModule keeps it elsewhere
    return lambda: own.__setitem__("training", flag) if "training" in own else setattr(module, "training", flag)


# ---- containers and objects ------------------------------------------------------------------------------------------


def _undo(place: Place) -> Undo | None:
    make = _UNDOS.get(place.kind)
    return None if make is None else make(place.thing)


def _undo_dict(thing: Any, base: Any = dict) -> Undo:
    length = dict.__len__(thing)
    if length > COPIED_ENTRIES:
        return lambda: _shorten(thing, length, base)
    keys, values = list(base.keys(thing)), list(base.values(thing))

    def undo() -> None:
        if (
            dict.__len__(thing) == length
            and all(map(operator.is_, base.keys(thing), keys))
            and all(map(operator.is_, base.values(thing), values))
        ):
            return
        now = list(base.keys(thing))
        if now[:length] == keys:  # others may be reading: nothing that stays is taken away in between
            for key in now[length:]:
                base.__delitem__(thing, key)
        else:
            base.clear(thing)
        for key, value in zip(keys, values, strict=True):
            base.__setitem__(thing, key, value)

    return undo


def _shorten(thing: Any, length: int, base: Any) -> None:
    while dict.__len__(thing) > length:
        base.popitem(thing)


def _undo_ordered(thing: Any) -> Undo:
    return _undo_dict(thing, collections.OrderedDict)


def _undo_list(thing: Any) -> Undo:
    length = list.__len__(thing)
    if length > COPIED_ENTRIES:
        return lambda: list.__delitem__(thing, slice(length, None))
    kept = list(list.__iter__(thing))

    def undo() -> None:
        if list.__len__(thing) != length or not all(map(operator.is_, list.__iter__(thing), kept)):
            list.__setitem__(thing, slice(None), kept)

    return undo


def _undo_deque(thing: Any) -> Undo:
    base = collections.deque
    kept = list(base.__iter__(thing))

    def undo() -> None:
        if base.__len__(thing) != len(kept) or not all(map(operator.is_, base.__iter__(thing), kept)):
            base.clear(thing)
            base.extend(thing, kept)

    return undo


def _undo_set(thing: Any) -> Undo:
    kept = set(set.__iter__(thing))

    def undo() -> None:
        if set.__len__(thing) != len(kept) or not set.issuperset(thing, kept):
            set.clear(thing)
            set.update(thing, kept)

    return undo


def _undo_bytes(thing: Any) -> Undo:
    kept = bytes(thing)
    return lambda: bytearray.__setitem__(thing, slice(None), kept)


def _undo_object(thing: Any) -> Undo | None:
    members = () if isinstance(thing, nn.Module) else own_slots(type(thing))  # type: ignore[arg-type]
    if not members:
        return None
    kept = [(member, _slot_value(member, thing)) for member in members]

    def undo() -> None:
        for member, value in kept:
            if _slot_value(member, thing) is value:
                continue
            if value is MISSING:
                member.__delete__(thing)
            else:
                member.__set__(thing, value)

    return undo


def _slot_value(member: Any, thing: Any) -> Any:
    try:
        return member.__get__(thing)
    except AttributeError:
        return MISSING


def _undo_class(thing: type) -> Undo:
    kept = {name: value for name, value in vars(thing).items() if not name.startswith("__")}

    def undo() -> None:
        for name, value in kept.items():
            if vars(thing).get(name, MISSING) is not value:
                type.__setattr__(thing, name, value)
        for name in [name for name in vars(thing) if not name.startswith("__") and name not in kept]:
            type.__delattr__(thing, name)

    return undo


def _undo_cell(cell: types.CellType) -> Undo:
    kept = cell_value(cell)

    def undo() -> None:
        if cell_value(cell) is kept:
            return
        if kept is MISSING:
            del cell.cell_contents
        else:
            cell.cell_contents = kept

    return undo


def _undo_function(function: types.FunctionType) -> Undo | None:
    kept, scope = watched_globals(function), function.__globals__
    if not kept:
        return None

    def undo() -> None:
        for name, value in kept.items():
            if scope.get(name, MISSING) is value:
                continue
            if value is MISSING:
                del scope[name]
            else:
                scope[name] = value

    return undo


# ---- random states ---------------------------------------------------------------------------------------------------


def _undo_torch_generator(generator: torch.Generator) -> Undo:
    state = generator.get_state()
    return lambda: _ignore(generator.set_state(state))


def _undo_random(generator: random.Random) -> Undo | None:
    if isinstance(generator, random.SystemRandom):
        return None
    state = generator.getstate()
    return lambda: generator.setstate(state)


def _undo_numpy_generator(generator: Any) -> Undo:
    if hasattr(generator, "bit_generator"):
        bits, state = generator.bit_generator, generator.bit_generator.state
        return lambda: setattr(bits, "state", state)
    legacy = generator.get_state(legacy=False)
    return lambda: _ignore(generator.set_state(legacy))


def _global_generators(places: list[Place]) -> list[Undo]:
    """Random states that belong to no object: torch's of every device in use, Python's, NumPy's where it is loaded."""
    undos: list[Undo] = [_undo_torch_generator(torch.default_generator)]
    state = random.getstate()
    undos.append(lambda: random.setstate(state))
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        legacy = numpy.get_state(legacy=False)
        undos.append(lambda: numpy.set_state(legacy))
    devices = {place.thing.device for place in places if place.kind == "tensor"}
    for device in (device for device in devices if device.type in ("cuda", "mps", "xpu")):
        module = torch.get_device_module(device)
        if hasattr(module, "default_generators"):
            index = module.current_device() if device.index is None else device.index
            undos.append(_undo_torch_generator(module.default_generators[index]))
        else:
            random_state = module.get_rng_state()
            undos.append(lambda module=module, state=random_state: module.set_rng_state(state))  # type: ignore[misc]
    return undos


def _ignore(_: Any) -> None:
    """Nothing comes of it."""


# ---- torch's switches ------------------------------------------------------------------------------------------------


def _switches() -> list[Undo]:
    """Global switches that a forward might throw; put back only where it did."""
    backends = torch.backends
    return [
        _switch(torch.get_default_dtype, torch.set_default_dtype),
        _switch(torch.is_grad_enabled, torch._C._set_grad_enabled),
        _switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        _switch(
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda kept: torch.use_deterministic_algorithms(kept[0], warn_only=kept[1]),
        ),
        _switch(lambda: getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None), _set_device_context),
        _switch(lambda: backends.cudnn.benchmark, lambda kept: setattr(backends.cudnn, "benchmark", kept)),
        _switch(lambda: backends.cudnn.deterministic, lambda kept: setattr(backends.cudnn, "deterministic", kept)),
        _switch(lambda: backends.cudnn.enabled, lambda kept: setattr(backends.cudnn, "enabled", kept)),
    ]


def _switch(read: Callable[[], Any], write: Callable[[Any], Any]) -> Undo:
    kept = read()
    return lambda: write(kept) if read() != kept else None


def _set_device_context(kept: Any) -> None:
    torch.set_default_device(None if kept is None else kept.device)


_UNDOS: dict[str, Callable[[Any], Undo | None]] = {
    "dict": _undo_dict,
    "ordered": _undo_ordered,
    "list": _undo_list,
    "set": _undo_set,
    "deque": _undo_deque,
    "bytes": _undo_bytes,
    "object": _undo_object,
    "class": _undo_class,
    "cell": _undo_cell,
    "function": _undo_function,
    "torch generator": _undo_torch_generator,
    "random": _undo_random,
    "numpy generator": _undo_numpy_generator,
}
