"""Two optimizers for one model: name both, and a round is over when both have stepped."""

import torch
from torch import nn
from torch.nn import functional

import internist

model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.Linear(16, 32))
matrices = [model[1].weight, model[3].weight]
chosen = {id(parameter) for parameter in matrices}
rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
muon = torch.optim.Muon(matrices, lr=2e-3)
adamw = torch.optim.AdamW(rest, lr=1e-3)

internist.watch(model, [muon, adamw])

for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9))
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    muon.step()
    adamw.step()
    model.zero_grad()
    internist.log(loss=loss)
