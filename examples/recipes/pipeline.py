"""Pipeline: `torchrun --nproc-per-node 2 examples/recipes/pipeline.py`. Each rank watches its own stage: blocks are
numbered through all of them, so that the board shows one model."""

import os

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn import functional

import internist

if "RANK" not in os.environ:  # started without torchrun: a group of one
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
rank, stages = distributed.get_rank(), distributed.get_world_size()


class Stage(nn.Module):
    """Two blocks, with the embedding before the first stage's and the head after the last one's."""

    def __init__(self, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16) if is_first else None
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(16, 32) if is_last else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Token ids, or what the stage before gave, to what the next one takes, or to logits."""
        x = x if self.embed is None else self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return x if self.head is None else self.head(x)


torch.manual_seed(rank)
model = Stage(is_first=rank == 0, is_last=rank == stages - 1).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = ScheduleGPipe(
    PipelineStage(model, rank, stages, device),
    n_microbatches=2,
    loss_fn=lambda logits, targets: functional.cross_entropy(logits.flatten(0, 1), targets.flatten()),
)

internist.watch(model, optimizer)

generator = torch.Generator().manual_seed(0)  # first and last stage see the same batches
for _ in range(12):
    tokens = torch.randint(0, 32, (4, 9), generator=generator).to(device)
    losses: list[torch.Tensor] = []
    inputs = (tokens[:, :-1],) if rank == 0 else ()
    schedule.step(*inputs, **({"target": tokens[:, 1:], "losses": losses} if rank == stages - 1 else {}))
    optimizer.step()
    optimizer.zero_grad()
    if losses:
        internist.log(loss=torch.stack(losses).mean())

internist.finish()
distributed.destroy_process_group()
