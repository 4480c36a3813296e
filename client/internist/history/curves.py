"""A run's history as curves: what is imported from other tools, and what is exported for them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from internist.schema.metrics import METRICS, Kind
from internist.schema.views import Number
from internist.schema.wire import Outcome, Scalar

ALIASES: Final[Mapping[str, str]] = {
    "train/loss": "loss",
    "train_loss": "loss",
    "training_loss": "loss",
    "loss/train": "loss",
    "lr": "learning_rate",
    "train/lr": "learning_rate",
    "train/learning_rate": "learning_rate",
    "grad_norm": "gradient.norm_before_clip",
    "train/grad_norm": "gradient.norm_before_clip",
    "gradient_norm": "gradient.norm_before_clip",
}
"""Names under which other tools keep what the catalogue has, in lower case."""
_TAG: Final = re.compile(r"(?P<metric>[^/\[]+)(?:/(?P<subject>.*?))?(?:\[(?P<index>\d{1,9})\])?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one subject over the steps: a series with its points, steps rising.

    Attributes:
        metric: a name of the catalogue, or of a scalar.
        kind: what the subject is.
        subject: its name.
        index: head or expert.
        steps: optimizer steps.
        times_ms: when each was measured, since the epoch.
        values: NaN and infinities as they are.
    """

    metric: str
    kind: Kind = "model"
    subject: str = "model"
    index: int | None = None
    steps: Sequence[int] = ()
    times_ms: Sequence[int] = ()
    values: Sequence[float] = ()

    @property
    def tag(self) -> str:
        """Its name where one name must say all: `loss`, `weight.rms/head.weight`, `attention.max_logit/1[3]`."""
        subject = "" if self.kind == "model" else f"/{self.subject}"
        return f"{self.metric}{subject}{'' if self.index is None else f'[{self.index}]'}"


@dataclass(frozen=True, slots=True)
class History:
    """A run, and curves of it.

    Attributes:
        run: its id where it comes from.
        name: for people.
        project: groups runs.
        config: hyper-parameters.
        curves: what there is of it.
        outcome: how it ended, as far as that is known.
        source: what kept it: `tensorboard`, `wandb`, ...; empty: a server of ours.
    """

    run: str
    name: str
    project: str = ""
    config: Mapping[str, Scalar] = field(default_factory=dict)
    curves: Sequence[Curve] = ()
    outcome: Outcome = "finished"
    source: str = ""

    def points(self) -> Iterator[tuple[Curve, int, int, float]]:
        """Every point: its curve, step, time and value."""
        for curve in self.curves:
            for step, time_ms, value in zip(curve.steps, curve.times_ms, curve.values, strict=True):
                yield curve, step, time_ms, value


class CurveBuilder:
    """Collects points in the order of a file, and makes curves of them: steps rising, of each step the last value.

    Args:
        names: what a name of the source is called here, over `ALIASES`.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._points: dict[str, dict[int, tuple[int, float]]] = {}
        self.left_out = 0
        """Points before step 0, which no optimizer made."""

    def add(self, name: str, step: int, time_ms: int, value: float) -> None:
        """A point."""
        if step < 0:
            self.left_out += 1
        else:
            self._points.setdefault(name, {})[step] = time_ms, value

    def curves(self) -> list[Curve]:
        """The curves. A name of the catalogue is given to one curve: of two that claim it, the first keeps it."""
        taken: set[tuple[str, str, int | None]] = set()
        curves = []
        for name, points in self._points.items():
            curve = _empty(self._names.get(name) or ALIASES.get(name.lower(), name))
            identity = curve.metric, curve.subject, curve.index
            if identity in taken:
                curve = Curve(name)
            taken.add(identity)
            steps = sorted(points)
            times, values = [points[step][0] for step in steps], [points[step][1] for step in steps]
            curves.append(Curve(curve.metric, curve.kind, curve.subject, curve.index, steps, times, values))
        return curves


def number(value: Number) -> float:
    """A number of the API as a float; NaN where there is none."""
    return math.nan if value is None else float(value)


def _empty(tag: str) -> Curve:
    """The curve, without points, that a tag stands for."""
    matched = _TAG.fullmatch(tag)
    known = METRICS.get(matched["metric"]) if matched is not None else None
    if matched is None or known is None:
        return Curve(tag)
    index = None if matched["index"] is None else int(matched["index"])
    if known.kind == "model":
        return Curve(tag) if matched["subject"] or index is not None else Curve(known.name)
    subject = matched["subject"] or ("0" if known.kind == "group" else None)
    return Curve(tag) if subject is None else Curve(known.name, known.kind, subject, index)
