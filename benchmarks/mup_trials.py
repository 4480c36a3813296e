"""One training run of the proofs of muP: to a loss, or over a few steps with all features looked at."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.mup_models import Arm, Shape
from benchmarks.quality_trials import EVALUATED, PROBE_TOLERANCE, Laboratory, NotMeasuredError, Row, rate_factor
from internist.demo.model import ByteGPT, batch

BATCH = 8
"""Rows of text a step, of the shape's context each."""
FEATURE_STEPS = 10
PROBE = Shape(32, 4), Shape(16, 2)
"""Target and base of the probe's model."""
PROBE_STEPS, PROBE_RATE = 12, 2.0**-7


class MupLaboratory(Laboratory):
    """Runs what is asked for, unless its result is known and its rule still computes what it did then."""

    def final_loss(self, arm: Arm, shape: Shape, base: Shape, *, steps: int, lr: float, seed: int) -> float:
        """Validation loss in nats per byte after a run; infinity where it diverged.

        The rate rises over the first 5 % of the steps and falls to zero over the last 40 %.

        Raises:
            NotMeasuredError: it is not in the file, and this laboratory only reads.
        """
        asked = self._asked("loss", arm, shape, base, steps=steps, lr=lr, seed=seed)
        known = self._known(arm, asked)
        if known is None:
            result = self._learn(arm, shape, base, asked)
            known = self.trials.add(asked, {"probe": self.fingerprint(arm), **result})
            self.say(
                f"{arm.name}, width {shape.width}, depth {shape.depth}, lr 2^{math.log2(lr):.1f}, seed {seed}: "
                f"loss {known['loss']:.4f} ({known['cpu_s']:.1f} s of CPU)"
            )
        return float(known["loss"])

    def features(
        self, arm: Arm, shape: Shape, base: Shape, *, lr: float, adamw_lr: float | None = None, seed: int
    ) -> Row:
        """RMS of features before and after ten steps on one batch, at a constant rate.

        Returns:
            Lists over the blocks of `start` and `output` (RMS of a block's output before and after) and `change` (RMS
            of the difference); `logits` and `logits_change`; and of the sum of what all MLP branches add to the stream,
            given their last inputs, `first_order` and `second_order` in the change of their two matrices.

        Raises:
            NotMeasuredError: as `final_loss`.
        """
        asked = self._asked("features", arm, shape, base, steps=FEATURE_STEPS, lr=lr, adamw_lr=adamw_lr, seed=seed)
        known = self._known(arm, asked)
        if known is None:
            began = time.process_time()
            model, optimizer, generator = _prepared(arm, shape, base, lr=lr, adamw_lr=adamw_lr, seed=seed)
            inputs, targets = batch(self.train_text, BATCH, shape.context, generator)
            result = _features(model, optimizer, inputs, targets)
            seconds = time.process_time() - began
            known = self.trials.add(asked, {"probe": self.fingerprint(arm), **result, "cpu_s": seconds})
            self.say(f"{arm.name}, width {shape.width}, depth {shape.depth}, seed {seed} ({seconds:.1f} s of CPU)")
        return known

    def fingerprint(self, arm: Arm) -> float:
        """Loss of a small model, larger than its base, after a few steps: it changes when the rule's results do."""
        if arm.name not in self._probes:
            shape, base = PROBE
            model, optimizer, generator = _prepared(arm, shape, base, lr=PROBE_RATE, adamw_lr=None, seed=0)
            loss = torch.zeros(())
            for _ in range(PROBE_STEPS):
                loss = _step(model, optimizer, *batch(self.train_text, BATCH, shape.context, generator))
            self._probes[arm.name] = loss.item()
        return self._probes[arm.name]

    def _asked(self, what: str, arm: Arm, shape: Shape, base: Shape, **settings: float | None) -> Row:
        return {"what": f"mup.{what}", **arm.described(), **asdict(shape), "base": [base.width, base.depth], **settings}

    def _known(self, arm: Arm, asked: Row) -> Row | None:
        known = self.trials.find(asked)
        if known is not None and abs(known["probe"] - self.fingerprint(arm)) <= PROBE_TOLERANCE:
            return known
        if self.only_read:
            raise NotMeasuredError(
                f"{arm.name}, width {asked['width']}, depth {asked['depth']}, "
                f"lr {asked['lr']:.4g}, seed {asked['seed']}"
            )
        return None

    def _learn(self, arm: Arm, shape: Shape, base: Shape, asked: Row) -> Row:
        began = time.process_time()
        model, optimizer, generator = _prepared(arm, shape, base, lr=asked["lr"], adamw_lr=None, seed=asked["seed"])
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(asked["steps"]):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * rate_factor(step, asked["steps"])
            loss = _step(model, optimizer, *batch(self.train_text, BATCH, shape.context, generator)).item()
            if not math.isfinite(loss):
                return {"loss": math.inf, "diverged_at": step, "cpu_s": time.process_time() - began}
        return {"loss": self.evaluate(model, EVALUATED), "cpu_s": time.process_time() - began}


