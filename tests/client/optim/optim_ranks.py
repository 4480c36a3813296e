"""What ranks do in the tests of distributed optimizers: run by name in every process of a gang."""

import logging
import logging.handlers
from collections import Counter
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from internist.optim import coefficients
from internist.optim import distributed as optim_distributed
from internist.optim.alignment import BOUNDARY
from internist.optim.core import MatrixOptimizer
from internist.optim.distributed import overwrite, whole
from internist.optim.muon import Muon
from internist.optim.muon_plus_plus import MuonPlusPlus
from internist.optim.newton_schulz import CPU_MULTIPLIES_BFLOAT16
from internist.optim.ownership import held_regions

STEPS = 4
SENDING = ("all_to_all_single", "all_gather_single", "all_gather_into_tensor", "all_reduce")

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.baddbmm_, aten.addmm_, aten.mv, aten.addmv_, aten.dot}

SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "square": ((16, 16), {}),
    "another_square": ((16, 16), {}),
    "wide": ((5, 7), {}),
    "tall": ((13, 6), {}),
    "shorter_than_the_world": ((3, 5), {}),
    "two_rows": ((2, 6), {}),
    "heads": ((12, 4), {"row_blocks": 3}),
    "unequal_heads": ((12, 8), {"row_blocks": (8, 2, 2)}),
    "transposed": ((5, 8), {"layout": "in_out"}),
    "experts": ((6, 4, 5), {}),
    "convolution": ((6, 2, 3, 3), {}),
    "gain": ((7,), {"algorithm": "adamw"}),
    "embedding": ((9, 4), {"algorithm": "adamw"}),
}
"""Names, shapes and group keys. With 4 ranks most do not divide, and some ranks have none of some."""

OPTIMIZERS: dict[str, tuple[type[MatrixOptimizer], dict[str, Any]]] = {
    "bfloat16": (Muon, {"lr": 0.05, "dtype": torch.bfloat16}),
    "float32": (Muon, {"lr": 0.05, "dtype": torch.float32}),
    "no_nesterov": (Muon, {"lr": 0.05, "dtype": torch.float32, "nesterov": False, "maximize": True}),
    "no_decay": (Muon, {"lr": 0.05, "dtype": torch.float32, "weight_decay": 0.0}),
    "lr_tensor": (Muon, {"lr": torch.tensor(0.05), "dtype": torch.float32, "scale": "match_rms_adamw"}),
    **{
        policy: (
            MuonPlusPlus,
            {"lr": 0.05, "dtype": torch.float32, "policy": policy, "audit_every": 2, "initialize": False},
        )
        for policy in ("decay", "cap", "retract", "none")
    },
    "default": (MuonPlusPlus, {"lr": 0.05, "dtype": torch.float32}),
    "initialised": (MuonPlusPlus, {"lr": 0.05, "dtype": torch.float32, "initialize": True, "open_gap": 0.5}),
    "slow": (MuonPlusPlus, {"lr": 0.01, "dtype": torch.float32}),  # a round every fourth step
    "switches": (Muon, {"lr": 0.05, "dtype": torch.float32, "normuon": 0.95, "cautious": True}),
}


def random_values(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, (shape, _) in SHAPES.items()}


