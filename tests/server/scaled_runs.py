"""Small residual models of several widths, trained under `watch` for a few steps against a real server."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

import internist

VOCABULARY, CONTEXT, BATCH = 16, 8, 2
"""Few directions in the data against the narrowest width: in wider ones less of an update is noise, which shows as a
falling exponent of small models."""
BASE_WIDTH, RATE, STEPS = 128, 1e-3, 4


class Block(nn.Module):
    """A residual branch of two matrices, without normalisation."""

    def __init__(self, width: int, *, branch: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """x plus what the branch makes of it."""
        return x + self.branch * self.down(torch.tanh(self.up(x)))


class Tower(nn.Module):
    """An embedding, blocks, a head."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList([Block(width, branch=1 / depth) for _ in range(depth)])
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def train(server: str, width: int, *, mup: bool, directory: Path, seed: int = 0, name: str = "") -> str:
    """Train one model for a few steps with everything measured at each; the id of its run.

    muP in its form without multipliers: hidden variance 1/n and rate divided by the width ratio, head variance 1/n and
    rate both divided by it. Without, as PyTorch users set such a model up.
    """
    torch.manual_seed(seed)
    ratio = width / BASE_WIDTH
    model = Tower(width)
    with torch.no_grad():
        model.embed.weight.normal_()
        for block in model.blocks:
            for matrix in (block.up, block.down):
                matrix.weight.normal_(std=width**-0.5)
        model.head.weight.normal_(std=width**-0.5 / (math.sqrt(ratio) if mup else 1))
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks")]
    scaled = RATE / (ratio if mup else 1)
    groups = [
        {"params": [model.embed.weight], "lr": RATE},
        {"params": [*hidden, model.head.weight], "lr": scaled},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    settings = {"seed": seed, "width": width, "mup": mup, "lr": RATE}
    monitor = internist.watch(
        model, optimizer, server=server, project="towers", name=name or f"tower-{width}-{seed}",
        config=settings, every=1, max_overhead=0, directory=directory,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(99)
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=generator)
    for _ in range(STEPS):
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        internist.log(loss=loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish(timeout=60)
    return str(monitor.run)
