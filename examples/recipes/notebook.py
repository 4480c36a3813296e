"""A notebook. A cell that watches can be run again: the earlier monitor is finished, a new run begins."""

# %% the model; run this cell again to start over
import torch
from torch import nn
from torch.nn import functional

import internist

model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
monitor = internist.watch(model, optimizer)

# %% train; run this cell again to go on
for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9))
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)

# %% what is measured, and what is not, and why
for entry in monitor.coverage():
    if entry.state != "measured":
        print(entry.subject, entry.state, entry.reason)

# %% the end of the run; without it, the kernel's end is
internist.finish()
