"""What the ranks of a small group do with a model whose layers are cut over them."""

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from tests.stacks.merging import parts_of
from tests.stacks.models import Gpt, cross_entropy, sentences
from tests.stacks.sharded_scripts import CONTEXT, SENTENCES, STEPS, LocalAttention, settle, watched_as


def tensor_parallel(
    watched: str,
    *,
    sequence: bool = False,
    vocabulary: bool = False,
    shards: bool = False,
    reduces: bool = False,
) -> dict[str, Any]:
    """Train the model with its layers cut: columns, then rows; with norms on pieces of the sequence, with logits that
    stay cut, on ranks that shard it besides."""
    world = distributed.get_world_size()
    mesh = init_device_mesh("cpu", (2 if shards else 1, world // (2 if shards else 1)), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    model = Gpt(LocalAttention)
    whole = Replicate()
    entry = {"norm1": SequenceParallel(), "norm2": SequenceParallel()} if sequence else {}
    rows = RowwiseParallel(output_layouts=Shard(1)) if sequence else RowwiseParallel()
    for block in model.blocks:
        plan: dict[str, Any] = {
            **entry,
            **{f"attn.{name}": ColwiseParallel() for name in ("q", "k", "v")},
            "attn.proj": rows,
            "mlp.0": ColwiseParallel(),
            "mlp.2": rows,
        }
        if sequence:
            for branch in ("attn", "mlp"):
                plan[branch] = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=whole)
        parallelize_module(block, mesh["tp"], plan)
    plan = {"embed": RowwiseParallel(input_layouts=whole, output_layouts=Shard(1) if sequence else whole)}
    if sequence:
        plan["position"] = RowwiseParallel(input_layouts=whole, output_layouts=Shard(0))
        plan["norm"] = SequenceParallel()
    plan["head"] = ColwiseParallel(
        input_layouts=Shard(1) if sequence else whole,
        output_layouts=Shard(-1) if vocabulary else whole,
        use_local_output=not vocabulary,
    )
    parallelize_module(model, mesh["tp"], plan)
    if shards:
        for block in model.blocks:
            fully_shard(block, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    more = {"distributed": "reduce"} if reduces else {}
    monitor = watched_as(model, optimizer, **more) if watched != "no" else None
    losses = []
    size, replica = SENTENCES // mesh.size(0), mesh.get_local_rank("dp")
    for ids, targets in sentences(STEPS, batch=SENTENCES, context=CONTEXT):
        own = slice(replica * size, (replica + 1) * size)
        logits = model(ids[own])
        if vocabulary:
            with loss_parallel():
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets[own].flatten())
                loss.backward()
            loss = loss.full_tensor()
        else:
            loss = cross_entropy(logits, targets[own])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        settle(monitor)
    weights = [
        p.full_tensor().sum().item() if hasattr(p, "full_tensor") else p.sum().item() for p in model.parameters()
    ]
    if monitor is None:
        return {"losses": losses, "weights": weights}
    coverage = [(e.kind, e.subject, e.family, e.state, e.reason) for e in monitor.coverage()]
    monitor.finish()
    assert monitor.directory is not None
    return {"losses": losses, "weights": weights, "coverage": coverage, "parts": parts_of(monitor.directory)}


def tensor_parallel_of(watched: str, options: dict[str, Any]) -> dict[str, Any]:
    """`tensor_parallel` by positional arguments alone."""
    return tensor_parallel(watched, **options)
