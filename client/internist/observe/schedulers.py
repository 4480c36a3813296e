"""Torch's schedulers, heard while they step: where a run declares no schedule, what they say is what it meant."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import lr_scheduler

from internist.model.patches import After, function, listen_to
from internist.observe.schedules import Scheduler


class HeardSchedulers:
    """Listens to the `step` of every scheduler that torch has, and hands on what the last one to step said of a group.

    It knows nothing before a scheduler has stepped, and of optimizers that none steps. It is a `Schedule`.
    """

    def __init__(self) -> None:
        self._heard: list[Scheduler] = []
        self._listening = listen_to((function(kind, "step"), self._stepped) for kind in _kinds())

    def multipliers(self, step: int, groups: Sequence[Mapping[str, Any]]) -> list[float] | None:
        """See `Schedule`."""
        told = (scheduler.multipliers(step, groups) for scheduler in self._heard)
        return next((multipliers for multipliers in told if multipliers is not None), None)

    def rise(self, step: int) -> float | None:  # noqa: ARG002
        """See `Schedule`."""
        return None

    def remove(self) -> None:
        """Listen no more, and forget what was heard."""
        for listening in self._listening:
            listening.remove()
        self._listening.clear()
        self._heard.clear()

    def _stepped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> After | None:  # noqa: ARG002
        if not args:
            return None
        scheduler = args[0]

        def after(_: object) -> None:
            if self._heard and self._heard[0].is_of(scheduler):
                return
            others = [one for one in self._heard if one.is_alive and not one.is_of(scheduler)]
            self._heard = [Scheduler(scheduler), *others]

        return after


def _kinds() -> list[type]:
    """The schedulers that have a `step` of their own; the others inherit it."""
    found = [kind for kind in vars(lr_scheduler).values() if isinstance(kind, type) and "step" in vars(kind)]
    return [kind for kind in dict.fromkeys(found) if issubclass(kind, lr_scheduler.LRScheduler)]
