"""What a model's forward can change: every mutable thing found from its modules outward, by looking only.

Nothing of the user's runs while we look: no property, no `__eq__`, no `__repr__`, no overridden `items`. Not looked
into: our own objects, data sets, process groups, classes and globals of installed libraries, whatever holds
a lock (other threads use it, and putting it back would undo their work), and what lies deeper than asked.
"""

import collections
import enum
import functools
import itertools
import random
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal[
    "atom", "dict", "ordered", "list", "set", "deque", "bytes", "tuple", "tensor", "array", "torch generator",
    "random", "numpy generator", "function", "method", "partial", "cell", "class", "object", "iterator",
]  # fmt: skip
"""How a thing is looked into, put back and compared. An atom cannot change, or is none of our business."""

MOST_PLACES = 200_000
"""Things looked at; those nearest to the modules come first."""
MOST_CHILDREN = 10_000
"""Containers of more entries are not looked into."""

MISSING: Any = object()
"""Stands where there is no value."""

_IMMUTABLE: tuple[type, ...] = (
    int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), object, range, slice,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
)  # fmt: skip
_SHARED = (type(threading.Lock()), type(threading.RLock()), threading.Thread, threading.Condition, threading.Event)
_ITERATORS: tuple[type, ...] = (
    itertools.count, itertools.cycle, types.GeneratorType, type(iter([])), type(iter(())), type(iter(range(0))),
    type(iter({})), enumerate, zip,
)  # fmt: skip
_OUR_ROOMS = ("internist.observe", "internist.monitor", "internist.record", "internist.ship")
_NOT_LOOKED_INTO = ("torch.utils.data", "torch.distributed", "torch.autograd")
_FOREIGN = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "weakref", "_weakref")


class Place(NamedTuple):
    """One thing that a forward can reach."""

    thing: Any
    kind: Kind
    parent: int
    """Index of the place it was found at; -1 for a root."""
    key: Any


def roots_of(model: nn.Module) -> list[tuple[str, Any]]:
    """Where looking begins: the modules, their classes, torch's global module hooks and its cache of parametrised
    weights."""
    modules = list(model.named_modules())
    classes = {cls: None for kind in {type(m): None for _, m in modules} for cls in kind.__mro__ if _is_of_user(cls)}
    hooks = [(name, value) for name, value in vars(nn.modules.module).items() if name.startswith("_global_")]
    return [
        *modules,
        *((f"class {cls.__qualname__}", cls) for cls in classes),
        *((f"torch's {name}", value) for name, value in hooks),
        ("torch's parametrizations", nn.utils.parametrize._cache),
        *(
            pair
            for name, module in modules
            if isinstance(module, torch.jit.ScriptModule)
            for pair in module.named_buffers(prefix=name, recurse=False)  # kept outside of Python
        ),
    ]


@dataclass(slots=True)
class Reach:
    """What was found: every mutable thing once, nearest first."""

    places: list[Place]
    empty: list[Any]
    """Containers without entries, as most of a module's are: they need no more than to be emptied again."""


def reachable(roots: Iterable[tuple[str, Any]], *, depth: int) -> Reach:
    """Every mutable thing within `depth` references of the roots."""
    kinds: dict[type, Kind] = dict(_KINDS)
    found = Reach([], [])
    seen: set[int] = set()
    queue: list[tuple[Any, Any, int, int]] = [(key, thing, -1, 0) for key, thing in roots]
    for key, thing, parent, level in queue:
        kind = kinds.get(type(thing))
        if kind is None:
            kind = kinds[type(thing)] = _kind_of(type(thing))
        if kind == "atom" and parent < 0 and isinstance(thing, type):
            kind = "class"  # a module's; other classes that are met are left alone
        if kind == "atom" or id(thing) in seen:
            continue
        seen.add(id(thing))
        index = len(found.places)
        found.places.append(Place(thing, kind, parent, key))
        if level < depth and len(queue) < MOST_PLACES:
            for name, child in _children(thing, kind):
                if type(child) in _CONTAINERS and not child:
                    found.empty.append(child)
                elif kinds.get(type(child)) != "atom":
                    queue.append((name, child, index, level + 1))
    return found


def name_of(place: Place, places: list[Place]) -> str:
    """The way to a place, as one would write it: `blocks.3.moe.counts[2]`."""
    parts: list[str] = []
    while True:
        if isinstance(place.key, str) and place.key not in ("_buffers", "_parameters", "_modules"):
            parts.append(place.key)
        elif isinstance(place.key, int):
            parts.append(f"[{place.key}]")
        if place.parent < 0:
            break
        place = places[place.parent]
    return ".".join(part for part in reversed(parts) if part).replace(".[", "[") or "the model"


@functools.lru_cache(maxsize=4_096)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    """Globals (and attributes, which look alike) that a function and the functions written inside it name."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return tuple(dict.fromkeys((*code.co_names, *(name for part in inner for name in names_in(part)))))


@functools.lru_cache(maxsize=1_024)
def own_slots(kind: type) -> tuple[Any, ...]:
    """Descriptors of the attributes that instances keep outside of a `__dict__`."""
    return tuple(
        member
        for cls in kind.__mro__
        for member in vars(cls).values()
        if type(member) is types.MemberDescriptorType and cls.__module__ != "builtins"
    )


def attributes(thing: Any) -> dict[str, Any] | None:
    """A thing's `__dict__`; None without one."""
    try:
        found = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
    return found if type(found) is dict else None


