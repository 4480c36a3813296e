"""Models of one attention layer, each computing its softmax another way, and what enters that softmax in float64.

Shapes: B batch, H query heads, K key heads, T queries, S keys, D head features.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import internist
from tests.client.points import read

WIDTH, HEADS, TOKENS, BATCH = 32, 4, 12, 3
LOWEST = torch.finfo(torch.float32).min
ROUNDING = 2e-5
"""A float32 product over a head's features and a softcap, against float64."""


def reference(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """(2, H) the largest logit, signed and absolute, of the whole matrix in float64."""
    q, k = q.detach().double(), k.detach().double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    if bias is not None:
        logits = logits + bias.detach().double()
    seen = torch.ones_like(logits, dtype=torch.bool) if seen is None else seen.expand_as(logits)
    signed = logits.masked_fill(~seen, -torch.inf).amax((0, 2, 3))
    return torch.stack((signed, logits.abs().masked_fill(~seen, -torch.inf).amax((0, 2, 3)))).float()


def causal(queries: int = TOKENS, keys: int = TOKENS, *, window: int | None = None) -> Tensor:
    """(T, S) bool: no later key, and none that is `window` keys or more before."""
    ahead = torch.arange(keys) - torch.arange(queries).unsqueeze(1) - (keys - queries)
    return (ahead <= 0) if window is None else (ahead <= 0) & (ahead > -window)


class Attention(nn.Module):
    """Projections, and `compute(self, q, k, v)` that makes of queries and keys times 3 what the heads give."""

    def __init__(self, compute: Callable[..., Tensor], *, key_heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.key_heads, self.head_dim = HEADS, key_heads, WIDTH // HEADS
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.k_proj = nn.Linear(WIDTH, key_heads * self.head_dim)
        self.v_proj = nn.Linear(WIDTH, key_heads * self.head_dim)
        self.compute = compute
        self.q = self.k = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, and remember the queries and keys."""
        heads = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = heads
        if self.training:  # a monitor's replay is none
            self.q, self.k = q, k
        return self.compute(self, 3 * q, 3 * k, v).transpose(1, 2).flatten(2)


class Model(nn.Module):
    """An attention layer and a head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn = attention
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of 7 classes at each token."""
        out = self.attn(x)
        return self.head(out[0] if isinstance(out, tuple) else out)


def one_step(model: nn.Module, *inputs: object, **named: object) -> dict[str, Tensor]:
    """By name of the attention module: (2, H) what a watched step of training measured, 0 where a head has none."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = internist.watch(model, optimizer)
    out = model(*inputs, **named)
    first = out if isinstance(out, Tensor) else out[0]
    first.float().square().mean().backward()
    optimizer.step()
    monitor.finish()
    points, _, _ = read(monitor.directory)
    found: dict[str, Tensor] = {}
    for (metric, subject, head), values in points.items():
        if metric in ("attention.max_logit", "attention.max_abs_logit") and head is not None:
            table = found.setdefault(subject, torch.zeros(2, 64))
            table[int(metric.endswith("abs_logit")), head] = values[0]
    return {name: table[:, : int(table.any(0).nonzero().max()) + 1] for name, table in found.items()}


def matched(found: Tensor, expected: Tensor) -> bool:
    """Whether measured logits are the expected ones, up to rounding."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=ROUNDING, atol=ROUNDING)


def eager(softmax: Callable[[Tensor], Tensor], hide: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[..., Tensor]:
    """Attention by hand, with this softmax."""

    def compute(_: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax(hide(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]))) @ v

    return compute
