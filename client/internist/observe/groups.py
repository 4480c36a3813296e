"""Parameter groups: one number and one name for each group of each optimizer that takes part."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from internist.observe.optimizer_facts import parameter_groups, steps_of_group
from internist.observe.sampling import Sampling
from internist.observe.schedulers import HeardSchedulers
from internist.observe.schedules import Schedule
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import Facts, Series

GROUPS_A_PLACE = 1_000
"""Numbers of groups that each optimizer may use."""
PLACES_A_STAGE = 1_000
"""Numbers of optimizers that each stage of a pipeline may use."""
LEAP = 1.5
"""Times by which a rate changes from one step to the next that is told at once: no schedule does that often."""


class Groups:
    """Gives every optimizer a place. One that takes over from another that is gone takes over its place.

    Args:
        book: makes series.
        sampling: what is measured, and how often.
        stage: of a pipeline: its groups are told apart from those of other stages.
    """

    def __init__(self, *, book: SeriesBook, sampling: Sampling, stage: int = 0) -> None:
        self._book, self._sampling = book, sampling
        self._stage = stage
        self._heard = HeardSchedulers() if sampling.schedule is None else None
        self._places: list[Callable[[], Any]] = []
        self._numbers: dict[int, list[tuple[int, str, Series]]] = {}
        """By place: the groups whose rate or decay is a number, which of them, and its series."""
        self._before: dict[int, list[float]] = {}
        """By place: these rates at the step before."""

    def remove(self) -> None:
        """Listen to schedulers no longer."""
        if self._heard is not None:
            self._heard.remove()

    def number(self, optimizer: Any, index: int) -> int:
        """The number of a group, different for all groups of the run."""
        return (self._stage * PLACES_A_STAGE + self._place(optimizer)) * GROUPS_A_PLACE + index

    def record(self, optimizer: Any, recorder: Recorder) -> None:
        """Record learning rate and weight decay of an optimizer's groups, as this step used them."""
        names: set[str] = set()
        groups, step = parameter_groups(optimizer), recorder.step_under_way
        numbers = self._numbers[self._place(optimizer)] = []
        schedule = self._schedule
        declared = schedule.multipliers(step, groups) if schedule is not None and step >= 0 else None
        if schedule is not None and declared is not None:
            self._record_rise(schedule.rise(step), recorder)
        for index, group in enumerate(groups):
            name = str(group.get("name") or index)
            name = f"{name}.{index}" if name in names else name
            names.add(name)
            place = self._place(optimizer)
            subject = f"{place}.{name}" if place else name
            subject = f"pp{self._stage}.{subject}" if self._stage else subject
            if declared is not None:
                recorder.add_host(self._multiplier(subject, self.number(optimizer, index), group), declared[index])
            for metric, key in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
                value = group.get(key)
                series = self._series(metric, subject, self.number(optimizer, index), group)
                if series is None or isinstance(value, bool):
                    continue
                if isinstance(value, Tensor) and value.numel() == 1:
                    recorder.add([series], value.detach().to(torch.float32, copy=True))  # a scheduler writes to it
                elif isinstance(value, int | float):
                    recorder.add_host(series, float(value))
                    numbers.append((index, key, series))
            self._record_steps(optimizer, group, subject, self.number(optimizer, index), recorder)
        self._before[self._place(optimizer)] = [float(groups[index][key]) for index, key, _ in numbers if key == "lr"]

    def rates(self, optimizer: Any, recorder: Recorder) -> list[tuple[Series, float]]:
        """The learning rates of an optimizer whose groups have been recorded, as far as they are numbers, at a step
        that is not sampled. Where one has leapt since the step before, all are recorded: the next sample would tell of
        it too late, and not when it was."""
        place = self._place(optimizer)
        known = self._numbers.get(place, ())
        groups = parameter_groups(optimizer) if known else []
        found = [(index, key, series, groups[index].get(key)) for index, key, series in known if index < len(groups)]
        numbers = [(i, key, series, float(value)) for i, key, series, value in found if isinstance(value, int | float)]
        rates = [(series, value) for _, key, series, value in numbers if key == "lr"]
        now, before = [rate for _, rate in rates], self._before.get(place, [])
        self._before[place] = now
        if len(now) == len(before) and any(map(_has_leapt, before, now)):
            self._record_leap(numbers, groups, recorder)
        return rates

    @property
    def _schedule(self) -> Schedule | None:
        """What the rates are meant to do: as declared, else as torch's schedulers were heard to say."""
        return self._sampling.schedule or self._heard

    def _record_leap(
        self, numbers: Sequence[tuple[int, str, Series, float]], groups: Sequence[dict[str, Any]], recorder: Recorder
    ) -> None:
        """Record rates and decays, with what the schedule says that rates are multiplied by: a leap that is meant is
        none, and neither is one of the decay with its rate."""
        step, schedule = recorder.step_under_way, self._schedule
        declared = None if schedule is None or step < 0 else schedule.multipliers(step, groups)
        for index, key, series, value in numbers:
            recorder.log_measured(step, series, value)
            if declared is not None and key == "lr":
                multiplier = self._multiplier(series.subject, series.facts.group or 0, groups[index])
                recorder.log_measured(step, multiplier, declared[index])

    def _multiplier(self, subject: str, number: int, group: dict[str, Any]) -> Series | None:
        return self._series("schedule.multiplier", subject, number, group)

    def _record_steps(
        self, optimizer: Any, group: dict[str, Any], subject: str, number: int, recorder: Recorder
    ) -> None:
        """Record how many steps the state of a group has seen; one that a device counts is read with the rest."""
        steps = steps_of_group(optimizer, group)
        if steps is None:
            return
        series = self._series("optimizer.steps", subject, number, group)
        if isinstance(steps, Tensor) and steps.device.type != "cpu":
            recorder.add([series], steps.detach().float().reshape(()))
        else:
            recorder.add_host(series, float(steps))

    def _record_rise(self, rise: float | None, recorder: Recorder) -> None:
        if rise is not None:
            facts = Facts(method="as given", cadence=self._sampling.cadence("schedule.rise"))
            recorder.add_host(self._book.series("schedule.rise", "model", "model", lambda: facts), rise)

    def _series(self, metric: str, subject: str, number: int, group: dict[str, Any]) -> Series | None:
        def facts() -> Facts:
            entries = sum(t.numel() for t in group["params"] if isinstance(t, Tensor))
            return Facts(method="as given", group=number, parameters=entries, cadence=self._sampling.cadence(metric))

        return self._book.series(metric, "group", subject, facts)

    def _place(self, optimizer: Any) -> int:
        free = None
        for place, reference in enumerate(self._places):
            found = reference()
            if found is optimizer:
                return place
            free = place if found is None and free is None else free
        if free is None:
            self._places.append(reference_to(optimizer))
            return len(self._places) - 1
        self._places[free] = reference_to(optimizer)
        return free


def _has_leapt(before: float, now: float) -> bool:
    return not min(before, now) * LEAP >= max(before, now)


def reference_to(something: Any) -> Callable[[], Any]:
    """A weak reference, or a strong one to what cannot be weakly held."""
    try:
        return weakref.ref(something)
    except TypeError:
        return lambda: something
