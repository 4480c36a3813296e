"""Whether the best learning rate of a small model is that of a wide and of a deep one, under muP and under SP.

    python -m benchmarks.mup_transfer [--quick] [--json] [--state FILE] [--only-report] [--docs]

A byte GPT is trained on real text at every width (with norms) and depth (without, as norms hide depth's errors),
learning rate and seed. Rates are seven factors of two, more where the best would be at an edge, and √2 steps beside the
best. The optimum is that of a parabola in log2 of the rate over an octave on either side of the best, with a residual
bootstrap. PASS where under muP the 90 % interval of its shift from the smallest size lies within one √2 step at every
size and the transferred rate costs less than 0.02 nats; INCONCLUSIVE where under the standard parametrisation (SP) it
does not shift by two steps. The full form takes about forty minutes of one core; every result is kept as it comes, so
it may be stopped and started again.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.charts import COLOURS, LARGE, Line, Panel, draw
from benchmarks.mup_fits import Grid, Optimum, Shift, mean_losses, optimum, rates_wanted, shift, transfer_verdict
from benchmarks.mup_models import Arm, Shape
from benchmarks.mup_reports import Report, run
from benchmarks.mup_trials import BATCH, MupLaboratory
from benchmarks.quality_trials import NotMeasuredError
from internist.schema.scaling import Axis

DURATION = "about forty minutes of one core"


@dataclass(frozen=True)
class Family:
    """Models of growing width or depth, and how they are trained."""

    optimizer: str
    axis: Axis
    sizes: tuple[int, ...]
    base: Shape
    first: int
    """log2 of the lowest of the common rates."""
    steps: int
    seeds: tuple[int, ...] = (0, 1, 2)
    n_rates: int = 7

    @property
    def title(self) -> str:
        """Optimizer and axis."""
        return f"{self.optimizer} in {self.axis}"

    @property
    def rates(self) -> list[float]:
        """The common rates."""
        return [2.0 ** (self.first + i) for i in range(self.n_rates)]

    def shape(self, size: int) -> Shape:
        """The model of a size."""
        return replace(self.base, width=size) if self.axis == "width" else replace(self.base, depth=size)

    def described(self) -> str:
        """In words, for the page."""
        held = f"depth {self.base.depth}" if self.axis == "width" else f"width {self.base.width}, no norms"
        sizes = ", ".join(map(str, self.sizes))
        return (
            f"**{self.title}** ({sizes}; {held}; {self.steps} steps of {BATCH} x {self.base.context} bytes; "
            f"{len(self.seeds)} seeds):"
        )


@dataclass
class Outcome:
    """What one rule gave over a family, as far as it came."""

    family: Family
    rule: str
    grids: dict[int, Grid] = field(default_factory=dict)
    optima: dict[int, Optimum] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a size has no optimum."""

    @property
    def shifts(self) -> dict[int, Shift]:
        """From the smallest size to each other one that has an optimum."""
        first, *others = self.family.sizes
        if first not in self.optima:
            return {}
        return {size: shift(self.optima[first], self.optima[size]) for size in others if size in self.optima}


WIDTH_BASE, DEPTH_BASE = Shape(32, 2), Shape(32, 2, norms=False)
DEPTH_ADAMW = Family("AdamW", "depth", (2, 4, 8, 16), DEPTH_BASE, first=-10, steps=150, seeds=(0, 1, 2, 3, 4, 5))
"""Without norms runs diverge near the best rate: three seeds left the intervals too wide to judge by."""
FULL = (
    Family("AdamW", "width", (32, 64, 128, 256), WIDTH_BASE, first=-10, steps=200),
    DEPTH_ADAMW,
    Family("Muon-Kimi", "width", (32, 64, 128, 256), WIDTH_BASE, first=-9, steps=200),
)
QUICK_DEPTH = Family("AdamW", "depth", (2, 4, 8), Shape(32, 2, norms=False), first=-9, steps=30, seeds=(0,), n_rates=4)
QUICK = (
    Family("AdamW", "width", (32, 64, 128), WIDTH_BASE, first=-8, steps=30, seeds=(0, 1), n_rates=4),
    QUICK_DEPTH,
)
RULES = ("muP", "SP")


def study(laboratory: MupLaboratory, quick: bool) -> Report:
    """Measure and report."""
    return compare(laboratory, QUICK if quick else FULL, RULES, "transfer")


def compare(laboratory: MupLaboratory, families: Sequence[Family], rules: Sequence[str], name: str) -> Report:
    """Every rule over every family, small sizes first.

    Args:
        name: of the proof.
    """
    outcomes = [[Outcome(family, rule) for rule in rules] for family in families]
    missing = ""
    try:
        for family, ours in zip(families, outcomes, strict=True):
            for size in family.sizes:
                for outcome in ours:
                    _search(laboratory, outcome, size)
    except NotMeasuredError as error:
        missing = f"Not measured from here on: {error}."
    parts = [part for ours in outcomes for part in _text(ours)] + ([missing] if missing else [])
    records = [record for ours in outcomes for outcome in ours for record in _records(outcome, name)]
    panels = [_panel(outcome) for ours in outcomes for outcome in ours if outcome.grids]
    charts = {}
    if panels:
        legend = [
            (f"{family.axis} {size}", Line([], [], _colour([family], size)))
            for axis in dict.fromkeys(family.axis for family in families)
            for family in [next(family for family in families if family.axis == axis)]
            for size in family.sizes
        ]
        charts[f"mup-{name}.svg"] = draw(panels, columns=len(rules), legend=legend, size=LARGE)
    return Report("\n\n".join(parts), records, charts)


