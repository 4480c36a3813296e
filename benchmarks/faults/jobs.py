"""One training job: a model, its optimizer, its batches, and the loop that people write around them."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.faults import data
from benchmarks.faults.optimizers import make_optimizer, schedule
from benchmarks.faults.others import LSTM, Perceptron, ResNet
from benchmarks.faults.transformers import Transformer
from benchmarks.faults.trials import Trial

BATCH = 16
SHARE_DROPPED = 0.1
CLIP = 1.0
_SOURCES: dict[str, data.Source] = {"vit": data.draw_images, "resnet": data.draw_images, "mlp": data.ask_teacher}
_MODELS: dict[str, Callable[[float], nn.Module]] = {"resnet": ResNet, "lstm": LSTM, "mlp": Perceptron}


def _nothing() -> None:
    """No fault."""


@dataclass
class Job:
    """What a fault may lay hands on."""

    trial: Trial
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    clip: float | None
    inputs: Tensor
    targets: Tensor
    loss_factor: float = 1.0
    crept: float = 1.0
    """What a rate that creeps is multiplied by so far."""
    skips_nonfinite: bool = False
    """Whether the loop leaves out an update whose gradient is not finite."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What a fault remembers."""
    inside_update: Callable[[], None] = _nothing
    after_update: Callable[[], None] = _nothing


def make_job(trial: Trial) -> Job:
    """The job of a trial, before its first step."""
    torch.manual_seed(trial.seed)
    dropout = SHARE_DROPPED if trial.trait == "dropout" else 0.0
    make = _MODELS.get(trial.architecture)
    model = make(dropout) if make else Transformer(trial.architecture, dropout)
    fault = trial.fault
    left_out = fault.place if fault is not None and fault.kind == "left_out" else None
    optimizer = make_optimizer(trial.optimizer, model, left_out=left_out)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(trial.schedule, trial.steps))
    generator = torch.Generator().manual_seed(trial.seed)
    clip = CLIP if trial.trait == "clip" else None
    job = Job(trial, model, optimizer, scheduler, generator, clip, torch.empty(0), torch.empty(0))
    _open_update(job)
    return job


def _open_update(job: Job) -> None:
    """Let a fault act within an update, where no loop could see it."""
    honest: list[float] = []

    def before(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG001
        honest[:] = [group["lr"] for group in optimizer.param_groups]
        job.inside_update()

    def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG001
        for group, lr in zip(optimizer.param_groups, honest, strict=True):
            group["lr"] = lr
        job.after_update()

    job.optimizer.register_step_pre_hook(before)
    job.optimizer.register_step_post_hook(after)


def draw(job: Job, step: int) -> None:
    """The batch of a step; a ramp doubles it after the first third and again after the second."""
    size = BATCH
    if job.trial.trait == "batch ramp":
        size = BATCH // 2 << (3 * step // job.trial.steps)
    source = _SOURCES.get(job.trial.architecture, data.read_bytes)
    job.inputs, job.targets = source(size, job.generator)


def train_step(job: Job, before_update: Callable[[], None]) -> tuple[float, float]:
    """One step on the job's batch; its loss, and the norm of its gradient before clipping."""
    parts = 2 if job.trial.trait == "accumulation" else 1
    total = 0.0
    for inputs, targets in zip(job.inputs.chunk(parts), job.targets.chunk(parts), strict=True):
        with torch.autocast("cpu", torch.bfloat16) if job.trial.trait == "bf16" else contextlib.nullcontext():
            outputs = job.model(inputs)
        loss = functional.cross_entropy(outputs.float().flatten(0, -2), targets.flatten()) * job.loss_factor
        (loss / parts).backward()
        total += float(loss.detach()) / parts
    before_update()
    parameters = [p for p in job.model.parameters() if p.grad is not None]
    limit = job.clip if job.clip is not None else float("inf")
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    if math.isfinite(norm) or not job.skips_nonfinite:
        job.optimizer.step()
    job.optimizer.zero_grad()
    job.scheduler.step()
    return total, norm
