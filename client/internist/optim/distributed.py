"""Stepping matrices together with other ranks: whole matrices only, each orthogonalised by one rank, its owner.

    replicas   (`process_group=`, DistributedDataParallel) every rank has every matrix; owners share what they made
    shards     (DTensor: FSDP2, hybrid, tensor parallel, both) shards of the direction go to their owners in one
               all-to-all and shards of the result come back in another; momenta stay where they are

Every rank takes part in every collective of its group, whatever it owns or holds. Before anything else the ranks of a
group agree which matrices step: those that have a gradient on every rank. Where only some ranks have one, none steps
that matrix (part of a gradient is another gradient), and a warning names it once. Agreement costs one all-reduce of
four bytes per matrix that the host reads: over a CPU backend where the group has one ("cpu:gloo,cuda:nccl", torch's
default), else on the device, which then waits for it.

Ranks must have in common what torch's own tools demand: the same parameters in the same groups in the same order, and
the same hyperparameters. Plain tensors that are shards without saying so (Megatron-LM's) look like small matrices of
their own and are out of scope: wrap them with `DTensor.from_local`.

`diagnostics()` tells of what this rank owns: orthogonality is measured where whole matrices are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from internist.optim import shared_rounds
from internist.optim.alignment import aligned
from internist.optim.bucket import Bucket, Group, fits
from internist.optim.core import Alone, MatrixOptimizer
from internist.optim.matrices import matrix_views
from internist.optim.ownership import Region, held_regions, replicated_region
from internist.optim.shared_rounds import Held
from internist.optim.team import Job, Owners, Team
from internist.optim.whole import BOTH, CHANGE, NEITHER, Side, Views, Whole

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RANKS_OWN = ("step", "momentum_buffer")
"""State that every rank keeps for itself; the rest of a parameter's state is what its owner says."""

Regions = dict[Any, dict[int, Region]]
"""What every rank holds, by global rank, of parameters of one shape, mesh and placement."""

ROUND = 2**26
"""Entries per rank that are on their way at once: what bounds the memory of the buffers."""


@dataclass(slots=True, eq=False)
class Shard(Bucket):
    """This rank's part of one parameter, of any shape: for what is done entry by entry."""

    matrix_shape: tuple[int, int] = field(kw_only=True)

    @property
    def is_flat(self) -> bool:
        """No: a part of any shape stays as it is."""
        return False

    @property
    def fan_out(self) -> int:
        """Of the whole matrix."""
        return self.matrix_shape[0]

    @property
    def fan_in(self) -> int:
        """Of the whole matrix."""
        return self.matrix_shape[1]


