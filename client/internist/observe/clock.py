"""The step clock: optimizer hooks tell when a round of updates begins and ends. No step call is needed."""

import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

_LEARNING_ROUNDS = 2
"""Rounds in which the clock learns which optimizers take part, where none was named."""


class Clock:
    """Counts optimizer rounds.

    `step` is the number of rounds completed. A round ends when every optimizer that takes part has stepped, or when the
    next training forward begins after at least one has. A `step` that calls its base class's is one step, though torch
    may call hooks for both. Callbacks run outside any compiled graph and must not raise.
    """

    def __init__(
        self,
        *,
        start: int,
        optimizers: Sequence[Any],
        owns: Callable[[Optimizer], bool],
        before_update: Callable[[Any, bool], None],
        after_update: Callable[[Any, bool], None],
        round_ended: Callable[[int], None],
    ) -> None:
        self.step = start
        self._owns = owns
        self._owned: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        self._before, self._after, self._ended = before_update, after_update, round_ended
        self._explicit = [unwrap_optimizer(optimizer) for optimizer in optimizers]
        self._expected = {id(optimizer) for optimizer in self._explicit}
        self._learned = 0 if not self._explicit else _LEARNING_ROUNDS
        self._stepped: set[int] = set()
        self._outer = 0
        self._open: dict[int, int] = {}
        """By optimizer: how many of its `step` calls, one within the other, have begun and not ended."""
        self._restore: list[Callable[[], None]] = []
        if any(not isinstance(optimizer, Optimizer) for optimizer in self._explicit):
            for optimizer in self._explicit:
                if not isinstance(optimizer, Optimizer):
                    self._wrap(optimizer)
        untraced: Callable[..., Any] = torch.compiler.disable  # a compiled step would trace the hooks
        pre = register_optimizer_step_pre_hook(untraced(self._pre_hook))
        post = register_optimizer_step_post_hook(untraced(self._post_hook))
        self._restore += [pre.remove, post.remove]

    @property
    def updating(self) -> bool:
        """Whether some optimizer has stepped in the present round."""
        return bool(self._stepped)

    @property
    def seen(self) -> bool:
        """Whether any optimizer has ever stepped, or one was named."""
        return bool(self._explicit) or self._learned > 0 or bool(self._stepped)

    def add_optimizers(self, optimizers: Sequence[Any]) -> None:
        """Count the steps of optimizers that were named later; which of all take part is learned anew."""
        new = [inner for each in optimizers if all((inner := unwrap_optimizer(each)) is not o for o in self._explicit)]
        self._explicit += new
        for optimizer in new:
            if not isinstance(optimizer, Optimizer):
                self._wrap(optimizer)
        if new:
            self._expected.clear()
            self._learned = 0

    def forward_begins(self) -> None:
        """A training forward of the root begins: a round in which an optimizer has stepped is over."""
        if self._stepped:
            self._end_round()

    def end_round(self, step: int | None = None) -> None:
        """The user's own `step()` call, for loops without an optimizer; with a number, that round's number."""
        if step is not None:
            self.step = step
        self._end_round()

    def close(self) -> None:
        """Remove every hook."""
        for restore in self._restore:
            restore()
        self._restore.clear()

    def _takes_part(self, optimizer: Any) -> bool:
        if self._explicit:
            return any(optimizer is mine for mine in self._explicit)
        known = self._owned.get(optimizer)
        if known is None:
            known = self._owned[optimizer] = self._owns(optimizer)
        return known

    def _pre_hook(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._outer or not self._takes_part(optimizer):
            return
        depth = self._open.get(id(optimizer), 0) + 1
        if depth > 1:
            depth = _depth(optimizer)  # one step within another, or an earlier one has raised
        self._open[id(optimizer)] = depth
        if depth == 1:
            self._begin(optimizer, has_closure(args, kwargs))

    def _post_hook(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._outer or not self._takes_part(optimizer):
            return
        depth = self._open.pop(id(optimizer), 1) - 1
        if depth > 0:
            self._open[id(optimizer)] = depth
        else:
            self._finish(optimizer, has_closure(args, kwargs))

    def _begin(self, optimizer: Any, closure: bool) -> None:
        if id(optimizer) in self._stepped:
            self._end_round()
        self._before(optimizer, closure)

    def _finish(self, optimizer: Any, closure: bool) -> None:
        self._after(optimizer, closure)
        self._stepped.add(id(optimizer))
        if self._learned >= _LEARNING_ROUNDS and self._expected <= self._stepped:
            self._end_round()

    def _end_round(self) -> None:
        if self._learned < _LEARNING_ROUNDS:
            self._expected |= self._stepped
            self._learned += 1
        self._stepped.clear()
        finished, self.step = self.step, self.step + 1
        self._ended(finished)

    def _wrap(self, optimizer: Any) -> None:
        """Wrap `step` of something that is no torch optimizer, outermost, at the instance."""
        original = optimizer.step

        def step(*args: Any, **kwargs: Any) -> Any:
            if self._outer:
                return original(*args, **kwargs)
            self._begin(optimizer, has_closure(args, kwargs))
            self._outer += 1
            try:
                result = original(*args, **kwargs)
            finally:
                self._outer -= 1
            self._finish(optimizer, has_closure(args, kwargs))
            return result

        had_own = "step" in vars(optimizer)
        optimizer.step = step

        def restore() -> None:
            if vars(optimizer).get("step") is step:
                if had_own:
                    optimizer.step = original
                else:
                    del optimizer.step

        self._restore.append(restore)


def _depth(optimizer: Optimizer) -> int:
    """How many of an optimizer's `step` calls are under way, at least one: read from the stack, for the rare case."""
    count = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "wrapper" and frame.f_globals.get("__name__") == Optimizer.__module__:
            args = frame.f_locals.get("args")
            count += int(args is not None and len(args) > 0 and args[0] is optimizer)
    return max(1, count)


def unwrap_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper that is an `Optimizer` without hooks of its own (Accelerate's)."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(optimizer, Optimizer) and isinstance(inner, Optimizer):
        return unwrap_optimizer(inner)
    return optimizer


def has_closure(args: Any, kwargs: Any) -> bool:
    """Whether a `step` call carries a closure. A hook's `args` may begin with the optimizer itself."""
    if kwargs.get("closure") is not None:
        return True
    rest = args[1:] if args and isinstance(args[0], Optimizer) else args
    return bool(rest) and callable(rest[0])


def parameter_groups(optimizer: Any) -> list[dict[str, Any]]:
    """The optimizer's parameter groups; empty where it shows none."""
    groups = getattr(optimizer, "param_groups", None)
    return list(groups) if isinstance(groups, list) else []


def step_of_state(optimizers: Sequence[Any]) -> int | None:
    """The largest `step` in the optimizers' states: how many updates a resumed optimizer has made."""
    steps: list[int] = []
    for optimizer in optimizers:
        state = getattr(unwrap_optimizer(optimizer), "state", None)
        if not state:
            continue
        for entry in list(state.values()):
            value = entry.get("step") if isinstance(entry, dict) else None
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                steps.append(int(value.item()))
            elif isinstance(value, int | float):
                steps.append(int(value))
    return max(steps, default=None)