def build(kind: str, parameters: dict[str, Tensor], **options: Any) -> MatrixOptimizer:
    """One group for each set of keys, so that matrices of one shape meet in a bucket."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        keys = SHAPES[name][1]
        groups.setdefault(str(keys), {"params": [], **keys})["params"].append((name, parameter))
    constructor, defaults = OPTIMIZERS[kind]
    return constructor(list(groups.values()), **defaults, **options)


@cache
def flat_mesh() -> DeviceMesh:
    """All ranks in a row; made once, since groups of processes are dear."""
    return init_device_mesh("cpu", (distributed.get_world_size(),))


@cache
def square_mesh() -> DeviceMesh:
    """All ranks in two rows."""
    return init_device_mesh("cpu", (2, distributed.get_world_size() // 2), mesh_dim_names=("data", "tensor"))


def placed(layout: str) -> dict[str, Tensor]:
    """The weights as this rank holds them."""
    flat, square = flat_mesh(), square_mesh()
    placements = {
        "rows": (flat, [Shard(0)]),
        "columns": (flat, [Shard(1)]),
        "replicated": (flat, [Replicate()]),
        "hybrid": (square, [Replicate(), Shard(0)]),
        "rows_and_columns": (square, [Shard(0), Shard(1)]),
        "rows_twice": (square, [Shard(0), Shard(0)]),
    }
    parameters: dict[str, Tensor] = {}
    for name, value in random_values(seed=0).items():
        if layout != "plain":
            mesh, placement = placements[layout]
            value = distribute_tensor(value, mesh, _possible(placement, value), src_data_rank=None)
        parameters[name] = nn.Parameter(value)
    return parameters


def _possible(placement: list[Any], value: Tensor) -> list[Any]:
    return [Shard(0) if isinstance(p, Shard) and p.dim >= value.ndim else p for p in placement]


def options_for(layout: str) -> dict[str, Any]:
    return {"process_group": distributed.group.WORLD} if layout == "plain" else {}


def set_gradients(parameters: dict[str, Tensor], number: int, *, without: tuple[str, ...] = ()) -> None:
    for name, value in random_values(seed=1000 + number).items():
        parameters[name].grad = None
        if name not in without:
            gradient = torch.zeros_like(parameters[name])
            overwrite(gradient, value)
            parameters[name].grad = gradient


def advance(
    optimizer: MatrixOptimizer, parameters: dict[str, Tensor], numbers: range, *, without: tuple[str, ...] = ()
) -> None:
    for number in numbers:
        set_gradients(parameters, number, without=without)
        optimizer.step()


@cache
def alone(kind: str, numbers: range = range(STEPS), *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The weights as one process leaves them: the same for every layout."""
    return stepped_alone(kind, numbers, without=without)


