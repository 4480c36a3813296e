"""What of a sharded parameter a rank holds, and which rank tells of it: on groups that are only said to be there."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from internist.model.shards import is_cut, is_gathered, ranks_of_model, shard_of

SHAPE = (2, 2, 2)
NAMES = ("pp", "dp", "tp")


@contextmanager
def as_rank(rank: int) -> Iterator[DeviceMesh]:
    """One of eight ranks: two stages of two replicas of two pieces."""
    distributed.init_process_group("fake", rank=rank, world_size=8, store=FakeStore())
    try:
        yield init_device_mesh("cpu", SHAPE, mesh_dim_names=NAMES)
    finally:
        distributed.destroy_process_group()


def laid_out(local: Tensor, mesh: DeviceMesh, *placements: object) -> DTensor:
    return DTensor.from_local(local, mesh, placements, run_check=False)


@pytest.mark.parametrize(
    ("rank", "offset", "is_first"),
    [(0, (0, 0), True), (1, (4, 0), True), (2, (0, 0), False), (5, (4, 0), True), (7, (4, 0), False)],
)
def test_of_replicated_pieces_the_first_replica_of_each_stage_tells(rank, offset, is_first):
    with as_rank(rank) as mesh:
        inside = shard_of(laid_out(torch.ones(4, 3), mesh["dp", "tp"], Replicate(), Shard(0)))
        sliced = shard_of(laid_out(torch.ones(4, 3), mesh["tp"], Shard(0)))

    assert (inside.cut, inside.offset, inside.shape) == ({0}, offset, (4, 3))
    assert (inside.is_first, inside.is_first_of_all) == (is_first, is_first)
    assert (sliced.is_first, sliced.is_first_of_all) == (True, is_first)


def test_a_model_is_of_the_ranks_of_its_stage():
    with as_rank(6) as mesh:
        assert ranks_of_model(mesh["tp"]) == ranks_of_model(mesh["dp", "tp"]) == [4, 5, 6, 7]


def test_a_parameter_that_is_gathered_for_a_forward_is_told_from_what_is_stored():
    with as_rank(3) as mesh:
        stored = laid_out(torch.ones(2, 3), mesh["dp", "tp"], Shard(1), Shard(0))
        over_one = laid_out(torch.ones(2, 6), mesh["tp"], Shard(0))
        whole = laid_out(torch.ones(4, 6), mesh["tp"], Replicate())

        assert is_gathered(torch.ones(4, 6), stored)
        assert is_gathered(over_one, stored)
        assert not is_gathered(stored, stored)
        assert is_cut(over_one)
        assert not is_cut(whole)
