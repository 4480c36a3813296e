"""What the stages of a small pipeline do."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from tests.stacks.merging import parts_of
from tests.stacks.models import Gpt, cross_entropy, sentences
from tests.stacks.sharded_scripts import CONTEXT, SENTENCES, STEPS, Deep, watched_as

SCHEDULES = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}


class First(nn.Module):
    """The embeddings and the first two blocks of a model."""

    def __init__(self, whole: Gpt) -> None:
        super().__init__()
        self.embed, self.position = whole.embed, whole.position
        self.blocks = nn.ModuleList(whole.blocks[:2])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return x


class Last(nn.Module):
    """The rest of it, whose blocks are counted from 0 again."""

    def __init__(self, whole: Gpt) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(whole.blocks[2:])
        self.norm, self.head = whole.norm, whole.head

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Piece(nn.Module):
    """A block of a model, with what lies before the first and behind the last, under the names of the whole."""

    def __init__(self, whole: Gpt, place: int) -> None:
        super().__init__()
        self.is_first, self.is_last = place == 0, place == len(whole.blocks) - 1
        if self.is_first:
            self.embed, self.position = whole.embed, whole.position
        self.blocks = nn.ModuleDict({str(place): whole.blocks[place]})
        if self.is_last:
            self.norm, self.head = whole.norm, whole.head

    def forward(self, x: Tensor) -> Tensor:
        if self.is_first:
            x = self.embed(x) + self.position(torch.arange(x.shape[1]))
        for block in self.blocks.values():
            x = block(x)
        return self.head(self.norm(x)) if self.is_last else x


def interleaved(watched: str) -> dict[str, Any]:
    """Train a model of four pieces on two ranks, each of which has every other one."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    whole = Deep()
    count = len(whole.blocks)
    mine = range(rank, count, world)
    pieces = nn.ModuleList(Piece(whole, place) for place in mine)
    optimizer = torch.optim.AdamW(pieces.parameters(), lr=1e-2)
    monitor = (
        watched_as(
            pieces, optimizer, rename=lambda name: name.partition(".")[2] or name, output="1.head" if rank else None
        )
        if watched != "no"
        else None
    )
    device = torch.device("cpu")
    stages = [PipelineStage(piece, place, count, device) for piece, place in zip(pieces, mine, strict=True)]
    run = ScheduleInterleaved1F1B(stages, n_microbatches=2, loss_fn=cross_entropy)
    losses: list[float] = []
    for ids, targets in sentences(STEPS, batch=SENTENCES, context=CONTEXT):
        found: list[Tensor] = []
        if rank == 0:
            run.step(ids)
        else:
            run.step(target=targets, losses=found)
        optimizer.step()
        optimizer.zero_grad()
        losses += [loss.item() for loss in found]
        if monitor is not None and found:
            monitor.log(loss=sum(found[1:], found[0]).detach() / len(found))
    weights = [p.sum().item() for p in pieces.parameters()]
    if monitor is None:
        return {"losses": losses, "weights": weights}
    coverage = [(e.kind, e.subject, e.family, e.state, e.reason) for e in monitor.coverage()]
    monitor.finish()
    assert monitor.directory is not None
    return {"losses": losses, "weights": weights, "coverage": coverage, "parts": parts_of(monitor.directory)}


def pipeline(schedule: str, watched: str, *, shards: bool = False) -> dict[str, Any]:
    """Train a model in two stages, each on one rank, or sharded over two."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("pp", "dp"))
    stage = mesh.get_local_rank("pp")
    torch.manual_seed(0)
    whole = Deep()
    model = (First, Last)[stage](whole)
    if shards:
        for block in model.blocks:
            fully_shard(block, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    monitor = watched_as(model, optimizer) if watched != "no" else None
    piece = PipelineStage(model, stage, 2, torch.device("cpu"), group=mesh.get_group("pp"))
    run = SCHEDULES[schedule](piece, n_microbatches=2, loss_fn=cross_entropy)
    losses: list[float] = []
    replica, size = mesh.get_local_rank("dp"), SENTENCES // (world // 2)
    for ids, targets in sentences(STEPS, batch=SENTENCES, context=CONTEXT):
        own = slice(replica * size, (replica + 1) * size)
        found: list[Tensor] = []
        if stage == 0:
            run.step(ids[own])
        else:
            run.step(target=targets[own], losses=found)
        optimizer.step()
        optimizer.zero_grad()
        losses += [loss.item() for loss in found]
        if monitor is not None and found:
            monitor.log(loss=sum(found[1:], found[0]).detach() / len(found))
    weights = [
        p.full_tensor().sum().item() if hasattr(p, "full_tensor") else p.sum().item() for p in model.parameters()
    ]
    if monitor is None:
        return {"losses": losses, "weights": weights, "rank": rank}
    coverage = [(e.kind, e.subject, e.family, e.state, e.reason) for e in monitor.coverage()]
    monitor.finish()
    assert monitor.directory is not None
    return {"losses": losses, "weights": weights, "coverage": coverage, "parts": parts_of(monitor.directory)}


def pipeline_of(schedule: str, watched: str, options: dict[str, Any]) -> dict[str, Any]:
    """`pipeline` by positional arguments alone."""
    return pipeline(schedule, watched, **options)
