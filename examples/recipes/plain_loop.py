"""A plain loop: one line before it. The optimizer's steps are the clock; nothing else has to be called."""

import torch
from torch import nn
from torch.nn import functional

import internist

model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

internist.watch(model, optimizer)

for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9))
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)  # only where the model does not return its loss