def watched_globals(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function of the user's own code names, `MISSING` where there is none of that name; empty for
    an installed library's."""
    code, scope = function.__code__, function.__globals__
    if _is_installed(code.co_filename) or not names_in(code):
        return {}
    return {name: scope.get(name, MISSING) for name in names_in(code)}


def cell_value(cell: types.CellType) -> Any:
    """What a closure's variable holds; `MISSING` while it holds nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _kind_of(kind: type) -> Kind:
    home = kind.__module__ if isinstance(kind.__module__, str) else ""
    for base, known in _BASES:
        if issubclass(kind, base):
            return known
    top = home.partition(".")[0]
    if top == "numpy":
        names = {cls.__name__ for cls in kind.__mro__}
        if "ndarray" in names:
            return "array"
        return "numpy generator" if names & {"Generator", "RandomState"} else "atom"
    if any(cls.__module__.startswith((*_OUR_ROOMS, *_NOT_LOOKED_INTO)) for cls in kind.__mro__):
        return "atom"
    if (
        issubclass(kind, nn.Module)
        or home.startswith(("torch.nn.", "torch.optim."))
        or top in ("types", "collections", "argparse")
    ):
        return "object"
    if top in _FOREIGN or top in sys.stdlib_module_names - {"__main__"}:
        return "atom"
    return "object"


_BASES: tuple[tuple[Any, Kind], ...] = (
    (type, "atom"),
    (types.ModuleType, "atom"),
    (BaseException, "atom"),
    (enum.Enum, "atom"),
    (Tensor, "tensor"),
    (torch.Generator, "torch generator"),
    (random.Random, "random"),
    (collections.OrderedDict, "ordered"),
    (dict, "dict"),
    (list, "list"),
    (set, "set"),
    (collections.deque, "deque"),
    (bytearray, "bytes"),
    ((tuple, frozenset), "tuple"),
    (types.FunctionType, "function"),
    (types.MethodType, "method"),
    (functools.partial, "partial"),
    (types.CellType, "cell"),
    (_ITERATORS, "iterator"),
    ((int, float, complex, str, bytes), "atom"),
)
_CONTAINERS = (dict, collections.OrderedDict, list, set, collections.deque)
_KINDS: dict[type, Kind] = dict.fromkeys(_IMMUTABLE, "atom")


def _children(thing: Any, kind: Kind) -> Iterable[tuple[Any, Any]]:
    if kind in ("dict", "ordered"):
        pairs = dict.items(thing) if dict.__len__(thing) <= MOST_CHILDREN else ()
        return pairs if type(thing) in (dict, collections.OrderedDict) else [*pairs, ("", attributes(thing))]
    if kind in ("list", "deque", "tuple"):
        base = next(plain for plain in _PLAIN if isinstance(thing, plain))
        entries = enumerate(list(base.__iter__(thing))) if base.__len__(thing) <= MOST_CHILDREN else ()
        return entries if type(thing) is base else [*entries, ("", attributes(thing))]
    if kind == "object":
        return _children_of_object(thing)
    if kind == "function":
        return _children_of_function(thing)
    if kind == "method":
        return [("", thing.__self__), ("", thing.__func__)]
    if kind == "partial":
        return [("", thing.func), *enumerate(thing.args), *thing.keywords.items()]
    if kind == "cell":
        return [("", cell_value(thing))]
    if kind == "class":
        return [(n, _function_in(v)) for n, v in vars(thing).items() if not (n.startswith("__") and n != "__init__")]
    if kind == "tensor":
        return [("", attributes(thing))]
    return ()


def _children_of_object(thing: Any) -> Iterator[tuple[Any, Any]]:
    own = attributes(thing)
    if isinstance(thing, nn.Module):
        yield "", own
        return
    slots = _slot_values(thing)
    if any(isinstance(value, _SHARED) for value in (*(own or {}).values(), *(value for _, value in slots))):
        return
    if own is not None:
        yield "", own
    yield from slots


def _children_of_function(function: types.FunctionType) -> Iterator[tuple[Any, Any]]:
    if _is_ours(function) or function.__module__ is None or function.__module__.partition(".")[0] == "torch":
        return
    yield from (
        (name, cell) for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    )
    yield "", function.__dict__
    yield "", function.__defaults__
    yield "", function.__kwdefaults__
    for name, value in watched_globals(function).items():
        if _kind_of(type(value)) in _FOLLOWED_GLOBALS:  # others' objects may be in use elsewhere
            yield name, value


def _slot_values(thing: Any) -> list[tuple[str, Any]]:
    found = []
    for member in own_slots(type(thing)):  # type: ignore[arg-type]
        try:
            found.append((member.__name__, member.__get__(thing)))
        except AttributeError:
            continue  # not set
    return found


_PLAIN: tuple[Any, ...] = (list, tuple, collections.deque, frozenset)
_FOLLOWED_GLOBALS = frozenset(
    {
        "dict",
        "ordered",
        "list",
        "set",
        "deque",
        "bytes",
        "tensor",
        "array",
        "torch generator",
        "random",
        "numpy generator",
        "function",
        "iterator",
    }
)


def _function_in(value: Any) -> Any:
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def _is_ours(function: types.FunctionType) -> bool:
    return isinstance(function.__module__, str) and function.__module__.startswith(_OUR_ROOMS)


def _is_of_user(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    top = cls.__module__.partition(".")[0]
    return top not in sys.stdlib_module_names - {"__main__"} and not _is_installed(
        getattr(module, "__file__", None) or ""
    )


def _is_installed(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file or file.startswith("<frozen")
