"""Schedules that a run declares: what they multiply each parameter group's learning rate by, told beside the rates that
were used, so that whoever judges the rates knows which changes were meant."""

import logging
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from torch import Tensor

log = logging.getLogger("internist")

AHEAD: Final = 100
"""Steps that are looked ahead for a rise: as long as an undeclared rate has to stand until its warm-up is over."""
_LOOKS: Final = 10
"""Steps that are looked at of those."""
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "constant": ("warmup",),
    "linear": ("steps", "warmup", "floor"),
    "cosine": ("steps", "warmup", "floor"),
    "wsd": ("steps", "warmup", "decay", "floor"),
}
"""The schedules that are known by name, each with the numbers it takes."""


class Schedule(Protocol):
    """What a run declares."""

    def multipliers(self, step: int, groups: Sequence[Mapping[str, Any]]) -> list[float] | None:
        """What each group's rate is multiplied by at a step; None where this schedule is not of these groups."""
        ...

    def rise(self, step: int) -> float | None:
        """How many times larger it will be within the next `AHEAD` steps; None where it does not know."""
        ...


class Curve:
    """A schedule that is a function of the step, the same for all groups."""

    def __init__(self, of: Callable[[int], Any]) -> None:
        self._of = of
        self._has_failed = False

    def multipliers(self, step: int, groups: Sequence[Mapping[str, Any]]) -> list[float] | None:
        """See `Schedule`."""
        value = self._at(step)
        return None if value is None else [value] * len(groups)

    def rise(self, step: int) -> float | None:
        """See `Schedule`."""
        now = self._at(step)
        ahead = [self._at(step + AHEAD * look // _LOOKS) for look in range(1, _LOOKS + 1)]
        known = [value for value in ahead if value is not None]
        if now is None or not known:
            return None
        return max(known) / now if now > 0 else (math.inf if max(known) > 0 else 1.0)

    def _at(self, step: int) -> float | None:
        if self._has_failed:
            return None
        try:
            value = float(self._of(step))
            if math.isfinite(value) and value >= 0:
                return value
            problem = f"it is {value!r} at step {step}; expected a number that is not negative"
        except Exception as error:  # whatever a function of the user's raises
            problem = f"{type(error).__name__}: {error}"
        self._has_failed = True
        log.warning("internist: the declared schedule is not used from here on: %s (training is not affected)", problem)
        return None


class Scheduler:
    """What a scheduler of torch's says that the rates of its optimizer are now. Weakly held: it holds the optimizer,
    and that the model."""

    def __init__(self, scheduler: Any) -> None:
        self._reference = weakref.ref(scheduler)

    @property
    def is_alive(self) -> bool:
        """Whether the scheduler is still there."""
        return self._reference() is not None

    def is_of(self, scheduler: Any) -> bool:
        """Whether this is what that scheduler says."""
        return self._reference() is scheduler

    def multipliers(self, step: int, groups: Sequence[Mapping[str, Any]]) -> list[float] | None:  # noqa: ARG002
        """See `Schedule`. Where it is stepped once an epoch it says so by itself."""
        scheduler = self._reference()
        own = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
        rates = getattr(scheduler, "_last_lr", None)
        is_of_these = (
            own is not None and len(own) == len(groups) and all(a is b for a, b in zip(own, groups, strict=True))
        )
        if not is_of_these or not isinstance(rates, Sequence) or len(rates) != len(groups):
            return None
        found = []
        for rate, group in zip(rates, groups, strict=True):
            initial = group.get("initial_lr")
            if isinstance(rate, Tensor) or isinstance(initial, Tensor) or not initial:
                return None  # to read it might be to wait for a device
            found.append(float(rate) / float(initial))
        return found

    def rise(self, step: int) -> float | None:  # noqa: ARG002
        """See `Schedule`."""
        return None


class Named:
    """A schedule by its name, as a function of the step."""

    def __init__(self, kind: str, *, steps: int = 0, warmup: int = 0, decay: int = 0, floor: float = 0.0) -> None:
        self._kind, self._steps, self._warmup, self._decay, self._floor = kind, steps, warmup, decay, floor

    def __call__(self, step: int) -> float:
        """The multiplier at a step: 1 at its peak."""
        if step < self._warmup:
            return (step + 1) / self._warmup
        if self._kind == "constant":
            return 1.0
        begin = self._steps - self._decay if self._kind == "wsd" else self._warmup
        way = min(1.0, max(0.0, (step - begin) / max(1, self._steps - begin)))
        share = (1 + math.cos(math.pi * way)) / 2 if self._kind == "cosine" else 1 - way
        return self._floor + (1 - self._floor) * share
