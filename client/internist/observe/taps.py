"""Taps: how calls of the user's modules are seen without a hook.

A module calls what stands in its attribute `_compiled_call_impl` (where `nn.Module.compile` keeps compiled code) in
place of itself. A tap stands there while it is installed, looks at the call's beginning and end, and makes the call.
So nothing is registered anywhere: a tap can be set and taken away at any moment, also from inside a forward; a module
without one runs at full speed; a compiler that traces the module does not see it; and torch leaves the attribute out of
pickles and copies. Classes that say themselves what is pickled of them (torch's own recurrent layers, wrappers for data
parallel training) do not: while a tap stands, it is taken from what they say.
"""

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from internist.model import patches
from internist.model.outline import WatchedModule
from internist.observe.stopwatch import Stopwatch

PLACE = "_compiled_call_impl"
RAISED = object()
"""Told as the output of a call that raised."""


@dataclass(slots=True)
class Gate:
    """What taps may do now. One object per monitor, read by every tap."""

    on: bool = False
    """Measure: a sampled step's training forward, or a replay."""
    heavy: bool = False
    """Also the model-heavy class."""
    replay: bool = False
    """The forward under way is ours."""
    in_root: bool = False
    """A forward of the root is under way."""
    wants_activations: bool = True
    waiting: frozenset[int] = frozenset()
    """Orders of modules that are not measured at this step, since it is not their turn."""
    stack: list[WatchedModule] = field(default_factory=list)
    """Watched modules being called, innermost last; kept on measured forwards only."""
    work: Stopwatch = field(default_factory=Stopwatch)
    """Times what is done at taps."""


class Tap:
    """Stands in front of one module's calls. Taps of one module form a chain, at whose end is compiled code or nothing.

    Args:
        module: whose calls; weakly held.
        enter: told of a call's arguments before it; must not raise.
        leave: told of its arguments and output after it; must not raise. Told of `RAISED` where the call raised.
    """

    __slots__ = ("__weakref__", "_enter", "_leave", "_owner", "_state", "inner", "instead")

    def __init__(
        self, module: nn.Module, enter: Callable[[Any, Any], None], leave: Callable[[Any, Any, Any], None]
    ) -> None:
        self._owner = weakref.ref(module)
        self._enter, self._leave = enter, leave
        self._state = _own_state(type(module))
        self.inner: Callable[..., Any] | None = None
        """What comes next; None: the module itself."""
        self.instead: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]] | None = None
        """Says what is to make the call, of the module and of what would make it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the module's call."""
        module = self._owner()
        if torch.compiler.is_compiling():  # what follows is nothing that a compiler should see
            return module._call_impl(*args, **kwargs)  # type: ignore[union-attr]
        caller = sys._getframe(1).f_locals.get("self")
        itself = caller if isinstance(caller, nn.Module) else module
        assert itself is not None
        plain: Callable[..., Any] = itself._call_impl
        if itself is not module:  # a replica that was made of the module's dictionary
            return plain(*args, **kwargs)
        call = self.inner or plain
        self._enter(args, kwargs)
        if self.instead is not None:
            call = self.instead(itself, call)
        output: Any = RAISED
        try:
            output = call(*args, **kwargs)
        finally:
            self._leave(args, kwargs, output)
        return output

    def insert(self, *, outermost: bool) -> None:
        """Stand in front of the module's calls: before every other tap, or behind the outermost."""
        module = self._owner()
        if module is None:
            return
        first = vars(module).get(PLACE)
        if isinstance(first, Tap) and not outermost:
            self.inner, first.inner = first.inner, self
        else:
            self.inner = first
            vars(module)[PLACE] = self

    def unlink(self) -> None:
        """Stand aside; the others stay as they are."""
        module = self._owner()
        each = vars(module).get(PLACE) if module is not None else None
        if each is self and module is not None:
            if self.inner is None:
                vars(module).pop(PLACE, None)
            else:
                vars(module)[PLACE] = self.inner
        while isinstance(each, Tap):
            if each.inner is self:
                each.inner = self.inner
                break
            each = each.inner
        self.inner = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a module that pickles its dictionary itself keeps what it would have without us

    def __deepcopy__(self, memo: Any) -> None:
        return None


class _OwnState:
    """Takes taps from what instances of a class say themselves to be pickled, as long as this object lives."""

    def __init__(self, owner: type[nn.Module]) -> None:
        self._listening = patches.function(owner, "__getstate__").listen(self._called)

    def _called(self, args: tuple[Any, ...], _: dict[str, Any]) -> Callable[[Any], None]:
        return partial(_leave_out, args[0])


_own_states: "weakref.WeakValueDictionary[type[nn.Module], _OwnState]" = weakref.WeakValueDictionary()


def _own_state(kind: type[nn.Module]) -> _OwnState | None:
    """The one object for a class of modules; None where torch says what is pickled."""
    owner = next(each for each in kind.__mro__ if "__getstate__" in vars(each))
    if not issubclass(owner, nn.Module) or owner is nn.Module:
        return None
    found = _own_states.get(owner)
    if found is None:
        found = _own_states[owner] = _OwnState(owner)
    return found


def _leave_out(module: nn.Module, state: Any) -> None:
    if isinstance(state, dict) and state is not vars(module) and isinstance(state.get(PLACE), Tap):
        inner = compiled_call(module)
        if inner is None:
            del state[PLACE]
        else:
            state[PLACE] = inner


class Taps:
    """The taps of a model's modules: all set, or none."""

    def __init__(self, taps: Iterable[Tap]) -> None:
        self._taps = list(taps)
        self.installed = False

    def install(self) -> None:
        """Set every tap."""
        if not self.installed:
            self.installed = True
            for tap in self._taps:
                tap.insert(outermost=False)

    def remove(self) -> None:
        """Take every tap away."""
        if self.installed:
            self.installed = False
            for tap in self._taps:
                tap.unlink()


def stands(module: nn.Module, tap: Tap) -> bool:
    """Whether a tap stands in front of a module's calls."""
    each = vars(module).get(PLACE)
    while isinstance(each, Tap):
        if each is tap:
            return True
        each = each.inner
    return False


def compiled_call(module: nn.Module) -> Any:
    """What `module.compile()` has put in front of a module's calls, behind all taps; None where there is nothing."""
    each = vars(module).get(PLACE)
    while isinstance(each, Tap):
        each = each.inner
    return each


def can_tap(module: nn.Module) -> bool:
    """Whether a module's calls go through the place: scripted ones are no Python."""
    return not isinstance(module, torch.jit.ScriptModule)
