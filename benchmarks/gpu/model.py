"""What is trained on the card: a GPT of its own, in the sizes that are measured."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Size:
    """A model, and what it is trained on."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 50304
    batch: int = 8
    context: int = 1024
    dtype: torch.dtype = torch.float32
    """Of the parameters; float32 ones are trained under bfloat16 autocast."""


SMALL = Size(layers=12, width=768, heads=12)
"""GPT-2, 124M with tied embeddings."""
LARGE = Size(layers=20, width=2048, heads=16, dtype=torch.bfloat16)
"""1B."""
TINY = Size(layers=1, width=32, heads=2, vocabulary=64, batch=2, context=16)
"""For the logic alone."""


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.ln1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(self.ln1(x)).split(C, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """A GPT-2 with tied embeddings."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(size.vocabulary, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.ln, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, size.vocabulary, bias=False)
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


class Trainer:
    """A model, its optimizer, and batches that lie on the device already."""

    def __init__(self, size: Size, device: torch.device, compiler: str | None) -> None:
        torch.manual_seed(0)
        with torch.device(device):
            self.model: nn.Module = GPT(size).to(size.dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, fused=True)
        if compiler is not None:
            self.model = torch.compile(self.model, backend=compiler)
        generator = torch.Generator().manual_seed(1)
        shape = (8, size.batch, size.context + 1)
        self._ids = torch.randint(size.vocabulary, shape, generator=generator).to(device)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=size.dtype == torch.float32)
        self._made = 0

    def step(self) -> Tensor:
        """One step of training; nothing in it waits for the device."""
        ids = self._ids[self._made % len(self._ids)]
        self._made += 1
        with self._autocast:
            logits = self.model(ids[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
