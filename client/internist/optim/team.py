"""The ranks of one process group, the parameters they step together, and how parts of those travel between them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from internist.optim.bucket import Group
from internist.optim.coefficients import arithmetic_dtype
from internist.optim.ownership import Region, balanced_owners, newton_schulz_cost

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One parameter, all its matrices: what every rank of a team holds of it, and how it is stepped."""

    parameter: Tensor
    name: str | None
    group: Group
    regions: Sequence[Region]
    """By the rank's place in the team."""
    copies: Sequence[tuple[int, ...]]
    """By the rank's place: the replica that its shard belongs to. An owner hears from its own replica only."""
    matrix_shapes: Sequence[tuple[int, int, int]]
    """(count, fan_out, fan_in) of the parameter's views."""
    writes_whole: bool
    """Whether the owner writes the whole weight, or each rank its own shard."""
    is_local: bool
    """Whether every shard is a stack of whole matrices, which no other rank need see."""
    shares: bool = False
    """Whether ranks may find norms together, by what each multiplies with its shard (`shared_rounds`)."""

    @cached_property
    def cost(self) -> int:
        """FLOPs of one Newton-Schulz iteration over its matrices."""
        return sum(count * newton_schulz_cost(rows, columns) for count, rows, columns in self.matrix_shapes)

    @cached_property
    def is_mixed(self) -> bool:
        """Whether its matrices are of several shapes, which are written with several scales."""
        return len({shape[1:] for shape in self.matrix_shapes}) > 1

    @cached_property
    def is_replicated(self) -> bool:
        """Whether every rank holds all of it."""
        return len(self._replicas) == len(self.copies)

    def senders(self, owner: int) -> Sequence[int]:
        """Places of the ranks whose shards make up the whole, each part once."""
        return self._replicas[self.copies[owner]]

    @cached_property
    def _replicas(self) -> dict[tuple[int, ...], list[int]]:
        replicas: dict[tuple[int, ...], list[int]] = {}
        for place, copy in enumerate(self.copies):
            replicas.setdefault(copy, []).append(place)
        return replicas


Owners = Mapping[Job, int]
"""The place of each job's owner, in the order of the jobs, which all ranks share."""