def _search(laboratory: MupLaboratory, outcome: Outcome, size: int) -> None:
    family = outcome.family
    grid: dict[float, list[float]] = {}
    # at the base every rule is the same
    arm = Arm(family.optimizer, "muP" if size == family.sizes[0] else outcome.rule)
    while wanted := rates_wanted(grid, family.rates):
        for rate in wanted:
            grid[rate] = [
                laboratory.final_loss(arm, family.shape(size), family.base, steps=family.steps, lr=rate, seed=seed)
                for seed in family.seeds
            ]
    outcome.grids[size] = grid
    try:
        outcome.optima[size] = optimum(grid)
    except ValueError as error:
        outcome.reasons[size] = str(error)


def _text(ours: Sequence[Outcome]) -> Iterator[str]:
    if not ours[0].grids:
        return
    yield ours[0].family.described()
    yield "\n".join(_table(ours))
    yield from (f"{o.rule}, {o.family.axis} {size}: {reason}." for o in ours for size, reason in o.reasons.items())
    verdict = verdict_of(ours)
    if verdict:
        yield f"Verdict: {verdict}"


def verdict_of(ours: Sequence[Outcome]) -> str:
    """The verdict on the first rule, against the standard parametrisation, with what it was made of; empty while a size
    is not measured."""
    planned, standard = ours[0], next(outcome for outcome in ours if outcome.rule == "SP")
    family = planned.family
    if any(set(outcome.grids) != set(family.sizes) for outcome in (planned, standard)):
        return ""
    last = family.sizes[-1]
    if planned.reasons or last not in standard.shifts:
        return "INCONCLUSIVE: an optimum is missing."
    said = transfer_verdict(list(planned.shifts.values()), standard.shifts[last])
    worst = max(planned.shifts.values(), key=lambda each: max(abs(each.low), abs(each.high)))
    return (
        f"**{said}**. {planned.rule}: the interval of the shift reaches {_steps(worst.low)} to {_steps(worst.high)} √2 "
        f"steps, the transferred rate costs up to {max(each.regret for each in planned.shifts.values()):.3f} nats. "
        f"SP, {family.axis} {family.sizes[0]} to {last}: {_steps(standard.shifts[last].octaves)} steps."
    )


def _table(ours: Sequence[Outcome]) -> Iterator[str]:
    axis = ours[0].family.axis
    columns = ("rule", axis, "best log2 lr (90 %)", "lowest loss", "shift, √2 steps (90 %)")
    yield f"| {' | '.join(columns)} | cost of the base's rate, nats (90 %) |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for number, outcome in enumerate(ours):
        shifts = outcome.shifts
        for size in outcome.grids:
            if size == outcome.family.sizes[0] and number:
                continue  # the same runs
            best, moved = outcome.optima.get(size), shifts.get(size)
            rule = "all" if size == outcome.family.sizes[0] else outcome.rule
            cells = [rule, str(size), "none found" if best is None else _range(best.at, *best.interval, ".2f")]
            cells.append(f"{min(mean_losses(outcome.grids[size]).values()):.3f}")
            cells.append(
                "" if moved is None else f"{_steps(moved.octaves)} ({_steps(moved.low)} to {_steps(moved.high)})"
            )
            cells.append("" if moved is None else _range(moved.regret, moved.regret_low, moved.regret_high, ".3f"))
            yield f"| {' | '.join(cells)} |"


def _records(outcome: Outcome, name: str) -> Iterator[dict[str, object]]:
    for size, best in outcome.optima.items():
        label = f"mup.{name}.{outcome.family.title}.{outcome.rule}.{size}"
        low, high = best.interval
        yield {"name": f"{label}.log2_lr", "value": round(best.at, 4), "low90": round(low, 4), "high90": round(high, 4)}
    for size, moved in outcome.shifts.items():
        label = f"mup.{name}.{outcome.family.title}.{outcome.rule}.{size}"
        ends = {"low90": round(2 * moved.low, 4), "high90": round(2 * moved.high, 4)}
        yield {"name": f"{label}.shift", "value": round(2 * moved.octaves, 4), "unit": "√2 steps", **ends}
        yield {"name": f"{label}.regret", "value": round(moved.regret, 4), "unit": "nats per byte"}


def _panel(outcome: Outcome) -> Panel:
    lines = []
    best = min(min(mean_losses(grid).values()) for grid in outcome.grids.values())
    for size, grid in outcome.grids.items():
        means, colour = mean_losses(grid), _colour([outcome.family], size)
        lines.append(Line(sorted(means), [means[rate] for rate in sorted(means)], colour))
        if size in outcome.optima:
            lines.append(Line([2.0 ** outcome.optima[size].at], [outcome.optima[size].loss], colour))
    title = f"{outcome.rule}, {outcome.family.title}"
    return Panel(title, lines, "learning rate", "loss", log_x=True, y_range=(best, best + 0.8))


def _colour(families: Sequence[Family], size: int) -> str:
    family = next(family for family in families if size in family.sizes)
    return COLOURS[family.sizes.index(size)]


def _steps(octaves: float) -> str:
    return f"{2 * octaves:+.1f}" if math.isfinite(octaves) else f"{octaves:+}"


def _range(value: float, low: float, high: float, how: str) -> str:
    return f"{value:{how}} ({low:{how}} to {high:{how}})"


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return run("transfer", __doc__ or "", DURATION, study, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
