"""Parameter groups: one number and one name for each group of each optimizer that takes part."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from internist.observe.optimizer_facts import parameter_groups, steps_of_group
from internist.observe.sampling import Sampling
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import Facts, Series

GROUPS_A_PLACE = 1_000
"""Numbers of groups that each optimizer may use."""
PLACES_A_STAGE = 1_000
"""Numbers of optimizers that each stage of a pipeline may use."""


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
        self._places: list[Callable[[], Any]] = []
        self._rates: dict[int, list[tuple[int, Series]]] = {}
        """By place: the groups whose rate is a number, and its series."""

    def number(self, optimizer: Any, index: int) -> int:
        """The number of a group, different for all groups of the run."""
        return (self._stage * PLACES_A_STAGE + self._place(optimizer)) * GROUPS_A_PLACE + index

    def record(self, optimizer: Any, recorder: Recorder) -> None:
        """Record learning rate and weight decay of an optimizer's groups, as this step used them."""
        names: set[str] = set()
        groups, step = parameter_groups(optimizer), recorder.step_under_way
        rates = self._rates[self._place(optimizer)] = []
        schedule = self._sampling.schedule
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
                series = self._series("schedule.multiplier", subject, self.number(optimizer, index), group)
                recorder.add_host(series, declared[index])
            for metric, key in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
                value = group.get(key)
                series = self._series(metric, subject, self.number(optimizer, index), group)
                if series is None or isinstance(value, bool):
                    continue
                if isinstance(value, Tensor) and value.numel() == 1:
                    recorder.add([series], value.detach().to(torch.float32, copy=True))  # a scheduler writes to it
                elif isinstance(value, int | float):
                    recorder.add_host(series, float(value))
                    if key == "lr":
                        rates.append((index, series))
            self._record_steps(optimizer, group, subject, self.number(optimizer, index), recorder)

    def rates(self, optimizer: Any) -> list[tuple[Series, float]]:
        """The learning rates of an optimizer whose groups have been recorded, as far as they are numbers."""
        known = self._rates.get(self._place(optimizer), ())
        groups = parameter_groups(optimizer) if known else []
        found = ((series, groups[index].get("lr")) for index, series in known if index < len(groups))
        return [(series, float(rate)) for series, rate in found if isinstance(rate, int | float)]

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


def reference_to(something: Any) -> Callable[[], Any]:
    """A weak reference, or a strong one to what cannot be weakly held."""
    try:
        return weakref.ref(something)
    except TypeError:
        return lambda: something
