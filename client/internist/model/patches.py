"""Functions of torch and of other packages that are listened to: one registry for the whole process.

A function is replaced wherever a loaded module has bound it by name, while anyone listens, and put back wherever ours
still stands when the last listener goes. What stands in its place hands on the arguments as they were given and returns
what the function returns; no listener's exception reaches the caller.
"""

import functools
import logging
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import has_torch_function

_LOG = logging.getLogger(__name__)

Arguments = tuple[Any, ...]
After = Callable[[Any], None]
"""Called with what the function returned; with None where it raised."""
Listener = Callable[[Arguments, dict[str, Any]], After | None]
"""Called with the arguments before the function is; what it returns is called afterwards."""
Traced = Callable[[Arguments, dict[str, Any]], None]
"""Called instead of listeners where a compiler traces the call: it becomes part of the graph."""
Prepare = Callable[[Arguments, dict[str, Any]], tuple[Arguments, dict[str, Any]]]

_lock = threading.RLock()  # a listener's death may be noticed while the lock is held
if hasattr(os, "register_at_fork"):  # a copy in which another thread held the lock could not let go of anything
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_functions: dict[tuple[int, str], "Function"] = {}
_sizes: dict[int, int] = {}
"""Names that each loaded module had when it was last searched, by the module's id; under 0, how many modules there
were. Empty: all are to be searched."""


@dataclass(slots=True)
class _Place:
    """Where a function is bound: `holder.name`, or an entry of a dictionary."""

    holder: Any
    name: str
    previous: Any
    """What stood there before ours."""
    ours: Any
    inherited: bool
    """The holder is a class that had no such attribute of its own."""

    def restore(self) -> None:
        """Put back what stood here, unless another has replaced ours meanwhile."""
        own = self.holder if isinstance(self.holder, dict) else vars(self.holder)
        if own.get(self.name) is not self.ours:
            return
        if self.inherited:
            delattr(self.holder, self.name)
        else:
            _bind(self.holder, self.name, self.previous)


class Listening:
    """One listener of one function, until it is removed or dies."""

    __slots__ = ("__weakref__", "_death", "_listener", "_traced", "function")

    def __init__(self, function: "Function", listener: Listener, traced: Traced | None) -> None:
        self.function, self._traced = function, traced
        is_method = isinstance(listener, types.MethodType)
        self._listener: Any = weakref.WeakMethod(listener) if is_method else weakref.ref(listener)
        owner = listener.__self__ if isinstance(listener, types.MethodType) else listener
        self._death = weakref.finalize(owner, _gone, weakref.ref(self))
        self._death.atexit = False

    @property
    def listener(self) -> Listener | None:
        """Who listens; None if it is dead."""
        found: Listener | None = self._listener()
        return found

    @property
    def traced(self) -> Traced | None:
        """What is traced into compiled code."""
        return self._traced

    def remove(self) -> None:
        """Listen no more. Harmless if that was so already."""
        self._death.detach()
        self.function._remove(self)