class Ranks:
    """The exchange among ranks: see the module."""

    def __init__(self, process_group: "ProcessGroup | None") -> None:
        self._replicas = process_group
        self._alone = Alone()
        self._mesh_groups: dict[tuple[int, ...], ProcessGroup | None] = {}
        self._teams: list[Team] = []
        self._known: list[tuple[Any, ...]] = []

    def run(self, optimizer: MatrixOptimizer, groups: Sequence[Group]) -> None:
        """Step with every team what it shares, then what this rank has to itself."""
        for team in self._teams_of(optimizer, groups):
            agreed, asked = team.agreed(asks=optimizer._looks_on)
            for owners in team.rounds:
                _step(team, optimizer, {job: owner for job, owner in owners.items() if job in agreed}, asked=asked)
        if self._replicas is None:
            own = [group | {"params": [p for p in group["params"] if not isinstance(p, DTensor)]} for group in groups]
            self._alone.run(optimizer, own)

    def _teams_of(self, optimizer: MatrixOptimizer, groups: Sequence[Group]) -> list[Team]:
        """The teams of the groups as they are now, in the order of their first parameter, which all ranks share."""
        shared = [
            (parameter, group)
            for group in groups
            for parameter in group["params"]
            if self._replicas is not None or isinstance(parameter, DTensor)
        ]
        known = [(id(parameter), id(group), group["layout"], group["row_blocks"]) for parameter, group in shared]
        if known != self._known:
            teams: dict[tuple[int, ...], Team] = {}
            regions: Regions = {}
            for parameter, group in shared:
                ranks = self._ranks_of(parameter)
                if ranks not in teams:
                    teams[ranks] = Team(self._group_of(parameter, ranks), list(ranks))
                teams[ranks].jobs.append(_job(optimizer, parameter, group, ranks, regions))
            for team in teams.values():
                team.assign(ROUND)
                team.check_arithmetic()
            self._known, self._teams = known, list(teams.values())
            optimizer._forget()
        return self._teams

    def _ranks_of(self, parameter: Tensor) -> tuple[int, ...]:
        if isinstance(parameter, DTensor):
            return tuple(sorted(parameter.device_mesh.mesh.flatten().tolist()))
        return tuple(distributed.get_process_group_ranks(self._replicas))

    def _group_of(self, parameter: Tensor, ranks: tuple[int, ...]) -> "ProcessGroup | None":
        """The process group of a parameter's ranks; for a mesh of several dimensions, one made here if need be."""
        if not isinstance(parameter, DTensor):
            return self._replicas
        mesh = parameter.device_mesh
        if mesh.ndim == 1 and distributed.get_process_group_ranks(mesh.get_group()) == list(ranks):
            return mesh.get_group()
        if len(ranks) == distributed.get_world_size():
            return distributed.group.WORLD
        if ranks not in self._mesh_groups:
            self._mesh_groups[ranks] = distributed.new_group(list(ranks), use_local_synchronization=True)
        return self._mesh_groups[ranks]


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, on every rank of its mesh: a copy of a DTensor's (a collective), else the tensor itself."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def is_zero(parameter: Tensor) -> bool:
    """Whether all of it is zero: the same answer on every rank of a DTensor's mesh (a collective)."""
    found = _local(parameter.detach()).any().to(torch.int32)  # DTensor's own `any` answers for the local shard
    if isinstance(parameter, DTensor):
        for dimension in range(parameter.device_mesh.ndim):
            group = parameter.device_mesh.get_group(dimension)
            distributed.all_reduce(found, distributed.ReduceOp.MAX, group=group)
    return not bool(found)


def overwrite(parameter: Tensor, value: Tensor) -> None:
    """Copy this rank's part of a value, which is whole on every rank, into the parameter. No communication."""
    if isinstance(parameter, DTensor):
        region = held_regions(parameter.shape, parameter.device_mesh, parameter.placements)[distributed.get_rank()]
        parameter.to_local().copy_(region.cut(value))
    else:
        parameter.copy_(value)


def _job(optimizer: MatrixOptimizer, parameter: Tensor, group: Group, ranks: Sequence[int], regions_of: Regions) -> Job:
    is_local = False
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        key = (tuple(parameter.shape), mesh, placements)
        if key not in regions_of:
            regions_of[key] = held_regions(parameter.shape, mesh, placements)
        held = regions_of[key]
        regions = [held[rank] for rank in ranks]
        places = product(*(range(size) for size in mesh.mesh.shape))
        coordinates = dict(zip(mesh.mesh.flatten().tolist(), places, strict=True))
        replicated = [dim for dim, placement in enumerate(placements) if placement.is_replicate()]
        copies = [tuple(coordinates[rank][dim] for dim in replicated) for rank in ranks]
        is_stack = parameter.ndim == 3 and group["layout"] != "conv"
        is_local = is_stack and all(getattr(placement, "dim", None) == 0 for placement in placements)
        here, local = held[distributed.get_rank()], parameter.to_local()
        if here.shape != tuple(local.shape):
            raise ValueError(f"expected {here.shape} here of {placements}, got {tuple(local.shape)}")
    else:
        regions = [replicated_region(parameter.shape)] * len(ranks)
        copies = [(rank,) for rank in ranks]
    like = torch.empty(parameter.shape, device="meta")
    shapes = [(view.shape[0], view.shape[1], view.shape[2]) for view in matrix_views(like, like, group)]
    # a shard is written with one scale: matrices of several shapes are written by their owner
    writes_whole = optimizer.writes_whole or len({shape[1:] for shape in shapes}) > 1
    names = dict(zip(map(id, group["params"]), group.get("param_names") or (), strict=False))
    name = names.get(id(parameter))
    # what is kept of rows is kept by an owner
    is_local = is_local and not writes_whole and group.get("normuon") is None
    shares = (
        optimizer.writes_whole and len(shapes) == 1 and shared_rounds.suits(parameter, group, shapes[0], len(ranks))
    )
    return Job(parameter, name, group, regions, copies, shapes, writes_whole, is_local, shares)


