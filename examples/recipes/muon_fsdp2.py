"""Muon++ over shards, in a loop like torchtitan's: `torchrun --nproc-per-node 2 examples/recipes/muon_fsdp2.py`. Shard,
then split the parameters and build the optimizer: the shards say where they are. Checkpoints are torch's own."""

import os
import tempfile

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import internist
from internist.demo.model import ByteGPT
from internist.optim import MuonPlusPlus, split_parameters

if "RANK" not in os.environ:  # started without torchrun: a group of one
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
device = "cuda" if torch.cuda.is_available() else "cpu"
distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
torch.manual_seed(0)

model = ByteGPT(width=16, depth=2, heads=4, context=16).to(device)
for block in model.blocks:
    fully_shard(block)
fully_shard(model)
optimizer = MuonPlusPlus(split_parameters(model, lr=0.02, adamw_lr=3e-4))
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))

internist.watch(model, optimizer)

for step in range(12):
    for _ in range(2):  # gradients are accumulated
        tokens = torch.randint(0, 256, (4, 17), device=device)
        (model(tokens[:, :-1], tokens[:, 1:]).loss / 2).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    if step == 5:
        folder = [tempfile.mkdtemp() if distributed.get_rank() == 0 else ""]
        distributed.broadcast_object_list(folder)
        weights, state = get_state_dict(model, optimizer)
        checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
        checkpoint.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)

internist.finish()
distributed.destroy_process_group()
