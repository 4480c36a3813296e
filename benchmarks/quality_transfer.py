"""Whether Muon++'s rate and radius, tuned on a small model, hold on a wider one at Muon's loss.

    python -m benchmarks.quality_transfer [--steps 1000] [--seeds 3] [--long 4000] [--state FILE]

The same model and text as `benchmarks.quality`. Muon++ with its default policy and radius takes the best rate of a grid
at d = 64 with it to d = 128, as its rule says (`internist.mup.rules`: ×1 in width); Muon is tuned at d = 128 itself.
R(W) is looked at every 20 steps. What is no hidden matrix has one rate everywhere. `--long` adds one run of each,
of that many steps at the same rates. Results are kept as they come.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.quality_arms import Arm, arms
from benchmarks.quality_search import best_rate
from benchmarks.quality_trials import Laboratory, Row, Size, Trials

STATE = Path(".benchmarks/quality_transfer.jsonl")
RADIUS = 2.0
REST_LR = 2.0**-8
PLUS_PLUS_GRID = (2.0**-7, 2.0**-6, 2.0**-5)
MUON_GRID = (2.0**-7, 2.0**-6, 2.0**-5)
TUNING_SEED = 0
WATCH_EVERY = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_transfer", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=3, help="fresh seeds at d = 128")
    parser.add_argument("--long", type=int, default=0, help="steps of one more run of each, none by default")
    parser.add_argument("--state", type=Path, default=STATE, help=f"file of results (default {STATE})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("internist").setLevel(logging.ERROR)
    began = time.monotonic()
    laboratory = Laboratory(
        Trials(options.state), lambda line: print(f"[{(time.monotonic() - began) / 60:5.1f} min] {line}", flush=True)
    )
    plus = Arm("Muon++", "MuonPlusPlus", PLUS_PLUS_GRID[1], {"policy": "retract", "radius": RADIUS})
    muon = next(arm for arm in arms(RADIUS) if arm.name == "Muon")
    small, large = Size(64, options.steps), Size(128, options.steps)
    chosen = tune(laboratory, plus, small, PLUS_PLUS_GRID)
    best = tune(laboratory, muon, large, MUON_GRID)
    print(f"Muon++ at d = 64: {chosen}\nMuon at d = 128: {best}")
    ours: list[Row] = []
    theirs: list[Row] = []
    for seed in range(1, options.seeds + 1):
        ours.append(run(laboratory, plus, large, best_rate(chosen), seed))
        theirs.append(run(laboratory, muon, large, best_rate(best), seed))
        report(ours, theirs)
    if options.long:
        longer = Size(128, options.long)
        report(
            [run(laboratory, plus, longer, best_rate(chosen), TUNING_SEED)],
            [run(laboratory, muon, longer, best_rate(best), TUNING_SEED)],
        )
    return 0


def tune(laboratory: Laboratory, arm: Arm, size: Size, grid: Sequence[float]) -> dict[float, float]:
    """Rate to the loss that it gave with the tuning's seed."""
    return {rate: float(run(laboratory, arm, size, rate, TUNING_SEED)["loss"]) for rate in grid}


def run(laboratory: Laboratory, arm: Arm, size: Size, rate: float, seed: int) -> Row:
    """A run whose norms are watched."""
    return laboratory.run(arm, size, lr=rate, rest_lr=REST_LR, seed=seed, watch_every=WATCH_EVERY)


def report(ours: Sequence[Row], theirs: Sequence[Row]) -> None:
    """What the seeds so far say."""
    apart = [our["loss"] - their["loss"] for our, their in zip(ours, theirs, strict=True)]
    for name, rows in (("Muon++", ours), ("Muon", theirs)):
        norms = [norm for row in rows for seen in row["watched"] for norm in seen["weight"].values()]
        losses = ", ".join(f"{row['loss']:.4f}" for row in rows)
        print(f"{name}: losses {losses}; R(W) from {min(norms):.4f} to {max(norms):.4f}")
    print(f"Muon++ minus Muon: {statistics.fmean(apart):+.4f}, of {len(apart)} seeds", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
