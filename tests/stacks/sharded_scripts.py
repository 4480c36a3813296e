"""What the ranks of a small group do with sharded models, and what one process does with the same model and batches."""

import logging
import logging.handlers
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, distributed, linalg, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

import internist
from internist.optim import Muon, MuonPlusPlus, split_parameters
from internist.optim.core import MatrixOptimizer
from tests.stacks.merging import Parts, parts_of
from tests.stacks.models import HEADS, WIDTH, Attention, Block, Core, Gpt, Mlp, cross_entropy, fused, sentences

STEPS = 4
SENTENCES, CONTEXT = 4, 4
"""Of each step, over all ranks: so few tokens that a probe has them all, on one rank as on several."""


class LocalAttention(nn.Module):
    """Attention that works with as many heads as its projections give."""

    def __init__(self, core: Core = fused) -> None:
        super().__init__()
        self.core = core
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, context = x.shape[:2]
        q, k, v = (f(x).view(batch, context, -1, WIDTH // HEADS).transpose(1, 2) for f in (self.q, self.k, self.v))
        out: Tensor = self.proj(self.core(q, k, v).transpose(1, 2).flatten(2))
        return out


class Deep(Gpt):
    """A model of four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks.extend([Block(Attention(), Mlp()), Block(Attention(), Mlp())])


class Odd(nn.Module):
    """A model of which no dimension is a multiple of the number of ranks, and one parameter has a single entry."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 3, bias=False))
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * self.gain
        return out


def language(model: nn.Module, step: int, part: slice) -> Tensor:
    """The loss of some of a step's sentences."""
    ids, targets = list(sentences(STEPS, batch=SENTENCES, context=CONTEXT))[step]
    return cross_entropy(model(ids[part]), targets[part])


def odd(model: nn.Module, step: int, part: slice) -> Tensor:
    """The loss of some of a step's vectors."""
    x = torch.randn(SENTENCES, 7, generator=torch.Generator().manual_seed(step))
    loss: Tensor = model(x[part]).square().mean()
    return loss


Loss = Callable[[nn.Module, int, slice], Tensor]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all that matters not."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


OPTIMIZERS: dict[str, tuple[type[MatrixOptimizer], dict[str, Any]]] = {
    "muon": (Muon, {"lr": 0.02, "weight_decay": 0.0}),
    "decayed": (Muon, {"lr": 0.02, "weight_decay": 0.1}),
    "muon++": (MuonPlusPlus, {"lr": 0.02, "initialize": False}),
}


def of_matrices(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of hidden matrices, which steps them in float32."""
    constructor, options = OPTIMIZERS[kind]
    return constructor(split_parameters(model), dtype=torch.float32, **options)


def trained(
    model: nn.Module,
    loss_of: Loss,
    *,
    watched: str,
    shard: Callable[[nn.Module], object],
    reduces: bool = False,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
) -> dict[str, Any]:
    """Losses, final weights, and what a monitor recorded that watched `before` or `after` sharding, or not at all."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    size = SENTENCES // world
    more = {"distributed": "reduce"} if reduces else {}
    monitor = watched_as(model, **more) if watched == "before" else None
    shard(model)
    optimizer = optimizer_of(model)
    if watched == "after":
        monitor = watched_as(model, optimizer, **more)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step, slice(rank * size, (rank + 1) * size))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        settle(monitor)
    whole = {name: _whole(p).double() for name, p in model.named_parameters()}
    found: dict[str, Any] = {
        "losses": losses,
        "weights": [weight.sum().item() for weight in whole.values()],
        "names": list(whole),
        "squares": [weight.square().mean().item() for weight in whole.values()],
        "norms": {name: linalg.matrix_norm(w, 2).item() for name, w in whole.items() if w.dim() == 2},
    }
    if monitor is not None:
        coverage = [(e.kind, e.subject, e.family, e.state, e.reason) for e in monitor.coverage()]
        monitor.finish()
        assert monitor.directory is not None
        found |= {"parts": parts_of(monitor.directory), "coverage": coverage}
    return found


def settle(monitor: internist.Monitor | None) -> None:
    """Let what ranks work out together come to its end: steps as short as these would leave some out."""
    reduction = monitor._observer._reduction if monitor is not None and monitor._observer is not None else None
    assert reduction is None or reduction.is_idle.wait(60.0)


def alone(kind: str, optimizer: str | None = None) -> Parts:
    """One process on the whole batch."""
    model, loss_of = _model(kind)
    more = {} if optimizer is None else {"optimizer_of": partial(of_matrices, optimizer)}
    parts: Parts = trained(model, loss_of, watched="after", shard=lambda _: None, **more)["parts"]
    return parts


def fsdp(
    kind: str = "language",
    watched: str = "after",
    *,
    hybrid: bool = False,
    reshards: bool | None = None,
    offloads: bool = False,
    narrow: bool = False,
    columns: bool = False,
    optimizer: str | None = None,
    reduces: bool = False,
) -> dict[str, Any]:
    """A model whose blocks and root are sharded."""
    world = distributed.get_world_size()
    mesh = (
        init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "fs"))
        if hybrid
        else init_device_mesh("cpu", (world,))
    )
    more: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": reshards}
    if offloads:
        more["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    if narrow:
        more["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if columns:
        from torch.distributed.tensor import Shard

        more["shard_placement_fn"] = lambda p: Shard(p.dim() - 1)

    def shard(model: nn.Module) -> None:
        for block in getattr(model, "blocks", ()):
            fully_shard(block, **more)
        fully_shard(model, **more)

    model, loss_of = _model(kind)
    optimizer_of = adamw if optimizer is None else partial(of_matrices, optimizer)
    return trained(model, loss_of, watched=watched, shard=shard, reduces=reduces, optimizer_of=optimizer_of)


def _model(kind: str) -> tuple[nn.Module, Loss]:
    torch.manual_seed(0)
    kinds: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
        "language": (Gpt, language),
        "deep": (Deep, language),
        "heads": (lambda: Gpt(LocalAttention), language),
        "odd": (Odd, odd),
    }
    make, loss_of = kinds[kind]
    return make(), loss_of


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.detach()


def watched_as(model: nn.Module, optimizer: Any = None, **more: Any) -> internist.Monitor:
    """Watch every step of a model, offline."""
    return internist.watch(
        model, optimizer, every=1, max_overhead=0, mode="offline", directory=Path(tempfile.mkdtemp()), **more
    )


def replicated(corrupted_at: int) -> dict[str, Any]:
    """Replicas in a wrapper; after one step the last rank's weights lose a bit."""
    model, loss_of = _model("language")
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    with watched_as(wrapped, optimizer) as monitor:
        for step in range(STEPS):
            loss_of(wrapped, step, slice(rank, rank + 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == corrupted_at and rank == world - 1:
                weight = next(model.parameters()).detach().view(torch.int32)
                weight.view(-1)[3].bitwise_xor_(1)
    assert monitor.directory is not None
    return {"parts": parts_of(monitor.directory)}


def left_by_one(watched: bool) -> dict[str, Any]:
    """A sharded model of which rank 1 stops watching after the first step, while it goes on training."""
    model, loss_of = _model("language")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = adamw(model)
    monitor = watched_as(model, optimizer, distributed="reduce") if watched else None
    said: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = logging.handlers.QueueHandler(said)
    logging.getLogger("internist").addHandler(handler)
    losses = []
    for step in range(STEPS):
        loss = loss_of(model, step, slice(2 * rank, 2 * rank + 2))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        settle(monitor)
        if rank == 1 and step == 0 and monitor is not None:
            monitor.finish()
    logging.getLogger("internist").removeHandler(handler)
    found: dict[str, Any] = {"losses": losses, "weights": [_whole(p).sum().item() for p in model.parameters()]}
    if monitor is not None:
        monitor.finish()
        assert monitor.directory is not None
        records = [said.get() for _ in range(said.qsize())]
        told = [record.getMessage() for record in records if "works nothing out" in record.getMessage()]
        found |= {"parts": parts_of(monitor.directory), "warnings": told}
    return found


def fsdp_of(kind: str, watched: str, options: dict[str, Any]) -> dict[str, Any]:
    """`fsdp` by positional arguments alone, as a group's ranks are given them."""
    return fsdp(kind, watched, **options)
