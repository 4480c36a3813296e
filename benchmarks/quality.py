"""How well the optimizers train: loss at equal steps and at equal time, and what a long run does to the norms.

    python -m benchmarks.quality [--quick] [--state FILE] [--only-report] [--docs]

A byte GPT on CPython's manual pages. Each optimizer takes the best of its own grid of learning rates, which grows until
its best is at no edge; then fresh seeds are trained for as many steps as AdamW, and for as many steps as fit in AdamW's
time (CPU time of whole training steps, all optimizers' steps interleaved). A long run follows the operator norms of
every hidden matrix and of its updates. The full form takes about an hour of one core. Every result is appended to the
state file as it comes, so it may be stopped at any moment and started again; results whose optimizer has changed since
are computed anew. --docs writes the tables and the charts into docs/.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.quality_arms import Arm, arms, spectral_arm, undecayed_muon
from benchmarks.quality_search import best_rate, next_rate
from benchmarks.quality_trials import Laboratory, NotMeasuredError, Row, Size, Trials

STATE = Path(".benchmarks/quality.jsonl")
RADIUS = 1.0
TUNING_SEED = 0
LONG_SEED = 1


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    sizes: tuple[Size, ...]
    long: Size
    arms: tuple[str, ...]
    long_arms: tuple[str, ...]
    radii: tuple[float, ...] = ()
    """Other c that Muon++ is tried with at the first size; the comparison holds R(W) = RADIUS, the optimizer's own."""
    seeds: tuple[int, ...] = (1, 2, 3)
    coarse: float = 4.0
    fine: float = 2.0
    rounds: int = 40
    long_factors: tuple[float, ...] = (1.0, 0.25)
    """Shares of its best short rate that each optimizer takes in the long run."""
    watch_every: int = 50


ALL = tuple(arm.name for arm in arms(RADIUS))
LONG = ("AdamW", "Muon, no decay", "Muon", "Muon++ decay", "Muon++ retract", "MuonSphere", "Muon++ decay, open")
FULL = Plan((Size(128, 200), Size(256, 100)), Size(128, 5_000, batch=4), ALL, LONG, radii=(2.0, 4.0))
QUICK = Plan(
    (Size(128, 30),),
    Size(128, 200, batch=4),
    ("AdamW", "torch Muon", "Muon", "Muon++ decay", "MuonSphere"),
    ("AdamW", "Muon", "Muon++ decay"),
    fine=4.0,
    rounds=15,
    long_factors=(1.0,),
    watch_every=10,
)


@dataclass
class Outcome:
    """What one optimizer reached at one size."""

    arm: Arm
    size: Size
    grid: dict[float, float]
    """Learning rate to the loss it gave with the tuning seed."""
    seconds: float = 0.0
    """CPU seconds of a training step; 0 while it is not measured."""
    timed: Size | None = None
    """The size with as many steps as fit in AdamW's time."""
    at_steps: list[float] = field(default_factory=list)
    at_time: list[float] = field(default_factory=list)
    """Losses by seed, as far as measured."""
    told: list[Row] = field(default_factory=list)
    """What the optimizer said of itself at the end of the runs at equal steps."""

    @property
    def rate(self) -> float:
        """The best learning rate."""
        return best_rate(self.grid)