@dataclass(slots=True, eq=False)
class Team:
    """The ranks of one process group, and the parameters that they step together."""

    group: "ProcessGroup | None"
    ranks: list[int]
    """Their global ranks, in the group's order."""
    jobs: list[Job] = field(default_factory=list)
    rounds: list[dict[Job, int]] = field(default_factory=list)
    """The jobs with their owners' places, in runs that are stepped together."""
    warned: set[Job] = field(default_factory=set)

    @property
    def me(self) -> int:
        """This rank's place in the team."""
        return self.ranks.index(distributed.get_rank())

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.jobs[0].parameter.device

    def assign(self, entries: int) -> None:
        """Cut the jobs into rounds of at most so many entries per rank (a larger job is one alone) and assign owners.

        Owners stay the same until the groups change, also when some matrices have no gradient.
        """
        self.rounds = []
        run: list[Job] = []
        for job in self.jobs:
            if run and sum(other.parameter.numel() for other in [*run, job]) > entries * len(self.ranks):
                self.rounds.append(self._owned(run))
                run = []
            run.append(job)
        self.rounds.append(self._owned(run))

    def _owned(self, jobs: Sequence[Job]) -> dict[Job, int]:
        costs = [0 if job.is_local else job.cost for job in jobs]
        return dict(zip(jobs, balanced_owners(costs, len(self.ranks)), strict=True))

    def check_arithmetic(self) -> None:
        """Refuse ranks whose processors multiply in unlike types: what they send one another would not fit. A
        collective.

        Raises:
            ValueError: on every rank, that a group leaves the type open and they differ.
        """
        rounds = int(arithmetic_dtype(self.device) == torch.bfloat16)
        found = torch.tensor([rounds, 1 - rounds], dtype=torch.int32, device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.group)
        if int(found.sum()) > 1 and any(job.group["dtype"] is None for job in self.jobs):
            raise ValueError(
                "some ranks multiply matrices in bfloat16 and some in float32, as their processors are of two kinds: "
                "give the optimizer dtype=torch.float32 or dtype=torch.bfloat16"
            )

    def add_up(self, numbers: Tensor) -> None:
        """Sum a tensor over the ranks, in place. A collective."""
        distributed.all_reduce(numbers, group=self.group)

    def agreed(self, *, asks: bool) -> tuple[set[Job], bool]:
        """The jobs whose gradient every rank has, and whether some rank asks what this one may ask. A collective."""
        device = self.device
        if device.type != "cpu" and "cpu:" in distributed.get_backend_config(self.group):
            device = torch.device("cpu")
        said = [asks, *(job.parameter.grad is not None for job in self.jobs)]
        having = torch.tensor(said, dtype=torch.int32, device=device)
        distributed.all_reduce(having, group=self.group)
        asking, *counts = having.tolist()
        for job, count in zip(self.jobs, counts, strict=True):
            if 0 < count < len(self.ranks) and job not in self.warned:
                self.warned.add(job)
                what = f"parameter {job.name!r}" if job.name else "a parameter"
                shape, ranks = tuple(job.parameter.shape), len(self.ranks)
                log.warning("%s of shape %s has a gradient on %d of %d ranks: none steps it", what, shape, count, ranks)
        return {job for job, count in zip(self.jobs, counts, strict=True) if count == len(self.ranks)}, asking > 0

    def gather(self, owner_of: Owners, shards: Mapping[Job, Tensor]) -> dict[Job, Tensor]:
        """The whole tensors of the jobs that this rank owns, from everyone's shards. A collective per dtype.

        A replicated tensor travels nowhere: the owner's own is returned, the very object.
        """
        whole = {job: shard for job, shard in shards.items() if job.is_replicated and owner_of[job] == self.me}
        for jobs in _by_dtype({job: shard for job, shard in shards.items() if not job.is_replicated}):
            parcels: list[list[Tensor]] = [[] for _ in self.ranks]
            expected: list[list[Job]] = [[] for _ in self.ranks]
            for job in jobs:
                owner = owner_of[job]
                senders = job.senders(owner)
                if self.me in senders:
                    parcels[owner].append(shards[job])
                if owner == self.me:
                    whole[job] = shards[job].new_empty(job.parameter.shape)
                    for sender in senders:
                        expected[sender].append(job)
            sizes = [[job.regions[place].size for job in jobs] for place, jobs in enumerate(expected)]
            received = self._exchange(parcels, [sum(of) for of in sizes], like=shards[jobs[0]])
            for place, (flat, of) in enumerate(zip(received, sizes, strict=True)):
                for job, part in zip(expected[place], _cut(flat, of), strict=True):
                    region = job.regions[place]
                    region.place(part.view(region.shape), whole[job])
        return whole

    def scatter(
        self, owner_of: Owners, whole: Mapping[Job, Tensor], dtypes: Mapping[Job, torch.dtype]
    ) -> dict[Job, Tensor]:
        """Everyone's shards of the owners' whole tensors. A collective per kind and dtype.

        An owner of a replicated tensor gets its own back, the very object.
        """
        shards: dict[Job, Tensor] = {}
        for dtype in dict.fromkeys(dtypes.values()):
            jobs = [job for job in dtypes if dtypes[job] == dtype]
            replicated = [job for job in jobs if job.is_replicated]
            given = [(owner_of[job], job.parameter.shape, whole.get(job)) for job in replicated]
            shards |= zip(replicated, self.share(given, dtype), strict=True)
            jobs = [job for job in jobs if not job.is_replicated]
            if not jobs:
                continue
            owned = [whole[job] for job in jobs if owner_of[job] == self.me]
            regions = [job.regions for job in jobs if owner_of[job] == self.me]
            parcels = [
                [of[place].cut(tensor) for of, tensor in zip(regions, owned, strict=True)]
                for place in range(len(self.ranks))
            ]
            expected: list[list[Job]] = [[] for _ in self.ranks]
            for job in jobs:
                expected[owner_of[job]].append(job)
            sizes = [[job.regions[self.me].size for job in of] for of in expected]
            like = torch.empty(0, dtype=dtype, device=self.device)
            received = self._exchange(parcels, [sum(of) for of in sizes], like)
            for jobs_of, flat, of in zip(expected, received, sizes, strict=True):
                for job, part in zip(jobs_of, _cut(flat, of), strict=True):
                    shards[job] = part.view(job.regions[self.me].shape)
        return shards

    def share(self, given: Sequence[tuple[int, Sequence[int], Tensor | None]], dtype: torch.dtype) -> list[Tensor]:
        """Tensors that every rank then has, from the (owner, shape, tensor where one is its owner) of each.

        A collective, unless there is nothing to share. An owner gets its own tensor back.
        """
        places: list[list[int]] = [[] for _ in self.ranks]
        for index, (owner, _, _) in enumerate(given):
            places[owner].append(index)
        sizes = [[torch.Size(given[index][1]).numel() for index in of] for of in places]
        room = max(sum(of) for of in sizes)
        if room == 0:
            return []
        mine = torch.empty(room, dtype=dtype, device=self.device)
        for index, slot in zip(places[self.me], _cut(mine, sizes[self.me]), strict=True):
            tensor = given[index][2]
            assert tensor is not None
            slot.view(tensor.shape).copy_(tensor)
        everyones = torch.empty(room * len(self.ranks), dtype=dtype, device=self.device)
        # torch 2.13 renamed it, and warns of the old name
        gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
        gather(everyones, mine, group=self.group)
        shared: dict[int, Tensor] = {}
        for place, row in enumerate(everyones.view(-1, room)):
            for index, slot in zip(places[place], _cut(row, sizes[place]), strict=True):
                own = given[index][2] if place == self.me else None
                shared[index] = slot.view(torch.Size(given[index][1])) if own is None else own
        return [shared[index] for index in range(len(given))]

    def _exchange(self, parcels: Sequence[Sequence[Tensor]], sizes: Sequence[int], like: Tensor) -> Sequence[Tensor]:
        """Send each rank its parcel; return what each sent here, flat, of known sizes."""
        flat = [part.reshape(-1) for parcel in parcels for part in parcel]
        sent = torch.cat(flat) if flat else like.new_empty(0)
        received = like.new_empty(sum(sizes))
        counts = [sum(part.numel() for part in parcel) for parcel in parcels]
        distributed.all_to_all_single(received, sent, list(sizes), counts, group=self.group)
        return _cut(received, sizes)


def _cut(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Views of consecutive parts of a flat tensor; what is left over is padding."""
    ends = list(accumulate(sizes))
    return [flat[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _by_dtype(tensors: Mapping[Job, Tensor]) -> Iterable[list[Job]]:
    """The jobs, apart by their tensor's dtype; the same order on all ranks."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors.values()):
        yield [job for job, tensor in tensors.items() if tensor.dtype == dtype]
