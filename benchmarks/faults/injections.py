"""The faults: each changes one thing of a running job, at one place, from one step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from benchmarks.faults.optimizers import place_of

if TYPE_CHECKING:
    from benchmarks.faults.jobs import Job

When = Literal["start", "forward", "update", "inside", "after"]
"""Before the run is watched, before a forward, between backward and update, for the length of the update (learning
rates are put back at its end), at its end."""
Act = Callable[["Job", str, bool], None]
"""Does it: to a job, at a place (empty: everywhere), and whether this is its first step."""
FOREVER = 1 << 30
WHILE = 60


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    act: Act
    when: When
    lasts: int
    optimizers: tuple[str, ...] = ()
    """Those it is a fault with; empty: all."""
    trait: str | None = None
    is_visible: bool = True
    """Whether its cause is in what a client can see, or only in what the data mean."""
    is_ahead: bool = False
    """Whether its cause comes before the loss shows it: what an update does shows in the loss of a later step, and what
    creeps is there before it is large. What changes a forward at once is in the loss of its own first step."""


def _module(job: Job, place: str) -> nn.Module:
    return job.model.get_submodule(place)


def _weight(job: Job, place: str) -> nn.Parameter:
    module = _module(job, place)
    found = module.weight if hasattr(module, "weight") else next(module.parameters())
    assert isinstance(found, nn.Parameter)
    return found


def _groups(job: Job, place: str) -> Iterator[dict[str, object]]:
    """The optimizer's groups that hold parameters of a place."""
    inside = {id(p) for n, p in job.model.named_parameters() if not place or place_of(n) == place}
    return (group for group in job.optimizer.param_groups if any(id(p) in inside for p in group["params"]))


