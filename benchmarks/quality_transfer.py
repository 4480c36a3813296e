"""Whether Muon++'s rate and radius, tuned on a small model, hold on a wider one at Muon's loss.

    python -m benchmarks.quality_transfer [--steps 1000] [--seeds 5] [--long 4000] [--long-seeds 1] [--state FILE]

The same model and text as `benchmarks.quality`. At d = 64 Muon++ takes the best radius and rate of a grid that grows
until the best rate has a worse neighbour on both sides, and Muon its best rate likewise. Both are taken to d = 128 by
the rules of `internist.mup`, where fresh seeds start both from the same weights and give them the same batches, so
that what is compared is their difference by seed. `--neighbours` adds those runs at half and twice the rates, `--long`
longer runs at a half and a quarter of them. R(W) is looked at every 20 steps. What is no hidden matrix has one rate
everywhere. Results are kept as they come: it may be stopped at any moment, and goes on where it was.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.quality_arms import Arm, arms, spectral_arm
from benchmarks.quality_search import at_edge, best_rate, interval, next_rate
from benchmarks.quality_trials import Laboratory, Row, Size, Trials
from internist.mup.rules import Ratios, rule

STATE = Path(".benchmarks/quality_transfer.jsonl")
RADII = (1.0, 2.0, 3.0)
REST_LR = 2.0**-8
SMALL, LARGE = 64, 128
TUNING_SEED = 0
WATCH_EVERY = 20
LONG_FACTORS = (0.5, 0.25)
"""Shares of the rate of the short runs: the best rate falls as a run gets longer."""


@dataclass(frozen=True)
class Tuned:
    """An optimizer with the rates it was tried at on the small model."""

    arm: Arm
    grid: dict[float, float]
    """Rate to loss."""
    rule: str
    """Its name in the rules of `internist.mup`."""

    def rate(self, size: Size) -> float:
        """Its best rate, taken to another width by its rule."""
        ratio = size.width / SMALL
        return best_rate(self.grid) * rule(self.rule, "hidden").lr.at(Ratios(ratio, ratio, ratio))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_transfer", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds at d = 128")
    parser.add_argument("--neighbours", type=int, default=0, metavar="SEEDS", help="seeds at half and twice the rates")
    parser.add_argument("--long", type=int, default=0, help="steps of longer runs, none by default")
    parser.add_argument("--long-seeds", type=int, default=1, help="fresh seeds of these")
    parser.add_argument("--state", type=Path, default=STATE, help=f"file of results (default {STATE})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("internist").setLevel(logging.ERROR)
    began = time.monotonic()
    laboratory = Laboratory(
        Trials(options.state), lambda line: print(f"[{(time.monotonic() - began) / 60:5.1f} min] {line}", flush=True)
    )
    plus, muon = tuned(laboratory, Size(SMALL, options.steps))
    large, longer = Size(LARGE, options.steps), Size(LARGE, options.long)
    compare(laboratory, plus, muon, large, factor=1.0, seeds=options.seeds)
    if options.long:
        for factor in LONG_FACTORS:
            compare(laboratory, plus, muon, longer, factor=factor, seeds=1)
    for factor in (0.5, 2.0) if options.neighbours else ():
        compare(laboratory, plus, muon, large, factor=factor, seeds=options.neighbours)
    for factor in LONG_FACTORS if options.long and options.long_seeds > 1 else ():
        compare(laboratory, plus, muon, longer, factor=factor, seeds=options.long_seeds)
    return 0


def tuned(laboratory: Laboratory, small: Size) -> tuple[Tuned, Tuned]:
    """Muon++ at its best radius, and Muon, with the rates tried on the small model."""
    muon = next(arm for arm in arms(1.0) if arm.name == "Muon")
    grids = {radius: tune(laboratory, spectral_arm("retract", radius), small) for radius in RADII}
    for radius, grid in grids.items():
        print(f"Muon++ at d = {small.width}, radius {radius:g}: {described(grid)}")
    radius = min(grids, key=lambda one: min(grids[one].values()))
    plus = Tuned(spectral_arm("retract", radius), grids[radius], "muon_plus_plus")
    known = Tuned(muon, tune(laboratory, muon, small), "muon_jordan")
    print(f"Muon at d = {small.width}: {described(known.grid)}\nbest radius: {radius:g}", flush=True)
    return plus, known


def tune(laboratory: Laboratory, arm: Arm, size: Size) -> dict[float, float]:
    """Rate to the loss that it gave with the tuning's seed, the best at no edge."""
    grid: dict[float, float] = {}
    while (rate := next_rate(grid, arm.start, coarse=2.0, fine=2.0)) is not None:
        grid[rate] = float(run(laboratory, arm, size, rate, TUNING_SEED)["loss"])
    return grid


def described(grid: dict[float, float]) -> str:
    """A grid in words."""
    losses = ", ".join(f"{rate:.4g} {loss:.4f}" for rate, loss in sorted(grid.items()))
    return f"{losses}; best {best_rate(grid):.4g}{' (at an edge)' if at_edge(grid) else ''}"


def run(laboratory: Laboratory, arm: Arm, size: Size, rate: float, seed: int) -> Row:
    """A run whose norms are watched."""
    return laboratory.run(arm, size, lr=rate, rest_lr=REST_LR, seed=seed, watch_every=WATCH_EVERY)


def compare(laboratory: Laboratory, plus: Tuned, muon: Tuned, size: Size, *, factor: float, seeds: int) -> None:
    """Both at a share of their transferred rates, seed after seed, and what the seeds so far say."""
    ours: list[Row] = []
    theirs: list[Row] = []
    for seed in range(1, seeds + 1):
        ours.append(run(laboratory, plus.arm, size, plus.rate(size) * factor, seed))
        theirs.append(run(laboratory, muon.arm, size, muon.rate(size) * factor, seed))
        report(size, factor, ours, theirs)


def report(size: Size, factor: float, ours: Sequence[Row], theirs: Sequence[Row]) -> None:
    """Losses, norms, and the difference by seed."""
    print(f"d = {size.width}, depth {size.depth}, {size.steps} steps, {factor:g} of the transferred rates:")
    for name, rows in (("Muon++", ours), ("Muon", theirs)):
        norms = [norm for row in rows for seen in row["watched"] for norm in seen["weight"].values()]
        losses = ", ".join(f"{row['loss']:.4f}" for row in rows)
        mean = statistics.fmean(row["loss"] for row in rows)
        print(f"  {name}: losses {losses}, mean {mean:.4f}; R(W) from {min(norms):.4f} to {max(norms):.4f}")
    apart, half = interval([our["loss"] - their["loss"] for our, their in zip(ours, theirs, strict=True)])
    print(f"  Muon++ minus Muon: {apart:+.4f} ± {half:.4f}, of {len(ours)} seeds", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
