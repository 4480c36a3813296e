"""torch.compile: the compiled graph stays as it is; activations are measured by replaying a probe of the batch."""

import torch
from torch import nn
from torch.nn import functional

import internist

model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))
compiled = torch.compile(model, backend="aot_eager")  # any backend
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

internist.watch(compiled, optimizer)

for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9))
    loss = functional.cross_entropy(compiled(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)
