"""Small GPTs under muP, with what can be wrong from the first step, trained under the monitor and shipped."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import internist
from internist.ship.segments import segment_numbers, segment_path

VOCABULARY, CONTEXT, BATCH = 64, 16, 8
NOISE = 0.25
"""Share of tokens that follow from nothing: there is always something left to learn, as there is in a text."""
BASE_WIDTH, BASE_DEPTH, HEAD_WIDTH = 32, 2, 16


@dataclass(frozen=True, slots=True)
class Made:
    """How one model is made; all of it right by default."""

    width: int = BASE_WIDTH
    depth: int = BASE_DEPTH
    seed: int = 0
    attention_scale: float = 1 / HEAD_WIDTH**0.5
    head_init: float = 1.0
    has_multiplier: bool = True
    has_norm: bool = True


PROXY = Made()
LARGER = Made(width=64, depth=6, seed=1)
UNSCALED = replace(LARGER, attention_scale=1.0)
LOUD_HEAD = replace(LARGER, head_init=10.0)
UNDAMPED = replace(LARGER, has_multiplier=False)
BARE = replace(LARGER, has_norm=False)


class Attention(nn.Module):
    """Causal self-attention over heads of one width."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.scale, self.heads = made.attention_scale, made.width // HEAD_WIDTH
        self.qkv = nn.Linear(made.width, 3 * made.width, bias=False)
        self.proj = nn.Linear(made.width, made.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.fc1 = nn.Linear(made.width, 4 * made.width, bias=False)
        self.fc2 = nn.Linear(4 * made.width, made.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm residual block whose branches are multiplied by the inverse of the depth."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        norm = nn.LayerNorm if made.has_norm else nn.Identity
        self.multiplier = BASE_DEPTH / made.depth if made.has_multiplier else 1.0
        self.ln1, self.attn, self.ln2, self.mlp = norm(made.width), Attention(made), norm(made.width), MLP(made)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        x = x + self.multiplier * self.attn(self.ln1(x))
        out: Tensor = x + self.multiplier * self.mlp(self.ln2(x))
        return out


class Proxy(nn.Module):
    """A GPT over few tokens; the head's output is multiplied by the inverse of the width."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, made.width)
        self.blocks = nn.ModuleList(Block(made) for _ in range(made.depth))
        self.ln_f = nn.LayerNorm(made.width) if made.has_norm else nn.Identity()
        self.head = nn.Linear(made.width, VOCABULARY, bias=False)
        self.multiplier = BASE_WIDTH / made.width
        for name, parameter in self.named_parameters():
            if name.startswith("embed"):
                nn.init.normal_(parameter, std=0.3)
            elif name.startswith("head"):
                nn.init.normal_(parameter, std=made.head_init * BASE_WIDTH**-0.5)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, tokens) to (batch, tokens, vocabulary)."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.ln_f(x) * self.multiplier)
        return out


def optimizer_of(model: Proxy, lr: float) -> torch.optim.Optimizer:
    """Adam, with the hidden matrices' rate divided by the width ratio."""
    hidden = [p for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2]
    others = [p for n, p in model.named_parameters() if not (n.startswith("blocks") and p.dim() == 2)]
    return torch.optim.Adam([{"params": hidden, "lr": lr * model.multiplier}, {"params": others, "lr": lr}], eps=1e-12)


def train(made: Made, folder: Path, *, steps: int, lr: float = 4e-3, **options: Any) -> internist.Monitor:
    """Train one under the monitor, which keeps its spool in the folder."""
    torch.manual_seed(made.seed)
    model = Proxy(made)
    optimizer = optimizer_of(model, lr)
    monitor = internist.watch(
        model, optimizer, mode="offline", directory=folder, max_overhead=0, config={"parametrization": "mup"}, **options
    )
    generator = torch.Generator().manual_seed(made.seed + 100)
    for _ in range(steps):
        starts = torch.randint(VOCABULARY, (BATCH, 1), generator=generator)
        ids = (starts * torch.tensor([3**k % VOCABULARY for k in range(CONTEXT + 1)])) % VOCABULARY
        noise = torch.randint(VOCABULARY, ids.shape, generator=generator)
        ids = torch.where(torch.rand(ids.shape, generator=generator) < NOISE, noise, ids)
        logits = model(ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.isfinite(loss.item())
    monitor.finish()
    return monitor


def ship(api: Any, monitor: internist.Monitor) -> None:
    """Hand the whole spool to a server."""
    directory = monitor.directory
    assert directory is not None
    attempt = directory.parent.name
    for number in segment_numbers(directory):
        body = segment_path(directory, number).read_bytes()
        answer = api.post(
            f"/api/v1/runs/{monitor.run}/frames",
            params={"attempt": attempt, "rank": 0},
            content=body,
            headers={"Content-Type": "application/x-internist-spool"},
        )
        assert answer.status_code == 200, answer.text
        assert not answer.json()["refused"], answer.json()["refused"]