def _step(team: Team, optimizer: MatrixOptimizer, jobs: Owners, *, asked: bool) -> None:
    """Step parameters that all ranks agreed on: every rank makes every collective here, in the same order.

    Args:
        asked: whether some rank wants to look at whole matrices: their weights travel then.
    """
    shards = {job: _shard(job, optimizer) for job in jobs}
    shared = {job: owner for job, owner in jobs.items() if not job.is_local}
    directions: dict[Job, Tensor] = {}
    for job, shard in shards.items():
        if job.is_replicated and jobs[job] != team.me:
            optimizer._accumulate(shard)
        else:
            directions[job] = optimizer._direction(shard)
    wholes = {
        job
        for job in shared
        if job.writes_whole
        and (
            job.is_replicated
            or job.is_mixed
            or optimizer._needs_whole(shards[job], shares=job.shares)
            or (asked and optimizer._may_show(shards[job], shares=job.shares))
        )
    }
    weights = {job: shards[job].weights[0] for job in shared if job in wholes}

    whole_directions = team.gather(shared, {job: directions[job] for job in shared if job in directions})
    whole_weights = team.gather(shared, weights)
    local = {job: d for job, d in directions.items() if job.is_local and d.numel()}
    views = optimizer._views
    sides = {} if views is None else _shown(views, optimizer, {job: shards[job] for job in shared}, wholes)
    before = {job: weight.clone() for job, weight in whole_weights.items() if sides.get(job)}
    _compute(optimizer, whole_directions | local, whole_weights)
    if views is not None:
        changes = {job: whole_weights[job].float() - weight.float() for job, weight in before.items()}
        for job, d in whole_directions.items():
            length = optimizer._change_of(shards[job]) if sides.get(job) == CHANGE else None
            if length is not None:
                changes[job] = d.float() * length
        views.show([Whole(job.parameter, whole_weights.get(job), change) for job, change in changes.items()])

    dtypes = {job: shards[job].dtype for job in shared if job not in wholes}
    made = team.scatter(shared, whole_directions, dtypes) | local
    written = team.scatter(shared, whole_weights, {job: weight.dtype for job, weight in weights.items()})
    for job, weight in written.items():
        if weight is not weights[job]:
            weights[job].copy_(weight)
    _share_state(
        team, optimizer, {job: owner for job, owner in shared.items() if job in wholes or not job.writes_whole}
    )
    wanted, optimizer._wants_diagnostics = optimizer._wants_diagnostics, False  # noted by owners, of whole matrices
    for job, d in made.items():
        if d.numel():
            optimizer._write_part(shards[job], d)
    optimizer._wants_diagnostics = wanted
    if held := [_held(team, job, shards[job], jobs[job]) for job in shared if job.shares and job not in wholes]:
        optimizer._end_parts(held, team.add_up)
    if views is not None:
        for job, of in sides.items():
            views.note(job.parameter, of, shards[job].weights[0])


def _held(team: Team, job: Job, shard: Shard, owner: int) -> Held:
    """What this rank holds of the matrices of a parameter, for a round that ranks share."""
    (shape,) = job.matrix_shapes
    nowhere = torch.empty(shape, device="meta")
    pieces = shared_rounds.pieces(job.regions[team.me], shard.weights[0], job.group, shape)
    return Held(Bucket(job.group, [job.parameter], [nowhere], [], [], [0]), pieces, team.me in job.senders(owner))