class Function:
    """A function that can be listened to. `function` gives the one record of each."""

    def __init__(self, home: Any, name: str, prepare: Prepare | None) -> None:
        self.home, self.name, self._prepare = home, name, prepare
        self.original = _bound(home, name)
        self.traced: tuple[Traced, ...] = ()
        self._listening: tuple[Listening, ...] = ()
        self._bindings: list[tuple[Any, str]] = []
        self._places: list[_Place] = []
        self._wrappers: dict[int, tuple[Any, Any]] = {}
        """By what stood there before: the same each time, or compiled code would take it for another function."""
        self._calls = threading.local()

    @property
    def is_replaced(self) -> bool:
        """Whether ours stands in its place now."""
        return bool(self._places)

    def listen(self, listener: Listener, *, traced: Traced | None = None) -> Listening:
        """Hear of every call until the listening is removed.

        Args:
            listener: held weakly: a bound method of a living object, or a function that something else keeps.
            traced: what compiled code contains in its stead; held as long as the listening.
        """
        return listen_to([(self, listener)], traced=traced)[0]

    def places(self) -> list[tuple[Any, str]]:
        """Where it is bound: holders and names, its home first."""
        with _lock:
            _search()
            return [(self.home, self.name), *(each for each in self._bindings if each[0] is not self.home)]

    def is_compiled(self, value: Any) -> bool:
        """Whether a value is `torch.compile` of this function."""
        return type(value) is types.FunctionType and (
            getattr(value, "_torchdynamo_orig_callable", None) is self.original
        )

    # ---- private ---------------------------------------------------------------------------------------------------

    def _add(self, listener: Listener, traced: Traced | None) -> Listening:
        listening = Listening(self, listener, traced)
        self._listening = (*self._listening, listening)
        self._changed()
        return listening

    def _changed(self) -> None:
        self.traced = tuple(each.traced for each in self._listening if each.traced is not None)

    def _remove(self, listening: Listening) -> None:
        with _lock:
            self._listening = tuple(each for each in self._listening if each is not listening)
            self._changed()
            if not self._listening:
                self._put_back()

    def _bind(self, holder: Any, name: str) -> None:
        if not any(holder is known and name == known_name for known, known_name in self._bindings):
            self._bindings.append((holder, name))

    def _replace(self) -> None:
        """Stand wherever the function does. At its home whatever stands there is the function."""
        standing = {id(place.ours) for place in self._places}
        for holder, name in ((self.home, self.name), *self._bindings):
            found = _bound(holder, name)
            at_home = holder is self.home and name == self.name
            if id(found) in standing or not callable(found):
                continue
            if getattr(found, "_listened", None) is self:  # one of ours that another had kept and has put back
                found = found.__wrapped__
            if not (at_home or found is self.original or self.is_compiled(found)):
                continue
            wrapper = self._wrapper(found)
            standing.add(id(wrapper))
            inherited = isinstance(holder, type) and name not in vars(holder)
            try:
                _bind(holder, name, wrapper)
            except (AttributeError, TypeError):  # a module or class that cannot be written to keeps what it has
                continue
            self._places.append(_Place(holder, name, found, wrapper, inherited))

    def _wrapper(self, previous: Any) -> Any:
        known = self._wrappers.get(id(previous))
        if known is not None:
            return known[1]
        function = self

        @functools.wraps(previous)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                for traced in function.traced:
                    traced(args, kwargs)
                return previous(*args, **kwargs)
            return function._called(previous, args, kwargs)

        vars(wrapper)["_listened"] = function
        self._wrappers[id(previous)] = (previous, wrapper)
        return wrapper

    def _called(self, previous: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
        listening = self._listening
        if not listening or getattr(self._calls, "inside", False):  # ours may stand twice in one call
            return previous(*args, **kwargs)
        if self._prepare is not None:
            args, kwargs = self._prepare(args, kwargs)
        result: Any = None
        afters: list[After] = []
        self._calls.inside = True
        try:
            afters = [after for each in listening for after in _tell(each, args, kwargs)]
            if has_torch_function((*args, *kwargs.values())):
                result = self._called_in_place(previous, args, kwargs)
            else:
                result = previous(*args, **kwargs)
        finally:
            self._calls.inside = False
            for after in reversed(afters):
                _guarded(after, result)
        return result

    def _called_in_place(self, previous: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
        """Call with everything put back: tensors and modes that override torch's functions know them by identity."""
        with _lock:
            self._put_back()
        try:
            return previous(*args, **kwargs)
        finally:
            with _lock:
                if self._listening:
                    self._replace()

    def _put_back(self) -> None:
        places, self._places = self._places, []
        for place in places:
            place.restore()


def function(home: Any, name: str, *, prepare: Prepare | None = None) -> Function:
    """The record of the function that is bound to `home.name`, the same whoever asks.

    Args:
        home: the module or class that owns it, or a dictionary of functions.
        name: its attribute or key there.
        prepare: what makes the arguments fit to be looked at before they are used (a generator is read once).
    """
    with _lock:
        known = _functions.get((id(home), name))
        if known is None or known.home is not home:
            known = _functions[id(home), name] = Function(home, name, prepare)
            _sizes.clear()  # modules that were searched were not searched for this one
        return known


def listen_to(pairs: Iterable[tuple[Function, Listener]], *, traced: Traced | None = None) -> list[Listening]:
    """Hear of every call of several functions: loaded modules are searched once for all."""
    with _lock:
        listening = [each._add(listener, traced) for each, listener in pairs]
        _search()
        for each in listening:
            each.function._replace()
    return listening


def _bound(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _bind(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def _gone(listening: "weakref.ref[Listening]") -> None:
    found = listening()
    if found is not None:
        found.remove()


def _tell(listening: Listening, args: Arguments, kwargs: dict[str, Any]) -> Iterator[After]:
    listener = listening.listener
    if listener is None:
        listening.remove()
        return
    try:
        after = listener(args, kwargs)
    except Exception:
        _LOG.debug("internist: a listener failed", exc_info=True)
        return
    if after is not None:
        yield after


def _guarded(after: After, result: Any) -> None:
    try:
        after(result)
    except Exception:
        _LOG.debug("internist: a listener failed", exc_info=True)


def _search() -> None:
    """Find every name bound to a known function in modules that are new or have other names since the last search.

    Where no module was loaded since, only the script's or notebook's own names are searched: they may change at any
    time.
    """
    loaded = list(sys.modules.values())
    if _sizes.get(0) == len(loaded):
        loaded = [module for module in (sys.modules.get("__main__"),) if module is not None]
    else:
        _sizes[0] = len(loaded)
    by_id = {id(each.original): each for each in _functions.values() if not isinstance(each.home, dict)}
    for module in loaded:
        names = getattr(module, "__dict__", None)
        if type(names) is not dict or (_sizes.get(id(module)) == len(names) and names.get("__name__") != "__main__"):
            continue
        _sizes[id(module)] = len(names)
        if not isinstance(module, types.ModuleType) or module.__name__.startswith(("torch._C", "internist.")):
            continue
        for name, value in list(names.items()):
            found = by_id.get(id(value))
            if found is None and type(value) is types.FunctionType:
                found = by_id.get(id(getattr(value, "_torchdynamo_orig_callable", None)))
            if found is not None:
                found._bind(module, name)
