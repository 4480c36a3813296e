"""One short training run of the scaling check, seen through the monitor's own capture, without a file or a network."""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from internist.model.outline import outline
from internist.model.roles import unwrap
from internist.observe.observer import Observer
from internist.observe.routing import routing
from internist.observe.sampling import Sampling
from internist.observe.speaker import Speaker
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.scaling.description import describe
from internist.scaling.members import METRICS_USED, Member
from internist.scaling.summary import needed_steps, summarise
from internist.schema.metrics import METRICS, combine_of
from internist.schema.wire import Frame, Plan, Series

Batch = tuple[Any, Any]
"""What the model is called with (a tensor, or a tuple of arguments), and the targets its loss takes."""

SAMPLES = 100
"""Light samples of a long trial; short ones are measured at every step."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is trained, and how: everything but the model."""

    optimizer: Callable[[nn.Module], Any]
    """The model's optimizer, or a list of them."""
    batch: Callable[[nn.Module], Batch]
    loss: Callable[[Any, Any], Tensor]
    steps: int
    output: str | None = None
    """The module whose output is the model's f; None: its head."""


def train(trial: Trial, model: nn.Module, *, name: str, seed: int) -> Member:
    """Train a model on one fixed batch and return what was measured.

    Raises:
        NotAFamily: the model's width cannot be read from its shapes.
        ValueError: the loss is not one number.
    """
    made = trial.optimizer(model)
    optimizers = list(made) if isinstance(made, list | tuple) else [made]
    root = unwrap(model)
    plan = outline(root, output=trial.output)
    begun = routing(optimizers, plan)
    kept = _Kept()
    sampling = Sampling(every=max(1, trial.steps // SAMPLES), wanted=frozenset(METRICS_USED), max_overhead=0.0)
    recorder = Recorder(kept, SeriesBook(sampling.wants))
    observer = Observer(
        model,
        plan,
        recorder,
        read=partial(outline, output=trial.output),
        optimizers=optimizers,
        sampling=sampling,
        start_step=0,
        reads_step=False,
        speaker=Speaker(),
        on_coverage=_nothing,
        on_start=_nothing,
    )
    try:
        torch.manual_seed(seed)
        inputs, targets = trial.batch(model)
        for _ in range(trial.steps):
            loss = trial.loss(_call(model, inputs), targets)
            if loss.numel() != 1:
                raise ValueError(f"loss: expected one number, got a tensor of shape {tuple(loss.shape)}")
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            recorder.drain(everything=True)
    finally:
        observer.close()
    recorder.drain(everything=True)
    series = list(kept.series.values())
    description = describe(series, plan.describe(), begun)
    steps, values = kept.matrix([series[place].number for place in description.places])
    chosen = needed_steps(steps.tolist(), 0)
    rows = np.searchsorted(steps, chosen)
    found = summarise(description.columns, steps[rows], values[rows], 0)
    return Member(name, description.shape, seed, found, description.facts)


class _Kept:
    """Keeps what a recorder would write to a spool."""

    dropped = 0

    def __init__(self) -> None:
        self.series: dict[int, Series] = {}
        self._plans: dict[int, Plan] = {}
        self._frames: list[Frame] = []

    def append(
        self, *, series: tuple[Series, ...] | None = None, plan: Plan | None = None, frame: Frame | None = None
    ) -> bool:
        """Keep what is given."""
        self.series.update((one.number, one) for one in series or ())
        if plan is not None:
            self._plans[plan.number] = plan
        if frame is not None:
            self._frames.append(frame)
        return True

    def matrix(self, numbers: Sequence[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Steps, and values as they are defined (roots taken), (steps x series): NaN where absent, infinite where
        measured as not finite."""
        steps = np.array(sorted({frame.step for frame in self._frames}), dtype=np.int64)
        row = {int(step): place for place, step in enumerate(steps)}
        column = {number: place for place, number in enumerate(numbers)}
        denominators = self._denominators()
        values = np.full((len(steps), len(numbers)), np.nan, dtype=np.float32)
        for frame in self._frames:
            plan = self._plans[frame.plan].series
            sent = dict(zip(plan, struct.unpack(f"<{len(plan)}f", frame.values), strict=True))
            for number in column.keys() & sent.keys():
                value = self._root(number, sent)
                under = denominators.get(number)
                if under in sent:
                    stream = self._root(under, sent)
                    if stream == 0:
                        continue
                    value /= stream
                values[row[frame.step], column[number]] = value if math.isfinite(value) else math.inf
        return steps, values

    def _root(self, number: int, sent: Mapping[int, float]) -> float:
        """A value as its metric is defined, before what it is divided by."""
        is_square = combine_of(self.series[number].metric) in ("mean_square", "sum_square")
        return math.sqrt(sent[number]) if is_square and sent[number] >= 0 else sent[number]

    def _denominators(self) -> dict[int, int]:
        """By the numbers of series that are ratios: those of what they are divided by."""
        numbers = {(one.metric, one.subject): number for number, one in self.series.items()}
        over = ((n, METRICS[one.metric].over, one.subject) for n, one in self.series.items() if one.metric in METRICS)
        return {n: numbers[metric, subject] for n, metric, subject in over if (metric, subject) in numbers}


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _nothing(_: Any) -> None:
    """Coverage is not looked at."""
