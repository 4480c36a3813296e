"""The step clock: optimizer hooks tell when a round of updates begins and ends. No step call is needed."""

import logging
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from internist.observe.optimizer_facts import has_closure, unwrap_optimizer

log = logging.getLogger("internist")

REMEMBERED_ROUNDS = 2
"""An optimizer that stepped in none of so many rounds is not waited for."""


class Rounds(Protocol):
    """What the clock tells. None of it may raise."""

    def before_update(self, optimizer: Any, *, closure: bool) -> None:
        """An optimizer is about to step."""

    def after_update(self, optimizer: Any, *, closure: bool) -> None:
        """It has stepped."""

    def round_ended(self, step: int) -> None:
        """The round with that number is over."""


class Clock:
    """Counts optimizer rounds.

    `step` is the number of rounds completed. A round ends when every optimizer that takes part has stepped, or when the
    next training forward begins after at least one has. Any torch optimizer that owns a watched parameter takes part,
    whenever it was made, and so does every optimizer that was named. Who is waited for is learned from the last rounds,
    so that an optimizer that is replaced, or steps more rarely, holds nothing up.

    Args:
        start: rounds completed already.
        optimizers: those that were named.
        owns: whether a torch optimizer owns a watched parameter now.
        told: receives what happens.
        ignores: whether a step made now is none of the run's (a model that steps an optimizer in a replay of ours).
    """

    def __init__(
        self,
        *,
        start: int,
        optimizers: Sequence[Any],
        owns: Callable[[Optimizer], bool],
        told: Rounds,
        ignores: Callable[[], bool],
    ) -> None:
        self.step = start
        self._owns, self._told, self._ignores = owns, told, ignores
        self._takes: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._rounds: list[set[int]] = []
        """Ids of those that stepped in each of the last rounds."""
        self._named: set[int] = set()
        self._stepped: dict[int, Any] = {}
        """By id, those that stepped in this round: held while it lasts, so that no id is used twice."""
        self._outer = 0
        self._open: dict[int, tuple[Any, int]] = {}
        """By id: an optimizer, and how many of its `step` calls, one within the other, have begun and not ended."""
        self._forward_since = False
        """Whether a training forward has begun since the last round ended."""
        self._wrapped: list[_Wrapped] = []
        _LIVE[id(self)] = self
        _listen()
        self.add(optimizers)

    @property
    def updating(self) -> bool:
        """Whether some optimizer has stepped in the present round."""
        return bool(self._stepped)

    @property
    def in_step(self) -> bool:
        """Whether an optimizer's `step` call is under way."""
        if self._open and not any(_calls_under_way(optimizer) for optimizer, _ in self._open.values()):
            self._open.clear()  # it raised
        return bool(self._open) or self._outer > 0

    def add(self, optimizers: Sequence[Any]) -> None:
        """Name optimizers: they take part whatever they own."""
        for given in optimizers:
            optimizer = unwrap_optimizer(given)
            self._named.add(id(optimizer))
            if isinstance(optimizer, Optimizer):
                self._takes[optimizer] = True
            elif not any(each.is_of(optimizer) for each in self._wrapped):
                self._wrapped.append(_Wrapped(optimizer, self))

    def outlined(self) -> None:
        """The model was read anew: who owns its parameters is asked again."""
        for optimizer in list(self._takes.keys()):
            if id(optimizer) not in self._named:
                del self._takes[optimizer]

    def forward_begins(self) -> None:
        """A training forward of the root begins: a round in which an optimizer has stepped is over."""
        if self._stepped and not self.in_step:
            self._end_round()
        self._forward_since = True

    def end_round(self, step: int | None = None) -> None:
        """The user's own `step()` call, for loops without an optimizer; with a number, that round's number."""
        if step is not None:
            self.step = step
        self._end_round()

    def close(self) -> None:
        """Hear of no optimizer any more."""
        _LIVE.pop(id(self), None)
        for wrapped in self._wrapped:
            wrapped.restore()
        self._wrapped.clear()
        self._stepped.clear()
        self._open.clear()

    # ---- torch's optimizers ----------------------------------------------------------------------------------------

    def pre_hook(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """torch is about to make a step of this optimizer."""
        if self._outer or self._ignores() or not self._takes_part(optimizer):
            return
        depth = 1
        if id(optimizer) in self._open:
            depth = max(1, _calls_under_way(optimizer))  # one step within another, or an earlier one has raised
        self._open[id(optimizer)] = optimizer, depth
        if depth == 1:
            self.begin(optimizer, closure=has_closure(args, kwargs))

    def post_hook(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """It has made it."""
        if self._outer or self._ignores() or not self._takes_part(optimizer):
            return
        depth = self._open.pop(id(optimizer), (optimizer, 1))[1] - 1
        if depth > 0:
            self._open[id(optimizer)] = optimizer, depth
        else:
            self.finish(optimizer, closure=has_closure(args, kwargs))

    def begin(self, optimizer: Any, *, closure: bool) -> None:
        """An optimizer's step begins."""
        if id(optimizer) in self._stepped:
            self._end_round()
        if not self._is_late(optimizer):
            self._told.before_update(optimizer, closure=closure)

    def finish(self, optimizer: Any, *, closure: bool) -> None:
        """It has ended."""
        if self._is_late(optimizer):
            self._rounds[-1].add(id(optimizer))
            return
        self._told.after_update(optimizer, closure=closure)
        self._stepped[id(optimizer)] = optimizer
        expected = set().union(*self._rounds)
        if len(self._rounds) < REMEMBERED_ROUNDS:
            expected |= self._named
        if (self._named or len(self._rounds) >= REMEMBERED_ROUNDS) and expected <= self._stepped.keys():
            self._end_round()

    def _is_late(self, optimizer: Any) -> bool:
        """Whether an optimizer that was not waited for steps after the others of its round: it makes no new one."""
        begun = self._forward_since or bool(self._stepped) or not self._rounds
        return not begun and id(optimizer) not in self._rounds[-1]

    def _takes_part(self, optimizer: Any) -> bool:
        known = self._takes.get(optimizer)
        if known is None:
            known = self._owns(optimizer)
            if known or self._rounds:  # before the first round ends the model may not be whole yet
                self._takes[optimizer] = known
        return known

    def _end_round(self) -> None:
        self._rounds = [*self._rounds[-REMEMBERED_ROUNDS + 1 :], set(self._stepped)]
        self._stepped.clear()
        self._forward_since = False
        finished, self.step = self.step, self.step + 1
        self._told.round_ended(finished)


class _Wrapped:
    """Stands in front of the `step` of something that is no torch optimizer, at the instance."""

    def __init__(self, optimizer: Any, clock: Clock) -> None:
        self._optimizer, self._clock = optimizer, weakref.ref(clock)
        self._original = optimizer.step
        self._had_own = "step" in vars(optimizer) if hasattr(optimizer, "__dict__") else False
        optimizer.step = self

    def is_of(self, optimizer: Any) -> bool:
        """Whether it stands in front of this optimizer."""
        return self._optimizer is optimizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        clock = self._clock()
        if clock is None or clock._outer or clock._ignores():
            return self._original(*args, **kwargs)
        closure = has_closure(args, kwargs)
        clock.begin(self._optimizer, closure=closure)
        clock._outer += 1
        try:
            result = self._original(*args, **kwargs)
        finally:
            clock._outer -= 1
        clock.finish(self._optimizer, closure=closure)
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._original, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._optimizer, "step")  # a pickle of the optimizer finds its class's own

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._optimizer))
        return self._original if copied is None else type(copied).step.__get__(copied)

    def restore(self) -> None:
        """Put the original back where ours still stands."""
        if getattr(self._optimizer, "step", None) is self:
            if self._had_own:
                self._optimizer.step = self._original
            else:
                del self._optimizer.step


