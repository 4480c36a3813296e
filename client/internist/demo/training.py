"""The demo's training script: an ordinary loop, with two lines added.

`--mistake` makes one: from step 400 to 459 the learning rate of block 2 is thirty times too high. The script tells
nobody; only what
the model does can give it away.
"""

import argparse
import time

import torch

from internist.demo.model import ByteGPT, batch, text

STEPS = 640
MISTAKE_FROM, MISTAKE_UNTIL = 400, 460
SICK_BLOCK = 2
FACTOR = 30.0
LEARNING_RATE = 3e-4
WARMUP = 40


def train(steps: int, *, mistake: bool, seed: int = 0) -> None:
    """Train a byte-level GPT on CPython's manual pages; one progress line per 10 steps on standard output."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    corpus = text()
    model = ByteGPT(width=128, depth=4, heads=4, context=128)
    optimizer = torch.optim.AdamW(groups(model), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    if mistake:
        make_mistake(optimizer)

    import internist

    internist.watch(model, optimizer, max_overhead=0)  # a tiny model: a sample costs more than its steps

    began = time.monotonic()
    for step in range(steps):
        inputs, targets = batch(corpus, 8, model.context, generator)
        loss = model(inputs, targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 9:
            print(
                f"step {step + 1} loss {loss.item():.4f} rate {(step + 1) / (time.monotonic() - began):.2f}", flush=True
            )


def groups(model: ByteGPT) -> list[dict[str, object]]:
    """One parameter group per block, and one for the rest."""
    blocks = [list(block.parameters()) for block in model.blocks]
    inside = {id(parameter) for block in blocks for parameter in block}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [{"params": parameters} for parameters in (*blocks, rest)]


def make_mistake(optimizer: torch.optim.Optimizer) -> None:
    """Let one block's updates be made with 30 times the rate for 60 steps, while the group goes on saying the right
    one."""
    steps = iter(range(1 << 60))
    honest: list[float] = []

    def before(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG001
        group = optimizer.param_groups[SICK_BLOCK]
        honest.append(group["lr"])
        if MISTAKE_FROM <= next(steps) < MISTAKE_UNTIL:
            group["lr"] *= FACTOR

    def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:  # noqa: ARG001
        optimizer.param_groups[SICK_BLOCK]["lr"] = honest.pop()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def main() -> None:
    """Run the script from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--mistake", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.steps, mistake=options.mistake, seed=options.seed)


if __name__ == "__main__":
    main()