def _prepared(
    arm: Arm, shape: Shape, base: Shape, *, lr: float, adamw_lr: float | None, seed: int
) -> tuple[ByteGPT, torch.optim.Optimizer, torch.Generator]:
    model = shape.model(seed)
    return model, arm.prepare(model, base, lr=lr, adamw_lr=adamw_lr), torch.Generator().manual_seed(1_000 + seed)


def _step(model: ByteGPT, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = model(inputs, targets).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _features(model: ByteGPT, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> Row:
    """What `MupLaboratory.features` returns."""
    branches = [block.get_submodule("mlp") for block in model.blocks]
    with _outputs(list(model.blocks)) as start, torch.no_grad():
        logits_start = model(inputs)
    before = [{name: p.detach().clone() for name, p in branch.named_parameters()} for branch in branches]
    losses = [_step(model, optimizer, inputs, targets).item() for _ in range(FEATURE_STEPS)]
    with _outputs(list(model.blocks)) as end, _outputs(branches, of_inputs=True) as fed, torch.no_grad():
        logits = model(inputs)
    first, second = torch.zeros_like(end[0]), torch.zeros_like(end[0])
    with torch.no_grad():
        for branch, old, x in zip(branches, before, fed, strict=True):
            one, two = _orders(branch, old, x)
            first += one
            second += two
    return {
        "start": [_rms(x) for x in start],
        "output": [_rms(x) for x in end],
        "change": [_rms(b - a) for a, b in zip(start, end, strict=True)],
        "logits_start": _rms(logits_start),
        "logits": _rms(logits),
        "logits_change": _rms(logits - logits_start),
        "first_order": _rms(first),
        "second_order": _rms(second),
        "losses": losses,
    }


def _orders(branch: nn.Module, old: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """How a branch's output changed at an input: by either of its two layers alone, and by both beyond that."""
    new = {name: p.detach() for name, p in branch.named_parameters()}
    inner = {name: value for name, value in new.items() if name.startswith("fc1")}
    outer = {name: value for name, value in new.items() if name.startswith("fc2")}
    neither, first, second, both = (
        functional_call(branch, {**old, **changed}, (x,)) for changed in ({}, inner, outer, new)
    )
    return first + second - 2 * neither, both - first - second + neither


@contextmanager
def _outputs(modules: list[nn.Module], *, of_inputs: bool = False) -> Iterator[list[Tensor]]:
    """The outputs, or first inputs, of modules that are called once each, in that order."""
    kept: list[Tensor] = []
    if of_inputs:
        handles = [m.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach())) for m in modules]
    else:
        handles = [m.register_forward_hook(lambda _, __, out: kept.append(out.detach())) for m in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _rms(values: Tensor) -> float:
    return float(f"{values.double().square().mean().sqrt().item():.6g}")
