"""Training scripts for system tests: a tiny GPT with two lines added, as one process or as one rank of several."""

import argparse

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import internist
from internist.demo.model import ByteGPT, batch, text
from internist.demo.training import groups

MISTAKE = range(360, 400)
SICK_BLOCK = 1
FACTOR = 30.0
_kept: list[ByteGPT] = []


def small_model() -> ByteGPT:
    """Small enough to make hundreds of steps in seconds."""
    torch.manual_seed(0)
    return ByteGPT(width=32, depth=3, heads=2, context=16)


def train(steps: int, *, mistake: bool, **options: object) -> internist.Monitor:
    """Train it in this process, with one block's rate 30 times too high for a while."""
    model = small_model()
    _kept.append(model)  # a run ends with its model
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3, betas=(0.9, 0.95))
    generator, corpus = torch.Generator().manual_seed(1), text()
    monitor = internist.watch(model, optimizer, max_overhead=0, **options)  # type: ignore[arg-type]
    for step in range(steps):
        optimizer.param_groups[SICK_BLOCK]["lr"] = 1e-3 * (FACTOR if mistake and step in MISTAKE else 1.0)
        inputs, targets = batch(corpus, 8, 16, generator)
        loss = model(inputs, targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return monitor


def train_rank(steps: int) -> None:
    """One rank of a DistributedDataParallel job; rank and world size come from the environment."""
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    model = DistributedDataParallel(small_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, max_overhead=0)
    inputs, targets = ddp_batch(world)
    for _ in range(steps):
        loss = model(inputs[rank::world], targets[rank::world]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor.finish(timeout=60)
    distributed.destroy_process_group()


def ddp_batch(world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch that all ranks share, rank r taking rows r, r + world, ..."""
    return batch(text(), 4 * world, 16, torch.Generator().manual_seed(2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    train_rank(parser.parse_args().steps)
