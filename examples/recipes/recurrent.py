"""An LSTM: what it carries from step to step and what it returns are measured, its packed weights like any others."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import internist


class Recurrent(nn.Module):
    """Two layers over the sequence, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every place."""
        features, _ = self.lstm(self.embed(tokens))
        return self.head(features)


model = Recurrent()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

internist.watch(model, optimizer)

for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9))
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)
