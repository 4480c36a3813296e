"""Whether features keep their size over width and depth: RMS of block outputs and of their change after ten steps.

    python -m benchmarks.mup_stability [--quick] [--json] [--state FILE] [--only-report] [--docs]

A byte GPT is trained for ten steps on one batch of real text, at widths 64 to 1024 (two blocks) and depths 2 to 64
(width 64), under muP and under the standard parametrisation (SP), with AdamW, Muon-Kimi and Muon++. The exponent is the
slope of ln(RMS) over ln(size), of the geometric mean over seeds: PASS where its 90 % interval lies within ±0.1, FAIL
where its 95 % interval lies outside, else INCONCLUSIVE. The full form takes about ten minutes of one core; every result
is kept as it comes, so it may be stopped and started again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from benchmarks.charts import COLOURS, LARGE, Line, Panel, draw
from benchmarks.mup_fits import Slope, geometric_mean, slope
from benchmarks.mup_models import Arm, Shape
from benchmarks.mup_reports import Report, run
from benchmarks.mup_trials import FEATURE_STEPS, MupLaboratory
from benchmarks.quality_trials import NotMeasuredError, Row
from internist.scaling.exponents import AXES
from internist.schema.scaling import Axis

DURATION = "about ten minutes of one core"
RATES = {"AdamW": 2.0**-12, "Muon-Kimi": 2.0**-6, "Muon++": 2.0**-6}
"""Of hidden matrices at the base: so small that ten steps of SP at the largest width change a matrix by no more than
about its own norm, where features still answer linearly."""
ADAMW_RATE = 2.0**-12
"""Of everything else, under Muon."""
ARMS = tuple(Arm(optimizer, rule) for optimizer in RATES for rule in ("muP", "SP"))
QUANTITIES = {
    "output, middle": ("output", 0.5),
    "output, last": ("output", 1.0),
    "change, middle": ("change", 0.5),
    "change, last": ("change", 1.0),
    "logits' change": ("logits_change", 1.0),
}
"""What is fitted: a value, or of one for each block that of the last block within this share of the depth. With two
blocks, middle and last are both of them; over depths only blocks at the same share of it can be compared."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def base(self) -> Shape:
        """The shape at which both rules agree."""
        return Shape(self.widths[0], self.depths[0])

    def sizes(self, axis: Axis) -> tuple[int, ...]:
        """The widths or the depths."""
        return self.widths if axis == "width" else self.depths


FULL = Plan((64, 128, 256, 512, 1024), (2, 4, 8, 16, 32, 64), (0, 1, 2))
QUICK = Plan((64, 128, 256), (2, 4, 8), (0, 1))


@dataclass
class Findings:
    """Features by rule and optimizer, axis and size, a row of each seed."""

    plan: Plan
    rows: dict[tuple[Arm, Axis], dict[int, list[Row]]] = field(default_factory=dict)
    missing: str = ""


def study(laboratory: MupLaboratory, quick: bool) -> Report:
    """Measure and report; the smallest sizes of all arms come first."""
    findings = Findings(QUICK if quick else FULL)
    try:
        _measure(laboratory, findings)
    except NotMeasuredError as error:
        findings.missing = str(error)
    fits = {
        (arm, axis, what): fit
        for (arm, axis), rows in findings.rows.items()
        for what in QUANTITIES
        if (fit := slope({size: [value_of(row, what) for row in each] for size, each in rows.items()}, axis))
    }
    records = [
        {
            "name": f"mup.stability.{arm.name}.{axis}.{what}",
            "value": round(fit.exponent, 4),
            "low90": round(fit.low, 4),
            "high90": round(fit.high, 4),
            "verdict": fit.verdict,
            "sizes": len(findings.rows[arm, axis]),
        }
        for (arm, axis, what), fit in fits.items()
    ]
    charts = dict(_charts(findings))
    return Report("\n\n".join(_text(findings, fits)), records, charts)


def value_of(row: Row, what: str) -> float:
    """A quantity of one run."""
    name, share = QUANTITIES[what]
    values = row[name]
    return float(values[math.ceil(share * len(values)) - 1] if isinstance(values, list) else values)


