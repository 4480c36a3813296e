"""A digest of everything a model's forward can reach: what the first replay of a run is judged by.

It looks further than a replay's restoration does, and compares by value what is plain (numbers, strings, tensors,
states of generators) and by identity what is not, so that no code of the user's runs. Large tensors are sampled.
"""

import itertools
import random
import re
import struct
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internist.observe.kept_tensors import is_plain
from internist.observe.reachable import (
    MOST_CHILDREN,
    Place,
    cell_value,
    name_of,
    own_slots,
    reachable,
    roots_of,
    watched_globals,
)
from internist.observe.tokens import version_of

DEPTH = 16
"""References followed from a module; further than a restoration."""
SAMPLED_ENTRIES = 4_096
"""Of larger tensors so many entries, evenly strided, are compared."""

NUMPY = "NumPy's generator"


@dataclass(slots=True)
class Digest:
    """The state at one moment. It holds what it looked at, so that no other object can take its identity."""

    places: list[Place]
    values: dict[str, Any]
    """By name: what is compared on the host."""
    samples: dict[str, Tensor]
    """By name: bytes of tensors, on their device."""


def digest(root: nn.Module) -> Digest:
    """The state that can be reached from a model."""
    places = reachable(roots_of(root), depth=DEPTH).places
    found = Digest(places, {}, {})
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        _fill(found)
    return found


def _fill(found: Digest) -> None:
    places = found.places
    for place in places:
        name = name_of(place, places)
        if place.kind == "tensor":
            name = _free(name, found.values)
            found.values[name] = _description(place.thing)
            sample = _sample(place.thing)
            if sample is not None:
                found.samples[name] = sample
        else:
            found.values[_free(f"{name} ({place.kind})", found.values)] = _value(place)
    found.values["torch's generator"] = torch.get_rng_state().tolist()
    found.values["Python's generator"] = random.getstate()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        found.values[NUMPY] = _plain(numpy.get_state(legacy=False))


def difference(before: Digest, after: Digest) -> list[str]:
    """Names of what differs. Waits for the tensors' devices once each."""
    names = [
        name
        for name in dict.fromkeys((*before.values, *after.values))
        if (name != NUMPY or NUMPY in before.values)  # a forward may be the first to load NumPy
        and before.values.get(name, _ABSENT) != after.values.get(name, _ABSENT)
    ]
    flags: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, old in before.samples.items():
        new = after.samples.get(name)
        if new is not None and new.shape == old.shape and new.device == old.device:
            flags.setdefault(old.device, []).append((name, (old != new).any()))
    for pairs in flags.values():
        moved = torch.stack([flag for _, flag in pairs]).tolist()
        names += [name for (name, _), was in zip(pairs, moved, strict=True) if was]
    return list(dict.fromkeys(re.sub(r" \(.*", "", name.rstrip("'")) for name in names))


_ABSENT = object()


def _free(name: str, taken: dict[str, Any]) -> str:
    """A name for a second thing that is reached by the same way (what a method and its object hold)."""
    while name in taken:
        name += "'"
    return name


def _description(tensor: Tensor) -> tuple[Any, ...]:
    told = id(tensor), version_of(tensor), tensor.requires_grad
    return (*told, tensor.shape, tensor.dtype, tensor.data_ptr()) if is_plain(tensor) else told


def _sample(tensor: Tensor) -> Tensor | None:
    if not is_plain(tensor) or not tensor.numel():
        return None
    flat = tensor.detach()
    flat = flat.view(-1) if flat.is_contiguous() else flat.flatten()
    step = -(-flat.numel() // SAMPLED_ENTRIES)
    return flat[::step].clone().view(torch.uint8)


def _value(place: Place) -> Any:
    thing, kind = place.thing, place.kind
    if kind in ("dict", "ordered"):
        if dict.__len__(thing) > MOST_CHILDREN:
            return dict.__len__(thing)
        return tuple((_token(key), _token(value)) for key, value in dict.items(thing))
    if kind in ("list", "deque", "tuple", "set"):
        base = next(b for b in type(thing).__mro__ if b.__module__ in ("builtins", "collections"))
        if base.__len__(thing) > MOST_CHILDREN:  # type: ignore[attr-defined]
            return base.__len__(thing)  # type: ignore[attr-defined]
        tokens = [_token(entry) for entry in base.__iter__(thing)]  # type: ignore[attr-defined]
        return frozenset(tokens) if kind == "set" else tuple(tokens)
    if kind == "object":
        return tuple(_token(_slot(member, thing)) for member in own_slots(type(thing)))  # type: ignore[arg-type]
    if kind == "cell":
        return _token(cell_value(thing))
    if kind == "function":
        return tuple((name, _token(value)) for name, value in watched_globals(thing).items())
    if kind == "class":
        return tuple((name, _token(value)) for name, value in vars(thing).items() if not name.startswith("__"))
    return _state(thing, kind)


def _state(thing: Any, kind: str) -> Any:
    if kind == "bytes":
        return bytes(thing)
    if kind == "array":
        return None if thing.dtype.hasobject else thing.ravel()[:: -(-max(thing.size, 1) // SAMPLED_ENTRIES)].tobytes()
    if kind == "torch generator":
        return thing.get_state().tolist()
    if kind == "random":
        return None if isinstance(thing, random.SystemRandom) else thing.getstate()
    if kind == "numpy generator":
        return _plain(thing.bit_generator.state if hasattr(thing, "bit_generator") else thing.get_state(legacy=False))
    if kind == "iterator":
        return _progress(thing)
    return None


def _plain(state: Any) -> Any:
    """NumPy's description of a generator without its arrays, which compare entry by entry."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state


def _progress(iterator: Any) -> Any:
    """How far an iterator is, as far as it tells without being moved."""
    if isinstance(iterator, types.GeneratorType):
        frame = iterator.gi_frame
        return None if frame is None else (frame.f_lasti, tuple((n, _token(v)) for n, v in frame.f_locals.items()))
    if type(iterator) is itertools.count:
        return repr(iterator)
    hint = getattr(type(iterator), "__length_hint__", None)
    return None if hint is None else hint(iterator)


def _slot(member: Any, thing: Any) -> Any:
    try:
        return member.__get__(thing)
    except AttributeError:
        return _ABSENT


def _token(value: Any) -> Any:
    """What stands for a value: itself where it is plain, its identity where it is not."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack("<d", value)
    return (kind, value) if kind in (int, bool, str, bytes, type(None)) else id(value)
