"""Whether `max_overhead` holds for models of many small modules, where a sample costs more than a step.

    python -m benchmarks.governor [--json] [--steps N]

Two equal models train in one process with default arguments, one of them watched, in alternating blocks of steps; the
bare one's steps are no part of the watched run's time, of which a share may be spent. Time is the CPU time of the whole
process, the monitor's threads included. Shown is watched over bare, of the first hundred
steps and of those behind, where the governor keeps the monitor within its share.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import internist

START, BLOCK = 100, 20
"""Steps in which the start's allowance may be used up; steps of a block."""
VOCABULARY, BATCH, CONTEXT = 64, 8, 64


class Branch(nn.Module):
    """A residual branch: norm, two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Experts(nn.Module):
    """A residual branch of many experts, all of them called."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(width), nn.Linear(width, number)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)) for _ in range(number)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        weights = self.router(y).softmax(-1)
        return x + sum(weights[..., i : i + 1] * expert(y) for i, expert in enumerate(self.experts))  # type: ignore[no-any-return]


class Model(nn.Module):
    """A language model of such blocks."""

    def __init__(self, width: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(VOCABULARY, width), nn.ModuleList(blocks)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], Model]] = {
    "64 blocks of width 64": lambda: Model(64, [Branch(64) for _ in range(64)]),
    "4 blocks of 64 experts": lambda: Model(64, [Experts(64, 64) for _ in range(4)]),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.governor", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--steps", type=int, default=500, help="steps of each model (default 500)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, make in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            early, late, said = measure(make, options.steps, Path(folder))
        for part, (total, median) in (("first 100 steps", early), ("from step 100", late)):
            if options.json:
                row = {"name": f"governor.{name}.{part}", "value": round(total, 4), "unit": "of bare steps"}
                print(json.dumps(row))
            else:
                print(f"{name:<24} {part:<16} watched / bare {total:.3f}, median of blocks {median:.3f}")
        if not options.json:
            print(f"{'':<24} in the end {said}")
    return 0


def measure(
    make: Callable[[], Model], steps: int, folder: Path
) -> tuple[tuple[float, float], tuple[float, float], str]:
    """Watched over bare, of all blocks together and as the median of pairs, before and from step 100; and the cadence
    in the end, in words."""
    bare, watched = Trainer(make), Trainer(make)
    monitor = internist.watch(watched.model, watched.optimizer, mode="offline", directory=folder)
    stopwatch = monitor._observer._pacing.work  # type: ignore[union-attr]
    times: list[tuple[int, float, float]] = []
    for first in range(0, steps, BLOCK):
        pair = {}
        for each in (bare, watched) if first // BLOCK % 2 else (watched, bare):
            began, then = time.process_time(), time.perf_counter()
            for _ in range(BLOCK):
                each.step()
            pair[each] = time.process_time() - began
            if each is bare:
                stopwatch._round_began += time.perf_counter() - then
        times.append((first, pair[watched], pair[bare]))
    said = monitor._observer._pacing.in_words()  # type: ignore[union-attr]
    monitor.finish()
    return ratio([t for t in times if t[0] < START]), ratio([t for t in times if t[0] >= START]), said


def ratio(times: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Watched over bare: of the sums, and the median of pairs."""
    return sum(w for _, w, _ in times) / sum(b for _, _, b in times), statistics.median(w / b for _, w, b in times)


class Trainer:
    """A model, its optimizer, and one training step of it."""

    def __init__(self, make: Callable[[], Model]) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1))

    def step(self) -> None:
        logits = self.model(self.ids[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


if __name__ == "__main__":
    raise SystemExit(main())
