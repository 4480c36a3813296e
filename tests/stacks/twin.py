"""One training script twice, bare and watched: what must be the same bits, and what was measured.

A script is a function of a `Run`: it builds its model, says `run.watch(model, optimizer)` where a user writes
`internist.watch(model, optimizer)`, and `run.loss(loss)` where a user prints.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import internist
from internist.monitor.monitor import Monitor
from internist.schema.wire import CoverageEntry, Series
from tests.client.points import Key, read
from tests.stacks.reference import Reference, Values, plain

TOLERANCES = {
    "activation.rms": 2e-4,  # float32 sums in another order
    "gradient.rms": 2e-4,
    "weight.rms": 2e-4,
    "update.rms": 2e-3,  # a difference of float32 weights: cancellation
    "weight.spectral_norm": 1e-3,  # matrices here are small, so their spectra are exact but for rounding
    "attention.max_logit": 1e-3,
}
"""Relative; absolute differences under `ABSOLUTE` are rounding."""
ABSOLUTE = 1e-7

FAMILIES: dict[str, tuple[str, ...]] = {
    "activation": ("activation.rms",),
    "attention": ("attention.max_logit",),
    "own": ("update.own",),
    "feature": ("update.feature",),
    "gradient": ("gradient.rms",),
    "update": ("update.rms",),
    "spectrum": ("weight.spectral_norm",),
}
"""Metric families as coverage knows them, each by the metrics that stand for it."""


class Run:
    """One of the two runs of a script: where it calls what a user calls."""

    def __init__(self, directory: Path | None, *, reference: bool) -> None:
        self._directory = directory
        self._wants_reference = reference
        self.losses: list[float] = []
        self.monitors: list[Monitor] = []
        self.references: list[Reference] = []
        self._models: list[nn.Module] = []

    @property
    def is_watched(self) -> bool:
        """Whether this is the watched one of the two."""
        return self._directory is not None

    def watch(self, model: nn.Module, optimizer: Any = None, **options: Any) -> None:
        """`internist.watch`, in the watched run; in the bare one the reference begins here."""
        self.keep(model)
        if self._directory is None:
            if self._wants_reference:
                self.references.append(Reference(model))
            return
        self.adopt(internist.watch(model, optimizer, **{**self.options, **options}))

    @property
    def options(self) -> dict[str, Any]:
        """What the watched run is watched with, where a library's callback does it."""
        return {"every": 1, "max_overhead": 0, "mode": "offline", "directory": self._directory}

    def adopt(self, monitor: Monitor | None) -> None:
        """Take the monitor that a library's callback made."""
        assert monitor is not None, "the model was not watched"
        if monitor not in self.monitors:
            self.monitors.append(monitor)

    def keep(self, model: nn.Module) -> None:
        """Compare this model's final state as well."""
        if all(model is not known for known in self._models):
            self._models.append(model)

    def loss(self, value: Tensor | float) -> None:
        """A loss that both runs must agree in."""
        self.losses.append(float(value.detach()) if isinstance(value, Tensor) else float(value))

    def state(self) -> list[tuple[str, Tensor]]:
        """Every parameter and buffer of the models, and the random states."""
        states = [
            (f"{place}: {plain(name)}", value.detach().clone())
            for place, model in enumerate(self._models)
            for name, value in [*model.named_parameters(), *model.named_buffers()]
        ]
        states.append(("torch's random state", torch.get_rng_state()))
        states.append(("Python's random state", torch.tensor(random.getstate()[1])))
        states.append(("NumPy's random state", torch.tensor(numpy.random.get_state()[1].astype("int64"))))
        return states


class Watched:
    """What a watched run left, beside the reference of its bare twin."""

    def __init__(self, monitor: Monitor, coverage: Sequence[CoverageEntry], reference: Reference | None) -> None:
        self.coverage, self.reference = coverage, reference
        self.points: dict[Key, dict[int, float]]
        self.series: dict[Key, Series]
        assert monitor.directory is not None
        self.directory = monitor.directory
        self.points, self.series, self.frames = read(monitor.directory)

    def measured(self, metric: str) -> set[str]:
        """The subjects that have points of a metric."""
        return {subject for name, subject, _ in self.points if name == metric}

    def steps(self, metric: str, subject: str = "model", index: int | None = None) -> list[int]:
        """The steps at which a series has points."""
        return sorted(self.points.get((metric, subject, index), {}))


def missing(run: Watched, family: str) -> dict[str, str]:
    """The subjects of a family that coverage says are not measured, with state and reason."""
    name = {"own": "update.own", "feature": "update.feature"}.get(family, family)
    return {
        entry.subject: f"{entry.state}: {entry.reason}"
        for entry in run.coverage
        if entry.family == name and entry.state != "measured"
    }


def train(script: Callable[[Run], None], directory: Path, *, reference: bool = True) -> Watched:
    """Run a script bare and watched, and hand back what was measured of its first model."""
    return train_all(script, directory, reference=reference)[0]


def train_all(script: Callable[[Run], None], directory: Path, *, reference: bool = True) -> list[Watched]:
    """Run a script bare and watched, assert that they are the same to the last bit, and hand back what was measured."""
    bare, watched = Run(None, reference=reference), Run(directory / "spool", reference=False)
    expected = _once(script, bare)
    try:
        states = _once(script, watched)
        coverages = [monitor.coverage() for monitor in watched.monitors]
    finally:
        for monitor in watched.monitors:
            monitor.finish()
    assert watched.losses == bare.losses, "losses differ"
    assert [name for name, _ in states] == [name for name, _ in expected]
    different = [name for (name, a), (_, b) in zip(states, expected, strict=True) if not _same_bits(a, b)]
    assert different == [], "final states differ"
    references: list[Reference | None] = list(bare.references) or [None] * len(watched.monitors)
    return [
        Watched(monitor, coverage, reference)
        for monitor, coverage, reference in zip(watched.monitors, coverages, references, strict=True)
    ]


