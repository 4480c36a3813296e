"""Accelerate: watch what `prepare` returns; accumulated batches are one step."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

import internist

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model, optimizer = accelerator.prepare(model, optimizer)

internist.watch(model, optimizer)

for _ in range(24):
    tokens = torch.randint(0, 32, (4, 9))
    with accelerator.accumulate(model):
        loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    internist.log(loss=loss)
