"""The coordinate check: models of several sizes, trained a few steps, judged by how what was measured grows with size.

The measurements are the monitor's own and the judgement is the server's: what passes here is what a run is judged by.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from internist.mup import sample
from internist.mup.planner import plan
from internist.mup.probe import as_it_was
from internist.mup.rules import Parametrization, optimizer_named
from internist.mup.trial import Batch, Trial, train
from internist.optim.muon import Muon
from internist.optim.muon_plus_plus import MuonPlusPlus
from internist.scaling.drawing import drawing
from internist.scaling.errors import NotAFamily
from internist.scaling.members import Member
from internist.scaling.report import report
from internist.scaling.words import table
from internist.schema.scaling import FEWEST_SIZES, Diagnosis, Excluded, Exponent, ScalingReport, ScalingVerdict

EXIT_CODES: dict[ScalingVerdict, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
"""For continuous integration, as of the command `internist scaling`."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found. `str(check)` is `check.table()`."""

    report: ScalingReport

    @property
    def verdict(self) -> ScalingVerdict:
        """PASS, FAIL, or INCONCLUSIVE: more sizes or seeds would tell."""
        return self.report.verdict

    @property
    def exponents(self) -> tuple[Exponent, ...]:
        """Every exponent, judged or not."""
        return self.report.exponents

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """What is wrong, most likely first; empty where nothing is, or nothing known explains it."""
        return self.report.diagnoses

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    def table(self) -> str:
        """Exponents, verdicts and diagnoses as text."""
        return table(self.report)

    def plot(self, path: str | Path) -> None:
        """Write the log-log plots of all judged quantities as SVG.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_text(drawing(self.report), encoding="utf-8")

    def __str__(self) -> str:
        return self.table()


def check(
    build_model: Callable[..., nn.Module],
    *,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    optimizer: str | Callable[[nn.Module], Any] = "adamw",
    lr: float = 1e-3,
    parametrization: Parametrization = "mup",
    seeds: int = 3,
    steps: int = 10,
    batch: Callable[[nn.Module], Batch] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    output: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Check:
    """Train small models of a family for a few steps and tell whether features learn alike at every size.

    Where both axes are given, widths are swept at the first depth and depths at the first width.

    Args:
        build_model: makes a model of a size on the device to train on, called with the keywords `width` and `depth`,
            whichever it names. It is called under a seed of its own for every trial.
        widths: at least three; four or more over a factor of eight, from 128 on, are to be trusted most.
        depths: at least three.
        optimizer: given a model, returns its optimizer or a list of them: the parametrisation as you have it. A name in
            `internist.mup.OPTIMIZERS` stands for `plan(model, base=the first size, attention="scale")`, applied, with
            that optimizer.
        lr: the first size's learning rate, where the optimizer is a name. Small: the exponents are those of what
            the first updates do, not of how the loss falls.
        parametrization: of that plan. What is judged is whether features learn alike at every size, which those made to
            compare with fail by design; `u_mup`'s embeddings, and in depth its branches, depart from it on purpose.
        seeds: trials of every size.
        steps: optimizer steps of a trial; 40 and more show growth that sets in late.
        batch: given a model, returns its input (a tensor, or a tuple of arguments) and the targets; called under the
            trial's seed, so that sizes share their batches. None: a few tokens for models that begin with an embedding,
            Gaussian vectors for those that begin with a linear layer. Few, because the exponents are those of one
            example: a batch of more tokens than the width blurs them.
        loss: given the model's output and the targets. None: cross entropy for whole-numbered targets, else mean
            squared error.
        output: the module whose output is the model's f; None: its head. Name it where the model multiplies its logits
            itself, in its `forward`: "" is the model.
        progress: told of every trial before it begins.

    Returns:
        Verdict, exponents, diagnoses, table, plot, exit code.

    Raises:
        NotAFamily: fewer than three sizes, or models that differ in more than size; the message says which.
        TypeError: `build_model` names neither width nor depth, or is given sizes of an axis it does not name.
        ValueError: a size, `seeds` or `steps` is not a positive number; no rules are known for the optimizer's name; or
            no batch can be made for the model.
    """
    sizes = _sizes(build_model, widths, depths)
    _require_positive("seeds", seeds)
    _require_positive("steps", steps)
    batch = batch or sample.batch
    if isinstance(optimizer, str):
        optimizer = _planned(optimizer, lr, parametrization, build_model, sizes[0], batch)
    trial = Trial(optimizer, batch, loss or sample.loss, steps, output)
    members: list[Member] = []
    excluded: list[Excluded] = []
    for size in sizes:
        for seed in range(seeds):
            name = ", ".join(f"{axis} {value}" for axis, value in size.items()) + f", seed {seed}"
            if progress is not None:
                progress(name)
            torch.manual_seed(seed)
            try:
                members.append(train(trial, build_model(**size).train(), name=name, seed=seed))
            except NotAFamily as error:
                excluded.append(Excluded("", name, str(error)))
    if excluded and not members:
        raise NotAFamily(excluded[0].reason)
    return Check(report(members, excluded))


def _sizes(
    build_model: Callable[..., nn.Module], widths: Sequence[int] | None, depths: Sequence[int] | None
) -> list[dict[str, int]]:
    given = {"width": widths, "depth": depths}
    for axis, values in given.items():
        for value in values or ():
            _require_positive(f"{axis}s", value)
    if all(len(set(values or ())) < FEWEST_SIZES for values in given.values()):
        counted = ", ".join(f"{len(set(values or ()))} {axis}s" for axis, values in given.items())
        raise NotAFamily(
            f"an exponent needs {FEWEST_SIZES} different widths or {FEWEST_SIZES} different depths, got {counted}"
        )
    parameters = inspect.signature(build_model).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for axis, values in given.items():
        if values and axis not in parameters and not takes_any:
            names = ", ".join(parameters) or "nothing"
            raise TypeError(f"{axis}s are given, and build_model takes no keyword {axis!r}: it names {names}")
    bases = {axis: values[0] for axis, values in given.items() if values}
    found = [{**bases, axis: value} for axis, values in given.items() if values for value in dict.fromkeys(values)]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(size.items()) for size in found)]


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected whole numbers of at least 1, got {value!r}")


def _planned(
    name: str,
    lr: float,
    parametrization: Parametrization,
    build_model: Callable[..., nn.Module],
    smallest: dict[str, int],
    batch: Callable[[nn.Module], Batch],
) -> Callable[[nn.Module], Any]:
    """The optimizer of a plan: initialises a model, sets its multipliers, and steps it by the rules of `name`."""
    optimizer_named(name)
    if name not in _MADE:
        raise ValueError(
            f"optimizer={name!r}: the check itself can make {', '.join(_MADE)}; for others give a function that "
            "returns the optimizer of a model"
        )
    torch.manual_seed(0)
    base = build_model(**smallest)

    def make(model: nn.Module) -> Any:
        with as_it_was(model):
            probe, _ = batch(model)
        planned = plan(
            model, base=base, optimizer=name, lr=lr, parametrization=parametrization, attention="scale", probe=probe
        )
        return _MADE[name](planned.apply(), lr=lr)

    return make


_MADE: dict[str, Callable[..., Any]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "muon": Muon,
    "muon_jordan": Muon,
    "muon_kimi": Muon,
    "muon_mup": Muon,
    "muon_plus_plus": MuonPlusPlus,
}
