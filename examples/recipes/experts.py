"""A mixture of experts: each expert is measured when tokens reach it; one that nobody asks is idle, not well."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import internist


class Experts(nn.Module):
    """Every token goes to the expert that its router likes best."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.router = nn.Linear(16, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream, with what the chosen experts add to it."""
        features = self.norm(x)
        weight, chosen = self.router(features).softmax(-1).max(-1)
        added = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            here = chosen == number
            if here.any():
                added[here] = expert(features[here]) * weight[here].unsqueeze(-1)
        return x + added


model = nn.Sequential(nn.Embedding(32, 16), Experts(), Experts(), nn.Linear(16, 32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

internist.watch(model, optimizer)

for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9))
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)
