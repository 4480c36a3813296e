"""What watching costs a training step, and what it must not touch."""

import gc
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

import internist
from benchmarks.gpu.clock import allocated, finished, most_allocated, seconds, synchronisations
from benchmarks.gpu.model import Size, Trainer
from benchmarks.gpu.rows import Row
from internist.schema.metrics import METRICS

FIRST = 10_000
"""The number of the first watched step: beyond the dense start, and a multiple of every cadence."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured of a kind of training."""

    size: Size
    compiler: str | None
    every: int = 10
    """Steps between light samples; heavy ones are ten times rarer."""
    pairs: int = 4
    """Blocks, from one heavy step to before the next, of each of the two, in turn."""
    heavy_steps: int = 3
    """How many are timed alone."""
    warm: int = 100
    """Watched steps that do not count; whole blocks where single steps are timed."""

    @property
    def block(self) -> int:
        """Steps from one heavy step to the next."""
        return 10 * self.every


@dataclass(frozen=True, slots=True)
class Bars:
    """The most that is allowed."""

    fixed: float
    """Watched over bare, at a fixed cadence."""
    defaults: float | None = None
    light_ms: float | None = None
    heavy_ms: float | None = None


def overhead(section: str, plan: Plan, bars: Bars, device: torch.device) -> list[Row]:
    """Watched over bare, at a fixed cadence with the governor off and at defaults; and single steps of each kind."""
    bare, watched = (Trainer(plan.size, device, plan.compiler) for _ in range(2))
    _steps(bare, 5)
    rows = []
    with _watching(watched, every=plan.every, max_overhead=0):
        _steps(watched, plan.warm)
        ratios = [took / other for other, took in _pairs(bare, watched, plan, device)]
        rows.append(Row(section, "watched / bare, fixed cadence", statistics.median(ratios), bars.fixed))
        if bars.light_ms is not None:
            light, heavy = _single_steps(watched, plan, device)
            rows.append(Row(section, "a light step, more than one without", light, bars.light_ms, "ms"))
            rows.append(Row(section, "a heavy step, more than one without", heavy, bars.heavy_ms, "ms"))
    if bars.defaults is not None:
        with _watching(watched, every=plan.every):
            _steps(watched, 2 * plan.warm)  # the governor learns what samples cost
            pairs = _pairs(bare, watched, plan, device)
        # sums: the governor may leave most blocks without a heavy step, which a median would not see
        ratio = sum(took for _, took in pairs) / sum(other for other, _ in pairs)
        rows.append(Row(section, "watched / bare, at defaults", ratio, bars.defaults))
    return rows


def harmless(section: str, plan: Plan, device: torch.device) -> list[Row]:
    """Losses, synchronisations and memory of the first steps of two equal trainings, one of them watched."""
    number = 4 * plan.every + 1
    on_card = device.type == "cuda"
    losses, peaks, waits = [], [], 0
    for is_watched in (False, True):
        gc.collect()
        before = allocated(device)
        trainer = Trainer(plan.size, device, plan.compiler)
        if plan.compiler is not None:  # compilers wait for the device
            _steps(trainer, 3)
        with _watching(trainer, every=plan.every, max_overhead=0, step=0) if is_watched else nullcontext():
            with synchronisations(device) as found:
                own = [trainer.step() for _ in range(number)]
            losses.append(torch.stack(own).cpu())
            peaks.append(most_allocated(device) - before)
            waits += len(found) if is_watched else 0
        del trainer, own
    unequal = int((losses[0].view(torch.int32) != losses[1].view(torch.int32)).sum())
    return [
        Row(section, f"losses of {number} that differ in a bit", float(unequal), 0.0, ""),
        Row(section, f"synchronisations in {number} steps", float(waits) if on_card else None, 0.0, ""),
        Row(section, "peak memory, watched / bare", peaks[1] / peaks[0] if on_card else None, 1.01),
    ]


def spectra(section: str, plan: Plan, bar_ms: float, device: torch.device) -> list[Row]:
    """What a step costs that measures the spectra of a quarter of the matrices, and nothing else."""
    names = [name for name, metric in METRICS.items() if metric.cadence == "matrix_heavy"]
    trainer = Trainer(plan.size, device, None)
    with _watching(trainer, every=plan.every, max_overhead=0, metrics=names):
        _steps(trainer, 4 * plan.block)  # each quarter once: the next measurement starts where this one ended
        _, heavy = _single_steps(trainer, plan, device)
    return [Row(section, "spectra of a quarter of the matrices", heavy, bar_ms, "ms")]


def _pairs(bare: Trainer, watched: Trainer, plan: Plan, device: torch.device) -> list[tuple[float, float]]:
    """Seconds of blocks of bare steps and of the watched ones that followed."""
    return [
        (
            seconds(lambda: _steps(bare, plan.block), device),
            seconds(lambda: _steps(watched, plan.block), device),
        )
        for _ in range(plan.pairs)
    ]


def _single_steps(trainer: Trainer, plan: Plan, device: torch.device) -> tuple[float, float]:
    """By how many milliseconds light and heavy steps are longer than others, medians over whole blocks."""
    took: dict[str, list[float]] = {"none": [], "light": [], "heavy": []}
    for number in range(plan.block * plan.heavy_steps):
        kind = "heavy" if number % plan.block == 0 else "light" if number % plan.every == 0 else "none"
        began = finished(device)
        trainer.step()
        took[kind].append(finished(device) - began)
    none, light, heavy = (1e3 * statistics.median(each) for each in took.values())
    return light - none, heavy - none


def _steps(trainer: Trainer, number: int) -> None:
    for _ in range(number):
        trainer.step()


@contextmanager
def _watching(
    trainer: Trainer, *, step: int = FIRST, metrics: Sequence[str] | None = None, **how: Any
) -> Iterator[None]:
    """The model is watched meanwhile, and what is measured goes to a folder."""
    with tempfile.TemporaryDirectory() as folder:
        monitor = internist.watch(
            trainer.model, trainer.optimizer, mode="offline", directory=folder, step=step, metrics=metrics, **how
        )
        try:
            yield
        finally:
            monitor.finish()
