"""Tensor parallel: `torchrun --nproc-per-node 2 examples/recipes/tensor_parallel.py`. Cut the layers, then watch; every
rank calls it. Outputs that are cut over ranks are drawn between two bounds, and merged where they merge."""

import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional

import internist

if "RANK" not in os.environ:  # started without torchrun: a group of one
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
device = "cuda" if torch.cuda.is_available() else "cpu"
distributed.init_process_group("nccl" if device == "cuda" else "gloo")
mesh = init_device_mesh(device, (distributed.get_world_size(),), mesh_dim_names=("tp",))

torch.manual_seed(0)  # ranks of one group train on the same batches
model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.Linear(16, 32))
parallelize_module(model.to(device), mesh, {"1": ColwiseParallel(), "3": RowwiseParallel()})
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

internist.watch(model, optimizer)

for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9)).to(device)
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)

internist.finish()
distributed.destroy_process_group()