def stepped_alone(kind: str, numbers: range = range(STEPS), *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = {name: nn.Parameter(value) for name, value in random_values(seed=0).items()}
    advance(build(kind, parameters), parameters, numbers, without=without)
    return {name: parameter.detach() for name, parameter in parameters.items()}


def differences(parameters: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    return {name: (whole(parameters[name].detach()) - wanted[name]).abs().max().item() for name in wanted}


# -- what tests ask for


def steps_like_one_process(kind: str, layout: str) -> dict[str, float]:
    parameters = placed(layout)
    advance(build(kind, parameters, **options_for(layout)), parameters, range(STEPS))
    return differences(parameters, alone(kind))


class Products(TorchDispatchMode):
    """Counts products by what their rounding may depend on: shapes, strides, and how operands lie to a boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            self.seen[f"{func.overloadpacket} {[_place(x) for x in args if isinstance(x, Tensor)]}"] += 1
        return func(*args, **(kwargs or {}))


def _place(x: Tensor) -> tuple[list[tuple[int, int]], int]:
    """Sides with their strides, which of a single entry is no matter, and the distance to a boundary."""
    return [(size, stride if size > 1 else 0) for size, stride in zip(x.shape, x.stride(), strict=True)], (
        x.data_ptr() % BOUNDARY
    )


def products(kind: str, layout: str) -> tuple[Counter[str], Counter[str]]:
    """The products of this rank's steps, and those of one process."""
    parameters = placed(layout)
    optimizer = build(kind, parameters, **options_for(layout))
    with Products() as here:
        advance(optimizer, parameters, range(STEPS))
    return here.seen, products_alone(kind)


@cache
def products_alone(kind: str) -> Counter[str]:
    with Products() as one_process:
        stepped_alone(kind)
    return one_process.seen


def trains_like_one_process(kind: str, how: str) -> list[float]:
    """Greatest difference of each weight after real backward passes through real modules."""
    world, rank = distributed.get_world_size(), distributed.get_rank()
    reference, model = _mlp(), _mlp()
    options: dict[str, Any] = {}
    if how == "ddp":
        options["process_group"] = distributed.group.WORLD
        module: nn.Module = DistributedDataParallel(model)
    else:
        module = model
        flat, square = flat_mesh(), square_mesh()
        if how in ("tensor", "data_and_tensor"):
            mesh = flat if how == "tensor" else square["tensor"]
            parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        if how != "tensor":
            mesh = {"sharded": flat, "hybrid": square, "data_and_tensor": square["data"]}[how]
            for layer in model:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
    share = {"tensor": 1, "data_and_tensor": 2}.get(how, world)
    part = {"tensor": 0, "data_and_tensor": rank // (world // 2)}.get(how, rank)
    generator = torch.Generator()
    mine = slice(part, None, share)
    for trained, used, take, given in ((reference, reference, slice(None), {}), (model, module, mine, options)):
        generator.manual_seed(3)
        constructor, defaults = OPTIMIZERS[kind]
        optimizer = constructor(_mlp_groups(trained), **defaults, **given)
        for _ in range(STEPS):
            inputs, targets = torch.randn(128, 12, generator=generator), torch.randn(128, 9, generator=generator)
            loss = (used(inputs[take]) - targets[take]).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return [(whole(found.detach()) - wanted).abs().max().item() for found, wanted in pairs]


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 14, bias=False), nn.Tanh(), nn.Linear(14, 9))


def _mlp_groups(model: nn.Module) -> list[dict[str, Any]]:
    parameters = list(model.named_parameters())
    return [
        {"params": [(name, p) for name, p in parameters if p.ndim == 2]},
        {"params": [(name, p) for name, p in parameters if p.ndim != 2], "algorithm": "adamw"},
    ]


def without_gradients(layout: str, everywhere: list[str], on_one_rank: list[str]) -> tuple[dict[str, float], list[str]]:
    """Step with gradients missing on all ranks or on the last alone; differences from skipping those, and the log."""
    parameters = placed(layout)
    optimizer = build("float32", parameters, **options_for(layout))
    records: SimpleQueue[Any] = SimpleQueue()
    log = logging.getLogger("internist.optim")
    handler = logging.handlers.QueueHandler(records)
    log.addHandler(handler)
    is_last = distributed.get_rank() == distributed.get_world_size() - 1
    missing = tuple(everywhere + (on_one_rank if is_last else []))
    advance(optimizer, parameters, range(2), without=missing)
    log.removeHandler(handler)
    lines = [records.get().getMessage() for _ in range(records.qsize())]
    return differences(parameters, alone("float32", range(2), without=(*everywhere, *on_one_rank))), lines


def steps_without_any_gradient(layout: str) -> float:
    parameters = placed(layout)
    optimizer = build("float32", parameters, **options_for(layout))
    optimizer.step()
    return max(differences(parameters, random_values(seed=0)).values())


def orthogonalised(kind: str, layout: str) -> list[tuple[int, ...]]:
    """Shapes of the matrices that this rank orthogonalised in one step."""
    seen: list[tuple[int, ...]] = []
    parameters = placed(layout)
    optimizer = build(kind, parameters, **options_for(layout))
    made = optimizer._orthogonalized

    def note(bucket: Any, direction: Tensor) -> Tensor:
        seen.extend([tuple(direction.shape[1:])] * direction.shape[0])
        return made(bucket, direction)

    optimizer._orthogonalized = note  # type: ignore[method-assign]
    advance(optimizer, parameters, range(1))
    return seen


def collectives(kind: str, layout: str) -> dict[str, int]:
    """How often each collective ran in one step."""
    parameters = placed(layout)
    optimizer = build(kind, parameters, **options_for(layout))
    advance(optimizer, parameters, range(1))
    set_gradients(parameters, 1)
    with CommDebugMode() as mode:
        optimizer.step()
    return {str(operation).split(".")[-1]: count for operation, count in mode.get_comm_counts().items()}


LARGE: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "square": ((320, 320), {}),
    "fused": ((640, 320), {"row_blocks": 2}),
    "transposed": ((320, 336), {"layout": "in_out"}),
}


def large_steps(kind: str, layout: str) -> tuple[list[int], float]:
    """Bytes that this rank hands to collectives in each of five steps, and the difference from one process, which the
    first rank finds."""
    mesh = square_mesh() if layout in ("hybrid", "rows_and_columns") else flat_mesh()
    placement = {"rows": [Shard(0)], "hybrid": [Replicate(), Shard(0)], "rows_and_columns": [Shard(0), Shard(1)]}[
        layout
    ]
    counted: list[int] = []
    plain = {name: getattr(distributed, name) for name in SENDING if hasattr(distributed, name)}

    def counting(name: str) -> Any:
        def send(*args: Any, **options: Any) -> Any:
            tensors = [value for value in args if isinstance(value, Tensor)]
            counted[-1] += tensors[-1].numel() * tensors[-1].element_size()
            return plain[name](*args, **options)

        return send

    results = []
    for is_sharded in (True, False) if kind == "slow" and distributed.get_rank() == 0 else (True,):
        generator = torch.Generator().manual_seed(0)

        def value(
            shape: tuple[int, ...], is_sharded: bool = is_sharded, numbers: torch.Generator = generator
        ) -> Tensor:
            whole_value = torch.randn(shape, generator=numbers)
            return distribute_tensor(whole_value, mesh, placement, src_data_rank=None) if is_sharded else whole_value

        parameters = [nn.Parameter(value(shape)) for shape, _ in LARGE.values()]
        constructor, defaults = OPTIMIZERS[kind]
        groups = [{"params": [p], **keys} for p, (_, keys) in zip(parameters, LARGE.values(), strict=True)]
        optimizer = constructor(groups, **defaults)
        for name in plain:
            setattr(distributed, name, counting(name))
        try:
            for _ in range(5):
                counted.append(0)
                for parameter, (shape, _) in zip(parameters, LARGE.values(), strict=True):
                    parameter.grad = value(shape)
                optimizer.step()
        finally:
            for name, function in plain.items():
                setattr(distributed, name, function)
        results.append([whole(parameter.detach()) for parameter in parameters])
    return counted[:5], max(
        (one - other).abs().max().item() for one, other in zip(results[0], results[-1], strict=True)
    )


