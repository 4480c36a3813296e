"""Small transformers of the kinds people train: GPT, Llama-like, a mixture of experts, and one for images.

Shapes: B batch, T tokens, C width, H heads, K width of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, DEPTH, HEADS, CONTEXT, BYTES = 32, 4, 2, 24, 256


class Attention(nn.Module):
    """Self-attention with separate projections; fewer heads of keys and values are shared."""

    def __init__(self, *, causal: bool = True, shared: int = 1, rotary: bool = False) -> None:
        super().__init__()
        self.causal, self.rotary, self.shared = causal, rotary, shared
        self.scale = 1 / math.sqrt(WIDTH // HEADS)
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, WIDTH // shared, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH // shared, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        q, k, v = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        if self.rotary:
            q, k = rotated(q), rotated(k)
        k, v = (part.repeat_interleave(self.shared, 1) for part in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, WIDTH // HEADS)).transpose(1, 2)


def rotated(x: Tensor) -> Tensor:
    """(B, H, T, K) with each pair of features turned by an angle of its position (arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(half) / half)
    one, other = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos()], -1)


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same."""
        out: Tensor = self.dropout(self.fc2(functional.gelu(self.fc1(x))))
        return out


class SwiGLU(nn.Module):
    """The gated layer of Llama (arXiv:2002.05202)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same."""
        out: Tensor = self.dropout(self.down(functional.silu(self.gate(x)) * self.up(x)))
        return out


class Experts(nn.Module):
    """Four experts, of which each token takes its best one, weighted by a router's probability (arXiv:2101.03961)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(MLP(dropout) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same."""
        flat = x.flatten(0, -2)
        weights, chosen = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, (expert(flat[rows]) * weights[rows, None]).to(out.dtype))
        return out.view_as(x)


class Block(nn.Module):
    """A pre-norm residual block. `branch` multiplies what is added to the stream."""

    def __init__(self, norm: type[nn.Module], attention: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2, self.mlp = norm(WIDTH), attention, norm(WIDTH), mlp
        self.branch = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        x = x + self.branch * self.attn(self.ln1(x))
        out: Tensor = x + self.branch * self.mlp(self.ln2(x))
        return out


class Transformer(nn.Module):
    """Blocks between an embedding and a head; of images, patches are the tokens and classes the output."""

    def __init__(self, kind: str, dropout: float) -> None:
        super().__init__()
        norm = nn.RMSNorm if kind == "llama" else nn.LayerNorm
        mlp = {"llama": SwiGLU, "moe": Experts}.get(kind, MLP)
        self.is_image = kind == "vit"
        self.embed: nn.Module = nn.Linear(48, WIDTH) if self.is_image else nn.Embedding(BYTES, WIDTH)
        self.position = None if kind == "llama" else nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            Block(
                norm,
                Attention(causal=not self.is_image, shared=2 if kind == "llama" else 1, rotary=kind == "llama"),
                mlp(dropout),
            )
            for _ in range(DEPTH)
        )
        self.ln_f = norm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, 10 if self.is_image else BYTES, bias=False)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.1 / math.sqrt(2 * DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) bytes to (B, T, 256), or (B, 3, 16, 16) images to (B, 10)."""
        if self.is_image:
            x = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        x = self.embed(x)
        if self.position is not None:
            x = x + self.position(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.ln_f(x)
        out: Tensor = self.lm_head(x.mean(1) if self.is_image else x)
        return out


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.1)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