@dataclass
class Findings:
    """What the benchmark found, as far as it came."""

    plan: Plan
    radii: dict[float, dict[float, float]] = field(default_factory=dict)
    """c to the grid that Muon++ gave with it."""
    outcomes: list[Outcome] = field(default_factory=list)
    long: list[tuple[Arm, float, float, Row]] = field(default_factory=list)
    """Optimizer, share of its best short rate, learning rate, result."""
    missing: str = ""
    """What was not measured first; empty when all was."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: minutes, and nothing that could be quoted")
    parser.add_argument("--state", type=Path, help=f"file of results (default {STATE}; with --quick a new one)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only-report", action="store_true", help="measure nothing: report what the state file has")
    parser.add_argument("--docs", type=Path, nargs="?", const=Path("docs"), help="write tables and charts there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("internist").setLevel(logging.ERROR)  # what Muon++ would log is in the table, as firings
    from benchmarks.quality_report import print_findings, write_docs

    with tempfile.TemporaryDirectory() as folder:
        state = options.state or (Path(folder) / "quality.jsonl" if options.quick else STATE)
        began = time.monotonic()

        def say(line: str) -> None:
            if not options.json:
                print(f"[{(time.monotonic() - began) / 60:5.1f} min] {line}", flush=True)

        if not options.only_report:
            say(f"results go to {state}; all of it takes {'minutes' if options.quick else 'about an hour of one core'}")
        laboratory = Laboratory(Trials(state), say, only_read=options.only_report)
        findings = investigate(QUICK if options.quick else FULL, laboratory)
    print_findings(findings, as_json=options.json)
    if options.docs:
        write_docs(findings, options.docs)
    return 0


def investigate(plan: Plan, laboratory: Laboratory) -> Findings:
    """Do what the plan says; the long run comes before the second size, as it needs the first alone."""
    findings = Findings(plan)
    try:
        _investigate(findings, laboratory)
    except NotMeasuredError as error:
        findings.missing = str(error)
    return findings


def _investigate(findings: Findings, laboratory: Laboratory) -> None:
    plan, first = findings.plan, findings.plan.sizes[0]
    compared = [arm for arm in arms(RADIUS) if arm.name in plan.arms]
    rest_lr = compare(laboratory, findings, compared, first)
    follow(laboratory, findings, compared, rest_lr, factor=plan.long_factors[0])
    for size in plan.sizes[1:]:
        compare(laboratory, findings, compared, size)
    for factor in plan.long_factors[1:]:
        follow(laboratory, findings, compared, rest_lr, factor=factor)
    for c in plan.radii:
        findings.radii[c] = tune(laboratory, plan, spectral_arm("decay", c), first, rest_lr=rest_lr)


def follow(
    laboratory: Laboratory, findings: Findings, compared: Sequence[Arm], rest_lr: float, *, factor: float
) -> None:
    """Make the long runs at a share of each optimizer's best rate at the first size."""
    plan = findings.plan
    rates = {one.arm.name: one.rate for one in findings.outcomes if one.size == plan.sizes[0]}
    rates["Muon, no decay"] = rates["Muon"]
    known = {arm.name: arm for arm in (*compared, undecayed_muon())}
    for name in plan.long_arms:
        row = laboratory.run(
            known[name],
            plan.long,
            lr=rates[name] * factor,
            rest_lr=rest_lr * factor,
            seed=LONG_SEED,
            watch_every=plan.watch_every,
            points=20,
        )
        findings.long.append((known[name], factor, rates[name] * factor, row))


def compare(laboratory: Laboratory, findings: Findings, compared: Sequence[Arm], size: Size) -> float:
    """Tune every optimizer at a size, then train the seeds at equal steps and at equal time.

    Returns:
        The learning rate of what is no hidden matrix: AdamW's best.
    """
    plan, outcomes, rest_lr = findings.plan, [], 0.0
    for arm in compared:
        grid = tune(laboratory, plan, arm, size, rest_lr=rest_lr)
        if arm.kind == "AdamW":
            rest_lr = best_rate(grid)
        outcomes.append(Outcome(arm, size, grid))
    findings.outcomes += outcomes
    seconds = laboratory.step_times(compared, size, rounds=plan.rounds)
    for one in outcomes:
        one.seconds = seconds[one.arm.name]
        one.timed = replace(size, steps=round(size.steps * seconds["AdamW"] / one.seconds))
        for seed in plan.seeds:
            row = laboratory.run(one.arm, size, lr=one.rate, rest_lr=rest_lr, seed=seed)
            one.at_steps.append(row["loss"])
            one.told.append(row.get("told", {}))
            one.at_time.append(laboratory.loss(one.arm, one.timed, lr=one.rate, rest_lr=rest_lr, seed=seed))
    return rest_lr


def tune(laboratory: Laboratory, plan: Plan, arm: Arm, size: Size, *, rest_lr: float) -> dict[float, float]:
    """Learning rate to loss, the best at no edge."""
    grid: dict[float, float] = {}
    while (rate := next_rate(grid, arm.start, coarse=plan.coarse, fine=plan.fine)) is not None:
        grid[rate] = laboratory.loss(arm, size, lr=rate, rest_lr=rest_lr, seed=TUNING_SEED)
    return grid


if __name__ == "__main__":
    raise SystemExit(main())