def collectives_and_seen(kind: str, layout: str) -> tuple[dict[str, int], list[tuple[int, ...]], int]:
    """The same of a step of which rank 0 asks to see whole matrices; shapes of those it sees, and how many are shown to
    somebody once all are written to again."""
    parameters = placed(layout)
    optimizer = build(kind, parameters, **options_for(layout))
    advance(optimizer, parameters, range(1))
    set_gradients(parameters, 1)
    seen: list[tuple[int, ...]] = []
    if distributed.get_rank() == 0:
        optimizer.request_whole(parameters.values(), lambda shown: seen.extend(tuple(w.update.shape) for w in shown))
    with CommDebugMode() as mode:
        optimizer.step()
    for index, parameter in enumerate(parameters.values()):
        (parameter if index % 2 else parameter.to_local()).detach().mul_(0.5)
    counts = {str(operation).split(".")[-1]: count for operation, count in mode.get_comm_counts().items()}
    return counts, seen, len(optimizer.shown_whole())


def in_small_rounds(layout: str, entries: int) -> tuple[int, float]:
    """Number of rounds, and the difference they make."""
    kept, optim_distributed.ROUND = optim_distributed.ROUND, entries
    try:
        parameters = placed(layout)
        optimizer = build("float32", parameters, **options_for(layout))
        advance(optimizer, parameters, range(STEPS))
        rounds = len(optimizer.exchange._teams[0].rounds)  # type: ignore[attr-defined]
    finally:
        optim_distributed.ROUND = kept
    return rounds, max(differences(parameters, alone("float32")).values())


def with_a_group_added(layout: str) -> float:
    """Start with half of the parameters, add the others after two steps; the difference from one process."""
    results = []
    for parameters, options in (
        ({name: nn.Parameter(value) for name, value in random_values(seed=0).items()}, {}),
        (placed(layout), options_for(layout)),
    ):
        first = {name: p for name, p in parameters.items() if "square" in name}
        optimizer = build("float32", first, **options)
        advance(optimizer, parameters, range(2))
        optimizer.add_param_group({"params": [("wide", parameters["wide"])]})
        optimizer.add_param_group({"params": [("tall", parameters["tall"])]})
        advance(optimizer, parameters, range(2, 4))
        results.append(parameters)
    return max(differences(results[1], {name: p.detach() for name, p in results[0].items()}).values())


def in_pairs() -> float:
    """Two meshes of two dimensions, each over half of the ranks, as pipeline stages have."""
    mesh = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("stage", "data", "tensor"))["data", "tensor"]
    parameters: dict[str, Tensor] = {
        name: nn.Parameter(distribute_tensor(value, mesh, _possible([Shard(0), Shard(1)], value), src_data_rank=None))
        for name, value in random_values(seed=0).items()
    }
    advance(build("float32", parameters), parameters, range(STEPS))
    return max(differences(parameters, alone("float32")).values())


def with_partial_gradients() -> float:
    """Gradients that are sums not yet taken, and replicated ones, of sharded weights."""
    world = distributed.get_world_size()
    parameters = placed("rows")
    optimizer = build("float32", parameters)
    for number in range(STEPS):
        for index, (name, value) in enumerate(random_values(seed=1000 + number).items()):
            mesh = parameters[name].device_mesh
            if index % 2 or SHAPES[name][1].get("algorithm") == "adamw":
                gradient = distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
            elif index % 4:
                gradient = distribute_tensor(value, mesh, [Replicate()], src_data_rank=None)
            else:
                gradient = DTensor.from_local(value / world, mesh, [Partial()])
            parameters[name].grad = gradient
        optimizer.step()
    return max(differences(parameters, alone("float32")).values())


