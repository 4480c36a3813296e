"""QK-Clip on several ranks: all clip by the largest logit that any of them saw."""

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from internist.optim.projections import Fused
from internist.optim.qk_clip import QKClip
from tests.client.optim.gang import Gang
from tests.client.optim.test_qk_clip import (
    BATCH,
    REPLAY,
    TAU,
    TOKENS,
    WIDTH,
    Model,
    Plain,
    Together,
    frozen_sgd,
    logits,
    loud,
)
from tests.client.torches import needs_fsdp_on_a_cpu

RANKS = 2


@pytest.fixture(scope="module")
def gang():
    ranks = Gang(RANKS)
    yield ranks
    ranks.close()


def inputs(rank):
    return torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(rank)) * (1.0 + rank)


def loud_model(fused=False):
    torch.manual_seed(0)
    model = Model(Together("interleaved") if fused else Plain())
    if not fused:
        loud(model)
    return model


def alone(fused=False, tau=TAU):
    """The model after one clip by the data of all ranks in one process, and the logits before."""
    model = loud_model(fused)
    batches = [inputs(rank) for rank in range(RANKS)]
    before = torch.stack([logits(model, x) for x in batches]).amax(0)
    optimizer = frozen_sgd(model)
    QKClip(model, optimizer, tau=tau)
    for x in batches:
        model(x).sum().backward()
    optimizer.step()
    return model, before


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def clip_under_ddp():
    model = loud_model()
    wrapped = DistributedDataParallel(model)
    optimizer = frozen_sgd(model)
    clip = QKClip(wrapped, optimizer, tau=TAU)
    wrapped(inputs(distributed.get_rank())).sum().backward()
    optimizer.step()
    return flat(model).tolist(), clip.counts()["attn"].tolist()


def clip_where_only_one_rank_has_data(fused):
    model = loud_model(fused)
    optimizer = frozen_sgd(model)
    projections = {"attn": Fused("qkv_proj")} if fused else None
    clip = QKClip(model, optimizer, tau=0.5, projections=projections)
    clip._warned = True
    for _ in range(2):
        if distributed.get_rank() == 1:
            model(inputs(1)).sum().backward()
        optimizer.step()
    return flat(model).tolist(), clip.counts()["attn"].tolist(), clip.steps


def clip_under_fsdp():
    model = loud_model()
    mesh = distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
    fully_shard(model.attn, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = frozen_sgd(model)
    clip = QKClip(model, optimizer, tau=TAU)
    model(inputs(distributed.get_rank())).sum().backward()
    optimizer.step()
    whole = torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])
    return whole.tolist(), clip.counts()["attn"].tolist()


def test_ranks_agree_on_the_largest_logit_and_stay_equal(gang):
    model, before = alone()
    answers = gang.run(__name__, "clip_under_ddp")

    fired = before > TAU
    assert fired.any() and not fired.all()
    for weights, counts in answers:
        assert counts == fired.int().tolist()
        torch.testing.assert_close(torch.tensor(weights), flat(model), rtol=1e-5, atol=0)
    assert answers[0] == answers[1]
    after = torch.stack([logits(model, inputs(rank)) for rank in range(RANKS)]).amax(0)
    torch.testing.assert_close(after[fired], torch.full_like(after[fired], TAU), rtol=REPLAY, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_rank_without_data_joins_and_clips_alike(gang, fused):
    answers = gang.run(__name__, "clip_where_only_one_rank_has_data", fused)

    assert answers[0] == answers[1]
    weights, counts, steps = answers[0]
    assert steps == 2
    assert max(counts) >= 1
    assert not torch.equal(torch.tensor(weights), flat(loud_model(fused)))


@needs_fsdp_on_a_cpu
def test_shards_are_clipped_as_the_whole(gang):
    model, before = alone()
    answers = gang.run(__name__, "clip_under_fsdp")

    for weights, counts in answers:
        assert counts == (before > TAU).int().tolist()
        torch.testing.assert_close(torch.tensor(weights), flat(model), rtol=1e-5, atol=0)
