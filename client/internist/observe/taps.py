"""Taps: the hooks on every watched module, and the gate that opens them.

Behind a shut gate a tap returns after one comparison; while a compiler traces it returns at once, so that the user's
graph does not contain it.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from internist.model.outline import WatchedModule


@dataclass(slots=True)
class Gate:
    """What the hooks may do now. One object per monitor, read by every hook."""

    on: bool = False
    """Measure: a sampled step's training forward, or a replay."""
    heavy: bool = False
    """Also the model-heavy class."""
    replay: bool = False
    """The forward under way is ours."""
    in_root: bool = False
    """A forward of the root is under way."""
    wants_activations: bool = True
    stack: list[WatchedModule] = field(default_factory=list)
    """Containers being called, innermost last; kept on measured forwards only."""


class Tap:
    """The forward hook of one module. Copies and pickles of the model carry an inert one."""

    __slots__ = ("_observe", "gate", "owner", "watched")

    def __init__(self, gate: Gate, watched: WatchedModule, observe: Callable[..., None]) -> None:
        self.gate = gate
        self.watched = watched
        self.owner = weakref.ref(watched.module)
        self._observe = observe

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Take one call of the module."""
        if torch.compiler.is_compiling():
            return
        if not self.gate.on:
            return
        if self.owner() is module:
            self._observe(self.watched, module, args, kwargs, output)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return inert_hook, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return inert_hook()


class EnterTap(Tap):
    """The forward pre-hook of a container: notes that it is being called."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:  # noqa: ARG002
        """Take the beginning of one call."""
        if torch.compiler.is_compiling():
            return
        if not self.gate.on:
            return
        if self.owner() is module:
            self._observe(self.watched, args, kwargs)


class _Inert:
    """A hook that does nothing: what a copy of a watched model carries."""

    def __call__(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


def inert_hook() -> _Inert:
    """A hook that does nothing."""
    return _Inert()
