"""What the ranks of a small group do; every function returns numbers, strings and lists."""

import gc
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import internist
from tests.client.points import read
from tests.stacks.models import Gpt, cross_entropy, sentences

STEPS = 5


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Train on batches of this rank's own."""
    losses = []
    for place, (ids, targets) in enumerate(sentences(STEPS * distributed.get_world_size())):
        if place % distributed.get_world_size() != distributed.get_rank():
            continue
        loss = cross_entropy(model(ids), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def sharded(model: Gpt) -> Gpt:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def fsdp(*, watched: str | None) -> dict[str, Any]:
    """Train a sharded model, watched before or after it was sharded, or not at all."""
    torch.manual_seed(0)
    model = Gpt()
    monitor = _watch(model) if watched == "before" else None
    whole = [weakref.ref(p) for p in model.parameters()]
    sharded(model)
    gc.collect()
    alive = sum(reference() is not None for reference in whole)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if watched == "after":
        monitor = _watch(model, optimizer)
    losses = loop(model, optimizer)
    weights = {name: p.full_tensor().sum().item() for name, p in model.named_parameters()}  # type: ignore[attr-defined]
    return {"losses": losses, "weights": weights, "alive": alive, **_left_by(monitor)}


def fsdp_before() -> dict[str, Any]:
    return fsdp(watched="before")


def fsdp_after() -> dict[str, Any]:
    return fsdp(watched="after")


def fsdp_bare() -> dict[str, Any]:
    return fsdp(watched=None)


def ddp(*, watched: str | None) -> dict[str, Any]:
    """Train a replicated model, watched inside or outside of its wrapper, or not at all."""
    torch.manual_seed(0)
    inner = Gpt()
    optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
    monitor = _watch(inner, optimizer) if watched == "inner" else None
    model = DistributedDataParallel(inner)
    if watched == "wrapper":
        monitor = _watch(model, optimizer)
    squares: list[float] = []
    if watched is None:
        inner.blocks[1].register_forward_hook(lambda _, __, out: squares.append(out.double().square().mean().item()))
    losses = loop(model, optimizer)
    weights = {name: p.sum().item() for name, p in inner.named_parameters()}
    return {"losses": losses, "weights": weights, "squares": squares, **_left_by(monitor)}


def ddp_inner() -> dict[str, Any]:
    return ddp(watched="inner")


def ddp_wrapper() -> dict[str, Any]:
    return ddp(watched="wrapper")


def ddp_bare() -> dict[str, Any]:
    return ddp(watched=None)


def _watch(model: nn.Module, optimizer: Any = None) -> internist.Monitor:
    directory = Path(tempfile.mkdtemp())
    return internist.watch(model, optimizer, every=1, max_overhead=0, mode="offline", directory=directory)


def _left_by(monitor: internist.Monitor | None) -> dict[str, Any]:
    if monitor is None:
        return {}
    coverage = [(e.kind, e.subject, e.state, e.reason) for e in monitor.coverage()]
    monitor.finish()
    assert monitor.directory is not None
    points, _, frames = read(monitor.directory)
    return {"coverage": coverage, "points": points, "steps": [frame.step for frame in frames]}


Script = Callable[[], dict[str, Any]]
