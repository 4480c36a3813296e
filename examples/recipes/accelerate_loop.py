"""Accelerate: a tracker watches the model and records what is logged; accumulated batches are one step.

`internist.watch(model, optimizer)` with what `prepare` returns does without it.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from internist.integrations.accelerate import InternistTracker

model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with=InternistTracker(model, optimizer))
accelerator.init_trackers("shop", {"lr": 1e-3})
model, optimizer = accelerator.prepare(model, optimizer)

for _ in range(24):
    tokens = torch.randint(0, 32, (4, 9))
    with accelerator.accumulate(model):
        loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.log({"loss": loss})
accelerator.end_training()
