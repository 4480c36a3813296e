"""Sentences that are cut over ranks by hand, uneven pieces to each: what the ranks do with them, and one process."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from tests.stacks.merging import parts_of
from tests.stacks.models import HEADS, WIDTH, WORDS, cross_entropy, sentences
from tests.stacks.sharded_scripts import watched_as

STEPS, SENTENCES, CONTEXT = 3, 2, 8
CUTS = {1: (0, 8), 2: (0, 5, 8)}
"""Where sentences are cut, by the number of ranks: the first rank has more of each."""
EXPERTS, CHOSEN = 4, 2


class CutAttention(nn.Module):
    """Causal attention whose queries are of this rank's piece, and whose keys and values are those of all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        first, last = _own()
        seen = torch.arange(CONTEXT) <= torch.arange(first, last).unsqueeze(1)
        out = functional.scaled_dot_product_attention(q, _gathered(k), _gathered(v), attn_mask=seen)
        return self.proj(out.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """A layer of experts with a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.top_k = CHOSEN

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.top_k, dim=-1)
        spread = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
        return (torch.stack([expert(x) for expert in self.experts], dim=-1) * spread.unsqueeze(-2)).sum(-1)


class CutBlock(nn.Module):
    """Attention and experts, each added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), CutAttention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Experts()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CutGpt(nn.Module):
    """A model that sees this rank's piece of each sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList(CutBlock() for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places[slice(*_own())]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def trained() -> dict[str, Any]:
    """Losses, and what the monitor recorded."""
    return _trained(is_watched=True)


def bare() -> dict[str, Any]:
    """Losses of the same without a monitor."""
    return _trained(is_watched=False)


def _trained(*, is_watched: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = CutGpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watched_as(model, optimizer) if is_watched else None
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    replica = DistributedDataParallel(model) if world > 1 else model
    first, last = _own()
    losses = []
    for ids, targets in sentences(STEPS, batch=SENTENCES, context=CONTEXT):
        # a rank's share of the mean over all tokens, times the ranks over which gradients are averaged
        loss = cross_entropy(replica(ids[:, first:last]), targets[:, first:last]) * (world * (last - first) / CONTEXT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if monitor is None:
        return {"losses": losses}
    monitor.finish()
    assert monitor.directory is not None
    return {"losses": losses, "parts": parts_of(monitor.directory)}


def _own() -> tuple[int, int]:
    """The first token of this rank's piece, and the first that is none of it."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    return CUTS[world][rank], CUTS[world][rank + 1]


def _gathered(x: Tensor) -> Tensor:
    """(B, H, S, D) of all ranks."""
    return _Gather.apply(x) if distributed.is_initialized() else x


class _Gather(torch.autograd.Function):
    """Keys or values of all ranks, one piece after the other; a piece's gradient is the sum of all ranks'."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        whole = x.new_zeros(*x.shape[:-2], CONTEXT, x.shape[-1])
        whole[..., slice(*_own()), :] = x
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient[..., slice(*_own()), :]
