"""FSDP2: `torchrun --nproc-per-node 2 examples/recipes/fsdp2.py`. Shard blocks and the root, then watch; every rank
calls it. Each tells what its pieces say, and the server merges them."""

import os

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

import internist

if "RANK" not in os.environ:  # started without torchrun: a group of one
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

blocks = [nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)]
model = nn.Sequential(nn.Embedding(32, 16), *blocks, nn.Linear(16, 32))
for block in blocks:
    fully_shard(block)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

internist.watch(model, optimizer)

for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9))
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)

internist.finish()
distributed.destroy_process_group()