def _measure(laboratory: MupLaboratory, findings: Findings) -> None:
    plan = findings.plan
    shapes: list[tuple[Axis, Shape]] = [("width", replace(plan.base, width=width)) for width in plan.widths]
    shapes += [("depth", replace(plan.base, depth=depth)) for depth in plan.depths]
    for axis, shape in sorted(shapes, key=lambda item: item[1].width ** 2 * item[1].depth):
        for arm in ARMS:
            lr, adamw_lr = RATES[arm.optimizer], None if arm.optimizer == "AdamW" else ADAMW_RATE
            rows = [
                laboratory.features(arm, shape, plan.base, lr=lr, adamw_lr=adamw_lr, seed=seed) for seed in plan.seeds
            ]
            size = shape.width if axis == "width" else shape.depth
            findings.rows.setdefault((arm, axis), {})[size] = rows


def _text(findings: Findings, fits: dict[tuple[Arm, Axis, str], Slope]) -> Iterator[str]:
    plan = findings.plan
    for axis in AXES:
        sizes = ", ".join(map(str, plan.sizes(axis)))
        held = f"depth {plan.base.depth}" if axis == "width" else f"width {plan.base.width}"
        yield (
            f"**Exponents in {axis}** ({sizes}; {held}; {len(plan.seeds)} seeds) of the RMS of block outputs and of "
            f"their change over {FEATURE_STEPS} steps, ± half of the 90 % interval:"
        )
        yield "\n".join(_table(fits, axis))
        yield _verdicts(fits, axis)
    if findings.missing:
        yield f"Not measured from here on: {findings.missing}."


def _table(fits: dict[tuple[Arm, Axis, str], Slope], axis: Axis) -> Iterator[str]:
    yield "| rule, optimizer | " + " | ".join(QUANTITIES) + " |"
    yield "| --- |" + " --- |" * len(QUANTITIES)
    for arm in dict.fromkeys(arm for arm, along, _ in fits if along == axis):
        cells = [str(fits.get((arm, axis, what), "")) for what in QUANTITIES]
        yield f"| {arm.name} | {' | '.join(cells)} |"


def _verdicts(fits: dict[tuple[Arm, Axis, str], Slope], axis: Axis) -> str:
    """One sentence: how many of muP's exponents are within ±0.1, and what SP's largest is."""
    sentences = []
    for optimizer in RATES:
        planned = [fit for (arm, along, _), fit in fits.items() if arm == Arm(optimizer, "muP") and along == axis]
        standard = {
            what: fit for (arm, along, what), fit in fits.items() if arm == Arm(optimizer, "SP") and along == axis
        }
        if not planned or not standard:
            continue
        counts = [sum(fit.verdict == verdict for fit in planned) for verdict in ("PASS", "FAIL", "INCONCLUSIVE")]
        worst = max(standard, key=lambda what: abs(standard[what].exponent))
        said = f"{counts[0]} PASS, {counts[1]} FAIL, {counts[2]} INCONCLUSIVE"
        sentences.append(f"{optimizer}: muP {said}; SP's largest is {standard[worst].exponent:+.2f} ({worst})")
    return ". ".join(sentences) + "." if sentences else "Too few sizes for an exponent."


def _charts(findings: Findings) -> Iterator[tuple[str, str]]:
    panels = []
    for axis in AXES:
        for what in ("change, last", "logits' change"):
            lines = [
                Line(
                    list(rows),
                    [geometric_mean([value_of(row, what) for row in each]) for each in rows.values()],
                    *_style(arm),
                )
                for (arm, along), rows in findings.rows.items()
                if along == axis and rows
            ]
            panels.append(Panel(f"{what}, by {axis}", lines, axis, "RMS", log_x=True, log_y=True))
    if any(panel.lines for panel in panels):
        legend = [(arm.name, Line([], [], *_style(arm))) for arm in ARMS]
        yield "mup-stability.svg", draw(panels, columns=2, legend=legend, size=LARGE)


def _style(arm: Arm) -> tuple[str, bool]:
    return COLOURS[list(RATES).index(arm.optimizer)], arm.rule == "SP"


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return run("stability", __doc__ or "", DURATION, study, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