def rate(factor: float) -> Act:
    """The learning rate of a place's groups times a factor; the scheduler sets it anew for every step."""

    def act(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
        for group in _groups(job, place):
            group["lr"] *= factor  # type: ignore[operator]

    return act


def scale_weight(factor: float) -> Act:
    """A weight times a factor, once."""

    def act(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
        _weight(job, place).data.mul_(factor)

    return act


def nan_weight(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """One entry becomes NaN."""
    _weight(job, place).data.view(-1)[0] = float("nan")


def nan_batch(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """One number of the batch is NaN."""
    job.inputs.view(-1)[0] = float("nan")


def nan_batch_skipped(job: Job, place: str, is_first: bool) -> None:
    """The same in a loop that leaves such updates out."""
    job.skips_nonfinite = True
    nan_batch(job, place, is_first)


def forget_scale(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Attention's 1/sqrt(d) is gone."""
    _module(job, place).scale = 1.0  # type: ignore[assignment]


def zero_weight(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """A gain or an output projection is held at zero, its bias too."""
    for parameter in _module(job, place).parameters():
        parameter.data.zero_()


def zero_gradient(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """A place's gradients are zero."""
    for parameter in _module(job, place).parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def flip_gradient(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """A place climbs."""
    for parameter in _module(job, place).parameters():
        if parameter.grad is not None:
            parameter.grad.neg_()


def nothing(job: Job, place: str, is_first: bool) -> None:
    """It is in how the job was made."""


def raise_decay(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Weight decay times 1,000, so that an update shrinks weights by at most a half."""
    if is_first:
        for group in job.optimizer.param_groups:
            group["weight_decay"] = min(1000 * group["weight_decay"], 0.5 / max(group["lr"], 1e-9))


def spoil_beta2(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Adam's second moment forgets almost at once."""
    for group in job.optimizer.param_groups:
        group["betas"] = (group["betas"][0], 0.05)


def reset_state(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """The optimizer has no memory any more, as after a restart that did not load it."""
    job.optimizer.state.clear()


def repeat_batch(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """The loader gives the same batch for ever."""
    if is_first:
        job.kept["inputs"], job.kept["targets"] = job.inputs, job.targets
    job.inputs, job.targets = job.kept["inputs"], job.kept["targets"]


def shuffle_labels(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Inputs get each other's targets."""
    job.targets = job.targets[torch.randperm(len(job.targets), generator=job.generator)]


def round_to_bf16(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Weights are kept in bfloat16: small updates are lost."""
    for parameter in job.model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())


def raise_branches(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """The multiplier of residual branches, or of what they begin with, is missing."""
    for module in job.model.modules():
        if hasattr(module, "branch"):
            module.branch = 10.0  # type: ignore[assignment]


def remove_clipping(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Gradients are no longer clipped, and for a while the loss is thirty times what it was."""
    job.clip, job.loss_factor = None, 30.0


def raise_loss(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """The loss is a sum where it was a mean."""
    job.loss_factor = 100.0


def kill_units(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """No unit of a layer ever gives more than zero."""
    bias = _module(job, place).bias
    assert isinstance(bias, nn.Parameter)
    bias.data.fill_(-30.0)


def reset_weights(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """A block's matrices are drawn anew."""
    for parameter in _module(job, place).parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=job.generator)


def stick_router(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """A router tells no token from another, so that one expert gets them all, and learns no more."""
    weight = _weight(job, place)
    weight.data.zero_()
    weight.requires_grad_(False)


CREEP = 1.02
"""What creeps grows by this factor at every step: sevenfold in a hundred, fifty-fold in two."""


def creep_rate(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """The learning rate grows from step to step, as by a factor that is applied to what it was applied to before."""
    job.crept *= CREEP
    for group in job.optimizer.param_groups:
        group["lr"] *= job.crept


def creep_weights(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """A place's matrices grow from step to step, as by an average that is written back wrongly."""
    for parameter in _module(job, place).parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(CREEP)


def creep_scale(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """The temperature of attention falls from step to step."""
    _module(job, place).scale *= CREEP  # type: ignore[assignment, operator]


def turn_decay(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Weight decay has the wrong sign, and weights grow by two in a hundred at every step."""
    for group in job.optimizer.param_groups:
        group["weight_decay"] = -(CREEP - 1) / max(group["lr"], 1e-9)


def raise_dropout(job: Job, place: str, is_first: bool) -> None:  # noqa: ARG001
    """Nine in ten activations are dropped."""
    for module in job.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9


GROUPED = ("adamw", "lion", "sgd")
KINDS: dict[str, Kind] = {
    "block_rate_30": Kind(rate(30), "update", WHILE, GROUPED, is_ahead=True),
    "hidden_block_rate_30": Kind(rate(30), "inside", WHILE, GROUPED, is_ahead=True),
    "hidden_block_rate_100": Kind(rate(100), "inside", WHILE, GROUPED, is_ahead=True),
    "global_rate_10": Kind(rate(10), "update", WHILE, is_ahead=True),
    "global_rate_30": Kind(rate(30), "update", WHILE, is_ahead=True),
    "rate_zero": Kind(rate(0), "update", FOREVER, GROUPED, is_ahead=True),
    "nan_weight": Kind(nan_weight, "forward", 1),
    "nan_batch": Kind(nan_batch, "forward", 1),
    "nan_batch_skipped": Kind(nan_batch_skipped, "forward", 1),
    "weight_30": Kind(scale_weight(30), "forward", 1),
    "query_30": Kind(scale_weight(30), "forward", 1),
    "embedding_30": Kind(scale_weight(30), "forward", 1),
    "scale_forgotten": Kind(forget_scale, "forward", 1),
    "gain_zero": Kind(zero_weight, "forward", FOREVER),
    "dead_block": Kind(zero_weight, "forward", FOREVER),
    "gradient_zero": Kind(zero_gradient, "update", FOREVER, is_ahead=True),
    "gradient_flipped": Kind(flip_gradient, "update", FOREVER, is_ahead=True),
    "left_out": Kind(nothing, "start", FOREVER, GROUPED, is_ahead=True),
    "decay_1000": Kind(raise_decay, "update", FOREVER, ("adamw", "lion", "muon"), is_ahead=True),
    "beta2_wrong": Kind(spoil_beta2, "update", FOREVER, ("adamw",), is_ahead=True),
    "state_reset": Kind(reset_state, "forward", 1, ("adamw", "muon++", "muon", "lion"), is_ahead=True),
    "data_constant": Kind(repeat_batch, "forward", FOREVER, is_ahead=True),
    "labels_shuffled": Kind(shuffle_labels, "forward", FOREVER, is_visible=False),
    "bf16_stagnation": Kind(round_to_bf16, "after", FOREVER, ("adamw", "sgd", "lion"), is_ahead=True),
    "branch_10": Kind(raise_branches, "start", FOREVER),
    "head_10": Kind(scale_weight(10), "start", FOREVER),
    "clip_removed": Kind(remove_clipping, "forward", WHILE, ("sgd",), "clip"),
    "loss_factor_100": Kind(raise_loss, "forward", FOREVER),
    "dead_units": Kind(kill_units, "forward", 1),
    "block_reset": Kind(reset_weights, "forward", 1),
    "router_stuck": Kind(stick_router, "forward", 1),
    "rate_creeps": Kind(creep_rate, "update", FOREVER, is_ahead=True),
    "weights_creep": Kind(creep_weights, "after", FOREVER, GROUPED, is_ahead=True),
    "scale_creeps": Kind(creep_scale, "forward", FOREVER, is_ahead=True),
    "decay_turned": Kind(turn_decay, "update", FOREVER, ("adamw", "lion"), is_ahead=True),
    "dropout_9": Kind(raise_dropout, "forward", 1, (), "dropout"),
}
