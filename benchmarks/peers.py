"""What others take for looking into a model: CPU time of training beside that of an equal model that nobody looks at.

    python -m benchmarks.peers [--json] [--rounds N]

Models of one kind and one start, each looked at by one tool at the same cadence (every tenth step), and one by nobody,
train in turns: a hundred steps of each a round, in random order. What is told of a tool is the median over rounds of
its CPU time over the bare model's of that round, with the smallest and the largest. It is the time of this process:
wandb hands what it gathered to a process of its own, which is not counted.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import internist
from internist.demo.model import ByteGPT, batch, text

EVERY: Final = 10
STEPS: Final = 100
"""Of each model in a round: ten samples, of which one is heavy with us."""
BATCH, CONTEXT = 8, 64
REGULAR: Final = 100_000
"""From here on our samples are as far apart as they are asked for."""

Look = Callable[[int], None]
"""What a tool does when a step of this number is over."""


class Training(NamedTuple):
    """What a tool looks at, and where it may write."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    directory: Path


@contextmanager
def nobody(_: Training) -> Iterator[Look]:
    """The bare model."""
    yield lambda _: None


@contextmanager
def by_internist(seen: Training) -> Iterator[Look]:
    """All that is on by default, with nothing thinned, into a file."""
    monitor = internist.watch(
        seen.model, seen.optimizer, mode="offline", directory=seen.directory, every=EVERY, step=REGULAR, max_overhead=0
    )
    yield lambda _: None
    monitor.finish()


@contextmanager
def by_hand(seen: Training) -> Iterator[Look]:
    """A hook on every module and a loop over parameters, each number read at once: RMS of outputs, weights and
    gradients."""
    told, step_now = [0.0], [0]

    def note(_: nn.Module, __: object, output: object) -> None:
        if step_now[0] % EVERY == 0 and isinstance(output, Tensor):
            told.append(output.detach().square().mean().sqrt().item())

    handles = [module.register_forward_hook(note) for module in seen.model.modules()]

    def look(step: int) -> None:
        if step % EVERY == 0:
            for parameter in seen.model.parameters():
                told.append(parameter.detach().square().mean().sqrt().item())
                told.append(parameter.grad.square().mean().sqrt().item() if parameter.grad is not None else 0.0)
        told.clear()
        step_now[0] = step + 1

    yield look
    for handle in handles:
        handle.remove()


@contextmanager
def by_tensorboard(seen: Training) -> Iterator[Look]:
    """A histogram of every parameter and of every gradient."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(seen.directory))

    def look(step: int) -> None:
        if step % EVERY == 0:
            for name, parameter in seen.model.named_parameters():
                writer.add_histogram(name, parameter, step)
                writer.add_histogram(f"{name}.grad", parameter.grad, step)

    yield look
    writer.close()


@contextmanager
def by_wandb(seen: Training) -> Iterator[Look]:
    """`wandb.watch(log="all")`: a histogram of every parameter and of every gradient."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(mode="offline", dir=str(seen.directory), project="peers")
    run.watch(seen.model, log="all", log_freq=EVERY)
    yield lambda step: run.log({"step": step})
    run.finish()


TOOLS: Final[dict[str, Callable[[Training], AbstractContextManager[Look]]]] = {
    "nobody": nobody,
    "internist": by_internist,
    "hooks by hand, `.item()`": by_hand,
    "TensorBoard, histograms": by_tensorboard,
    'wandb, `watch(log="all")`': by_wandb,
}


def measure(rounds: int) -> dict[str, list[float]]:
    """CPU time of each tool's steps over the bare model's, a number a round."""
    torch.set_num_threads(1)
    corpus, generator = text(), torch.Generator().manual_seed(0)
    data = [batch(corpus, BATCH, CONTEXT, generator) for _ in range(8)]
    order, found = random.Random(0), dict[str, list[float]]()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        step_of = {}
        for place, (name, tool) in enumerate(TOOLS.items()):
            torch.manual_seed(0)
            model = ByteGPT(width=128, depth=4, heads=4, context=CONTEXT)
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
            look = stack.enter_context(tool(Training(model, optimizer, directory / str(place))))
            step_of[name] = _training(model, optimizer, look, data)
        for turn in range(rounds + 1):  # the first is not counted: libraries load in it
            names = list(TOOLS)
            order.shuffle(names)
            took = {}
            for name in names:
                began = time.process_time()
                for step in range(turn * STEPS, (turn + 1) * STEPS):
                    step_of[name](step)
                took[name] = time.process_time() - began
            for name in TOOLS if turn else ():
                found.setdefault(name, []).append(took[name] / took["nobody"])
    return found


def _training(
    model: nn.Module, optimizer: torch.optim.Optimizer, look: Look, data: list[tuple[Tensor, Tensor]]
) -> Callable[[int], None]:
    def step(number: int) -> None:
        inputs, targets = data[number % len(data)]
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        look(number)

    return step


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=8, help="of a hundred steps of each (default: 8)")
    options = parser.parse_args()
    for name, ratios in measure(max(1, options.rounds)).items():
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        if options.json:
            print(json.dumps({"tool": name, "ratio": middle, "low": low, "high": high, "rounds": len(ratios)}))
        else:
            print(f"{name:28} {middle:.3f} [{low:.3f}, {high:.3f}] of {len(ratios)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
