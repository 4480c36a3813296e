"""A script written for wandb: one import is changed. What there is no model for yet waits until it is watched."""

import torch
from torch import nn
from torch.nn import functional

import internist as wandb

wandb.init(project="shop", config={"lr": 1e-3, "batch": 4})
model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))
optimizer = torch.optim.AdamW(model.parameters(), lr=wandb.config.lr)
criterion = nn.CrossEntropyLoss()

wandb.watch(model, criterion, log="all", log_freq=100)

for step in range(12):
    tokens = torch.randint(0, 32, (wandb.config.batch, 9))
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    wandb.log({"loss": loss}, step=step)
wandb.summary["final"] = loss.item()
wandb.alert(title="Done", text="Twelve steps", level=wandb.AlertLevel.INFO)
wandb.finish()