def _once(script: Callable[[Run], None], run: Run) -> list[tuple[str, Tensor]]:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    try:
        script(run)
        return run.state()
    finally:
        for reference in run.references:
            reference.close()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=7e7), b.nan_to_num(nan=7e7))


# ---- what must be there --------------------------------------------------------------------------------------------


def assert_measured(
    run: Watched,
    *,
    steps: int,
    but: Sequence[str] = (),
    attention: Sequence[str] | None = None,
    features: Sequence[str] = (),
    loss: bool = False,
    spectra: bool = True,
) -> None:
    """Everything that a plain reading of the model promises is there, at every step, and coverage says the same.

    Args:
        run: the watched run, with its reference.
        steps: how many rounds were made; every one is sampled.
        but: subjects that need no activation, own update, gradient or update.
        attention: modules whose logits must be there; None: those of the reference.
        features: modules whose feature update must be there.
        loss: whether the loss must be there at every step without having been logged.
        spectra: whether the matrices' spectra must be there.
    """
    reference = run.reference
    assert reference is not None
    owners = {
        plain(name)
        for name, m in reference.model.named_modules()
        if next(m.parameters(recurse=False), None) is not None
    }
    expected = {
        "activation": (reference.called & owners) - {*but},
        "own": (reference.called & _simple(reference) & {s.rpartition(".")[0] for s in reference.stepped}) - {*but},
        "gradient": reference.stepped - {*but},
        "update": reference.stepped - {*but},
        "spectrum": (_matrices(reference) & reference.stepped if spectra else set())
        - run.measured("weight.head_norm")
        - {*but},
        "attention": {s for m, s, _ in reference.values if m == "attention.max_logit"}
        if attention is None
        else {*attention},
        "feature": {*features},
    }
    absent = {
        family: sorted(subjects - run.measured(FAMILIES[family][0]))
        for family, subjects in expected.items()
        if subjects - run.measured(FAMILIES[family][0])
    }
    assert absent == {}, f"not measured; coverage says {_said_of(run, absent)}"
    contradicted = {
        family: found for family, subjects in expected.items() if (found := subjects & missing(run, family).keys())
    }
    assert contradicted == {}, "measured, but coverage says otherwise"
    late = {
        (metric, subject): found
        for family in ("activation", "gradient", "update")
        for subject in expected[family]
        for metric in FAMILIES[family]
        if (found := run.steps(metric, subject)) != sorted(reference.values[metric, subject, None])
    }
    assert late == {}, "not at every step"
    if loss:
        assert run.steps("loss") == list(range(steps)), "the loss is not there at every step"


def assert_right(run: Watched, *metrics: str, but: Sequence[str] = (), steps: Sequence[int] | None = None) -> None:
    """Every point of these metrics (default: all that have a tolerance) is the reference's."""
    assert run.reference is not None
    expected: Values = run.reference.values
    wrong, compared = [], 0
    for key, points in run.points.items():
        metric, subject, _ = key
        if metric not in (metrics or TOLERANCES) or subject in but or key not in expected:
            continue
        for step, value in points.items():
            if step in expected[key] and (steps is None or step in steps):
                compared += 1
                if value != pytest.approx(expected[key][step], rel=TOLERANCES[metric], abs=ABSOLUTE, nan_ok=True):
                    wrong.append((key, step, value, expected[key][step]))
    assert wrong == [], f"{len(wrong)} of {compared} points differ from the reference"
    assert compared, "nothing to compare"


def assert_measured_or_said(run: Watched, family: str, subjects: Sequence[str]) -> None:
    """Each subject has points of a family, or coverage says that it has none."""
    silent = {*subjects} - run.measured(FAMILIES[family][0]) - missing(run, family).keys()
    assert silent == set(), "not measured, and nothing is said"


def assert_coverage_is_honest(run: Watched) -> None:
    """What has no points is not called measured by coverage."""
    claimed = {e.subject for e in run.coverage if e.state == "measured" and e.family == "update"}
    assert claimed - run.measured("update.rms") == set(), "called measured, but there are no points"


def _said_of(run: Watched, absent: dict[str, list[str]]) -> dict[str, str]:
    """What coverage says of subjects that have no points, a few of them."""
    said = {
        f"{family} of {subject}": missing(run, family).get(subject, "measured")
        for family, subjects in absent.items()
        for subject in subjects[:2]
    }
    return dict(list(said.items())[:6])


def _simple(reference: Reference) -> set[str]:
    """Modules whose own update is exact without a second forward: linear layers, embeddings, gains."""
    return {
        plain(name)
        for name, module in reference.model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm)
        and not hasattr(module, "parametrizations")
    }


def _matrices(reference: Reference) -> set[str]:
    """Weights of linear layers inside repeated blocks or branches: never an embedding's or the head's own norms."""
    embeddings = {id(m.weight) for m in reference.model.modules() if isinstance(m, nn.Embedding)}
    linears = [
        (plain(name), module)
        for name, module in reference.model.named_modules()
        if isinstance(module, nn.Linear)
        and not hasattr(module, "parametrizations")
        and id(module.weight) not in embeddings
    ]
    return {f"{name}.weight" for name, _ in linears if "." in name}