_LIVE: "weakref.WeakValueDictionary[int, Clock]" = weakref.WeakValueDictionary()
"""By id. A clock may be closed in any thread while another goes through them: see `_live`."""
_listening: list[Any] = []


def _listen() -> None:
    """Hear of every step of every torch optimizer, once for the process and for good: a hook is never taken off, since
    that may happen while torch goes through its hooks."""
    if not _listening:
        untraced: Callable[..., Any] = torch.compiler.disable  # a compiled step would trace the hooks
        _listening.append(register_optimizer_step_pre_hook(untraced(_pre_hook)))
        _listening.append(register_optimizer_step_post_hook(untraced(_post_hook)))


def _live() -> list[Clock]:
    return [clock for each in _LIVE.valuerefs() if (clock := each()) is not None]


def _pre_hook(optimizer: Any, args: Any, kwargs: Any) -> None:
    for clock in _live():
        try:
            clock.pre_hook(optimizer, args, kwargs)
        except Exception as error:
            _give_up(clock, error)


def _post_hook(optimizer: Any, args: Any, kwargs: Any) -> None:
    for clock in _live():
        try:
            clock.post_hook(optimizer, args, kwargs)
        except Exception as error:
            _give_up(clock, error)


def _give_up(clock: Clock, error: Exception) -> None:
    """A clock that fails hears of no further step: whatever it is, the user's optimizer must not notice."""
    _LIVE.pop(id(clock), None)
    log.warning("internist: steps are not counted from here on: %r (training is not affected)", error)


def _calls_under_way(optimizer: Any) -> int:
    """How many of an optimizer's `step` calls are under way: read from the stack, for the rare case."""
    count = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "wrapper" and frame.f_globals.get("__name__") == Optimizer.__module__:
            args = frame.f_locals.get("args")
            count += int(args is not None and len(args) > 0 and args[0] is optimizer)
    return count