def told(kind: str, layout: str) -> dict[str, list[str]]:
    """Which metrics this rank tells of which parameter."""
    parameters = placed(layout)
    optimizer = build(kind, parameters, **options_for(layout))
    set_gradients(parameters, 0)
    optimizer.request_diagnostics()
    optimizer.step()
    names = {parameter: name for name, parameter in parameters.items()}
    return {names[parameter]: sorted(metrics) for parameter, metrics in optimizer.diagnostics().items()}


def momenta_stay_sharded(layout: str) -> bool:
    parameters = placed(layout)
    optimizer = build("decay", parameters)
    advance(optimizer, parameters, range(1))
    return all(
        isinstance(state["momentum_buffer"], DTensor) and state["momentum_buffer"].placements == parameter.placements
        for parameter, state in optimizer.state.items()
        if "momentum_buffer" in state
    )


class Weights(nn.Module):
    """The parameters as a module, which is what checkpoints are made of."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)  # type: ignore[arg-type]


def save(kind: str, layout: str, folder: str) -> None:
    """Two steps, then a checkpoint."""
    parameters = placed(layout)
    optimizer = build(kind, parameters, **options_for(layout))
    advance(optimizer, parameters, range(2))
    if layout == "plain":
        if distributed.get_rank() == 0:
            state = {"weights": Weights(parameters).state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, Path(folder) / "state.pt")
        return
    weights, state = get_state_dict(Weights(parameters), optimizer)
    checkpoint.save({"weights": weights, "optimizer": state}, checkpoint_id=folder)


def resume(kind: str, layout: str, folder: str) -> dict[str, float]:
    """Two steps more from the checkpoint; the differences from one process that never stopped."""
    parameters = placed(layout)
    for parameter in parameters.values():
        parameter.detach().mul_(-1.0)
    optimizer = build(kind, parameters, **options_for(layout))
    module = Weights(parameters)
    if layout == "plain":
        state = torch.load(Path(folder) / "state.pt")
        module.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
    else:
        weights, state = get_state_dict(module, optimizer)
        loaded = {"weights": weights, "optimizer": state}
        checkpoint.load(loaded, checkpoint_id=folder)
        set_state_dict(module, optimizer, model_state_dict=loaded["weights"], optim_state_dict=loaded["optimizer"])
    advance(optimizer, parameters, range(2, STEPS))
    return differences(parameters, alone(kind))


def regions_are_torchs(size: int) -> bool:
    """Whether every placement of a (size, 5) parameter holds here what our regions say."""
    world = distributed.get_world_size()
    flat, square = flat_mesh(), square_mesh()
    value = torch.arange(size * 5.0).view(size, 5)
    claims = []
    for mesh, placements in (
        (flat, [Shard(0)]),
        (flat, [Shard(1)]),
        (square, [Shard(0), Shard(1)]),
        (square, [Shard(1), Shard(0)]),
        (square, [Shard(0), Shard(0)]),
        (square, [_StridedShard(0, split_factor=world // 2), Shard(0)]),
        (square, [_StridedShard(0, split_factor=world // 2), Replicate()]),
    ):
        sharded = distribute_tensor(value, flat, [Replicate()], src_data_rank=None)
        if mesh is square:
            sharded = distribute_tensor(value, mesh, [Replicate(), Replicate()], src_data_rank=None)
        sharded = sharded.redistribute(mesh, placements)
        region = held_regions(value.shape, mesh, placements)[distributed.get_rank()]
        claims.append(torch.equal(region.cut(value), sharded.to_local()))
    return all(claims)


def message_of(what: str) -> str:
    """What an error says."""
    try:
        if what == "partial":
            held_regions((4, 4), flat_mesh(), [Partial()])
        elif what == "sparse":
            parameter = nn.Parameter(torch.ones(4, 4))
            parameter.grad = torch.ones(4, 4).to_sparse()
            Muon([parameter], process_group=distributed.group.WORLD).step()
        elif what == "two_kinds":
            coefficients.CPU_MULTIPLIES_BFLOAT16 = distributed.get_rank() == 0
            try:
                Muon([nn.Parameter(torch.ones(4, 4))], process_group=distributed.group.WORLD).step()
            finally:
                coefficients.CPU_MULTIPLIES_BFLOAT16 = CPU_MULTIPLIES_BFLOAT16
        elif what == "plain":
            parameters = placed("rows")
            optimizer = build("float32", parameters)
            set_gradients(parameters, 0)
            parameters["square"].grad = torch.ones(16, 16)
            optimizer.step()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
