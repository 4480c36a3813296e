"""Train the demo's byte GPT with Muon++, watched: `python examples/muon_plus_plus.py`.

Hidden matrices go to Muon++, everything else to AdamW, in one optimizer. With `internist serve` running, its board
shows the routing table and what the optimizer tells of itself; without a server the measurements wait in
./internist-runs for `internist sync`.
"""

import argparse

import torch

import internist
from internist.demo.model import ByteGPT, batch, text
from internist.optim import MuonPlusPlus, split_parameters

WIDTH, DEPTH, HEADS, CONTEXT = 128, 4, 4, 128
BATCH = 8
MATRIX_LR = 0.04
"""Spectral norm of one update over √(fan_out / fan_in): a fiftieth of the norm that weights keep."""
ADAMW_LR = 3e-4
WARMUP = 40


def train(steps: int, *, policy: str = "retract", seed: int = 0) -> float:
    """Train it, and return the last loss."""
    torch.manual_seed(seed)
    generator, corpus = torch.Generator().manual_seed(seed), text()
    model = ByteGPT(width=WIDTH, depth=DEPTH, heads=HEADS, context=CONTEXT)

    groups = split_parameters(model, lr=MATRIX_LR, adamw_lr=ADAMW_LR)
    optimizer = MuonPlusPlus(groups, policy=policy)  # type: ignore[arg-type]
    print(groups)

    internist.watch(model, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    loss = torch.zeros(())
    for step in range(steps):
        inputs, targets = batch(corpus, BATCH, CONTEXT, generator)
        loss = model(inputs, targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 9:
            print(f"step {step + 1} loss {loss.item():.4f}", flush=True)
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--policy", choices=("retract", "decay", "cap", "none"), default="retract")
    options = parser.parse_args()
    train(options.steps, policy=options.policy)