def _shown(
    views: Views, optimizer: MatrixOptimizer, shards: Mapping[Job, Shard], wholes: Collection[Job]
) -> dict[Job, frozenset[Side]]:
    """What of each parameter its owner can show: the same on every rank that asks."""
    wanted = {job: shard for job, shard in shards.items() if views.wants(job.parameter) and not job.is_replicated}
    return {
        job: BOTH if job in wholes else NEITHER if optimizer._change_of(shard) is None else CHANGE
        for job, shard in wanted.items()
    }


def _share_state(team: Team, optimizer: MatrixOptimizer, owner_of: Owners) -> None:
    """Overwrite what owners decide of a parameter's state by what they decided."""
    told = [
        (owner, tensor)
        for job, owner in owner_of.items()
        for key, tensor in sorted(optimizer.state[job.parameter].items())
        if key not in RANKS_OWN and isinstance(tensor, Tensor)
    ]
    for dtype in dict.fromkeys(tensor.dtype for _, tensor in told):
        alike = [(owner, tensor) for owner, tensor in told if tensor.dtype == dtype]
        values = team.share([(owner, tensor.shape, tensor) for owner, tensor in alike], dtype)
        for (owner, tensor), value in zip(alike, values, strict=True):
            if owner != team.me:
                tensor.copy_(value)


def _shard(job: Job, optimizer: MatrixOptimizer) -> Shard:
    parameter, gradient = job.parameter, job.parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise TypeError(f"sparse gradients are not supported, got one of shape {tuple(parameter.shape)}")
    if isinstance(parameter, DTensor):
        if not isinstance(gradient, DTensor):
            raise TypeError(f"expected the gradient of a DTensor to be one, got {type(gradient).__name__}")
        if gradient.placements != parameter.placements:
            gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)
    state = optimizer._state_of(parameter, job.group)
    state["step"] += 1
    held = [_local(tensor) for tensor in (parameter, gradient, state["momentum_buffer"])]
    weight, gradient, momentum = held
    stacked = optimizer._stacks(weight.device)
    shape = job.matrix_shapes[0][1:]
    return Shard(job.group, [parameter], [weight], [gradient], [momentum], [0], stacked, matrix_shape=shape)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _compute(optimizer: MatrixOptimizer, directions: Mapping[Job, Tensor], weights: Mapping[Job, Tensor]) -> None:
    """Orthogonalise whole matrices, in buckets: over the directions, or where weights are given into those."""
    buckets: list[tuple[Bucket, list[Tensor], bool]] = []
    filling: dict[Any, tuple[Bucket, list[Tensor]]] = {}
    for job, direction in directions.items():
        weight = weights.get(job, direction)
        offset = 0
        for n, w in zip(
            matrix_views(direction, weight, job.group), matrix_views(weight, weight, job.group), strict=True
        ):
            key = (id(job.group), w.shape[1:], n.dtype, w.dtype, job in weights)
            bucket, views = filling.get(key, (None, []))
            if bucket is None or not fits(bucket, w, stack_bytes=optimizer.stack_bytes):
                stacked = optimizer._stacks(w.device)
                bucket, views = filling[key] = Bucket(job.group, [], [], [], [], [], stacked), []
                buckets.append((bucket, views, job in weights))
            bucket.params.append(job.parameter)
            bucket.weights.append(w)
            bucket.offsets.append(offset)
            views.append(n)
            offset += w.shape[0]
    for bucket, views, writes_whole in buckets:
        d = optimizer._orthogonalized(bucket, aligned(views[0]) if len(views) == 1 else torch.cat(views))
        if writes_whole:
            optimizer._write(bucket, d)
            continue
        for view, part in zip(views, bucket.pieces(d), strict=True):
            view.copy_(part)
        if optimizer._wants_diagnostics:
            optimizer._diagnose(bucket, d)
