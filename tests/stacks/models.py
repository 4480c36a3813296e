"""Small models of many kinds, and batches for them."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH, HEADS, DEPTH, WORDS, CONTEXT, BATCH = 16, 4, 2, 24, 8, 2


def sentences(steps: int, *, batch: int = BATCH, context: int = CONTEXT) -> Iterator[tuple[Tensor, Tensor]]:
    """Random ids and the ids that follow, drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        ids = torch.randint(0, WORDS, (batch, context + 1), generator=generator)
        yield ids[:, :-1], ids[:, 1:]


def images(steps: int, *, batch: int = 4, size: int = 8, channels: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    """Random images and labels of four classes."""
    generator = torch.Generator().manual_seed(4)
    for _ in range(steps):
        yield (
            torch.randn(batch, channels, size, size, generator=generator),
            torch.randint(0, 4, (batch,), generator=generator),
        )


def vectors(steps: int, *, batch: int = 4, width: int = WIDTH) -> Iterator[Tensor]:
    """Random vectors."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        yield torch.randn(batch, width, generator=generator)


def causal(context: int) -> Tensor:
    """(T, T) true where a query sees a key."""
    return torch.ones(context, context, dtype=torch.bool).tril()


# ---- attention by hand ---------------------------------------------------------------------------------------------

Core = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q_BNTH, k_BKSH, v_BKSH to o_BNTH; K may be fewer heads than N."""


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(logits.masked_fill(~causal(q.shape[-2]), float("-inf")), dim=-1) @ v


def by_method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    return logits.masked_fill(~causal(q.shape[-2]), torch.finfo(q.dtype).min).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("bnth,bnsh->bnts", q, k) * q.shape[-1] ** -0.5
    weights = functional.softmax(logits + torch.zeros(CONTEXT, CONTEXT).masked_fill(~causal(CONTEXT), -1e30), dim=-1)
    return torch.einsum("bnts,bnsh->bnth", weights, v)


def by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, context, width = q.shape
    flat = torch.baddbmm(
        torch.zeros(batch * heads, context, context), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=width**-0.5
    )
    logits = flat.view(batch, heads, context, context).masked_fill(~causal(context), float("-inf"))
    return functional.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def with_softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = 2.0 * torch.tanh(q @ k.mT * q.shape[-1] ** -0.5 / 2.0)
    return torch.softmax(logits.masked_fill(~causal(q.shape[-2]), float("-inf")), -1) @ v


def with_sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = causal(q.shape[-2]) & ~causal(q.shape[-2]).tril(-3)
    return torch.softmax((q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf")), -1) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return by_matmul(q, k, v)


class Attention(nn.Module):
    """Attention with the given core; fewer key heads where `key_heads` says so."""

    def __init__(self, core: Core = fused, *, key_heads: int = HEADS, dropout: float = 0.0) -> None:
        super().__init__()
        head = WIDTH // HEADS
        self.core, self.key_heads = core, key_heads
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, key_heads * head, bias=False)
        self.v = nn.Linear(WIDTH, key_heads * head, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, context, _ = x.shape
        q = self.q(x).view(batch, context, HEADS, -1).transpose(1, 2)
        k, v = (f(x).view(batch, context, self.key_heads, -1).transpose(1, 2) for f in (self.k, self.v))
        return self.dropout(self.proj(self.core(q, k, v).transpose(1, 2).flatten(2)))


class MultiheadBlockAttention(nn.Module):
    """`nn.MultiheadAttention` as a branch of a block."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = ~causal(x.shape[1])
        return self.mha(x, x, x, need_weights=self.need_weights, attn_mask=hidden)[0]


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Block(nn.Module):
    """A residual block with pre-normalisation."""

    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """A language model; `forward(ids)` gives logits, `forward(ids, targets)` logits and loss."""

    def __init__(
        self,
        attention: Callable[[], nn.Module] = Attention,
        mlp: Callable[[], nn.Module] = Mlp,
        *,
        checkpoints: bool | None = None,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        """Recompute blocks in backward: True by the reentrant way, False by the other; None: not at all."""
        self.embed, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block(attention(), mlp()) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x) if self.checkpoints is None else checkpoint(block, x, use_reentrant=self.checkpoints)
        logits = self.head(self.norm(x))
        return logits if targets is None else (logits, cross_entropy(logits, targets))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


BLOCKS = tuple(f"blocks.{i}" for i in range(DEPTH))
ATTENTIONS = tuple(f"blocks.{i}.attn" for i in range(DEPTH))
