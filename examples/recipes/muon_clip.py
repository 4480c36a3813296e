"""MuonClip: one optimizer for all parameters. Hidden matrices are Muon's, everything else AdamW's, and after each step
heads whose logits passed `clip_tau` shrink. `normuon` and `cautious` are switches of Muon."""

import torch

import internist
from internist.demo.model import ByteGPT
from internist.optim import MuonClip, split_parameters

model = ByteGPT(width=16, depth=2, heads=4, context=16)
groups = split_parameters(model, lr=0.02, adamw_lr=3e-4)
optimizer = MuonClip(model, groups, clip_tau=100.0, normuon=0.95, cautious=True)
print(groups)  # who steps what

internist.watch(model, optimizer)

for _ in range(12):
    tokens = torch.randint(0, 256, (4, 17))
    model(tokens[:, :-1], tokens[:, 1:]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
