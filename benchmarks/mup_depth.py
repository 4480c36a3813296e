"""Branches of two transformations without norms: the rule 1/L for k >= 2 against the rule 1/√L for k = 1.

    python -m benchmarks.mup_depth [--quick] [--json] [--state FILE] [--only-report] [--docs]

A byte GPT without normalisation layers, width 32, AdamW: under muP (branches times 1/L), under the rule for branches of
one transformation (branches and hidden learning rates times 1/√L) and under the standard parametrisation (SP). First
the features: ten steps on one batch at depths 2 to 64, and of what the MLP branches' change adds to the stream the
part of first order (either matrix alone) and of second order (both together), which the rule for k = 1 lets vanish, at
least as L^-1/2. Then the best learning rate by depth, as in `benchmarks.mup_transfer`, whose runs it shares. The full
form takes about ten minutes of one core where those are done, else twenty; every result is kept as it comes, so it may
be stopped and started again.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.charts import COLOURS, LARGE, Line, Panel, draw
from benchmarks.mup_fits import Slope, geometric_mean, slope
from benchmarks.mup_models import Arm, Shape
from benchmarks.mup_reports import Report, run
from benchmarks.mup_transfer import DEPTH_ADAMW, QUICK_DEPTH, compare
from benchmarks.mup_trials import FEATURE_STEPS, MupLaboratory
from benchmarks.quality_trials import NotMeasuredError, Row

DURATION = "about ten minutes of one core after mup_transfer, else twenty"
RULES = ("muP", "k = 1", "SP")
BASE = DEPTH_ADAMW.base
DEPTHS, SEEDS = (2, 4, 8, 16, 32, 64), (0, 1, 2)
RATES = (2.0**-12, 2.0**-9)
"""So small that features answer linearly, and so large that ten steps change them by more than what they were."""
QUANTITIES = {
    "output, last": "output",
    "change, last": "change",
    "first order": "first_order",
    "second order": "second_order",
}
EXPECTED: dict[str, tuple[str, ...]] = {
    "muP": tuple(QUANTITIES),
    "k = 1": ("output, last", "change, last", "first order"),
    "SP": (),
}
"""What a rule keeps of order one by its own derivation. The rule for k = 1 bounds the second order by L^-1/2."""

Key = tuple[str, float]
"""Rule and learning rate."""


def study(laboratory: MupLaboratory, quick: bool) -> Report:
    """Measure and report: features, then learning rates."""
    depths, seeds = ((2, 4, 8), (0, 1)) if quick else (DEPTHS, SEEDS)
    rows: dict[Key, dict[int, list[Row]]] = {(rule, rate): {} for rate in RATES for rule in RULES}
    missing = ""
    try:
        for depth in depths:
            for rule, rate in rows:
                rows[rule, rate][depth] = _rows(laboratory, rule, rate, replace(BASE, depth=depth), seeds)
    except NotMeasuredError as error:
        missing = f"Not measured from here on: {error}."
    fits = _fits(rows)
    transfer = compare(laboratory, [QUICK_DEPTH if quick else DEPTH_ADAMW], RULES, "depth")
    text = [
        f"**Exponents in depth without norms** ({', '.join(map(str, depths))}; width {BASE.width}; AdamW; {len(seeds)} "
        f"seeds; {FEATURE_STEPS} steps), ± half of the 90 % interval; PASS where the rule is to keep it and does:",
        "\n".join(_table(fits)),
        *([missing] if missing else []),
        transfer.markdown,
    ]
    records: list[Mapping[str, object]] = [
        {
            "name": f"mup.depth.{rule}.2^{math.log2(rate):g}.{what}",
            "value": round(fit.exponent, 4),
            "low90": round(fit.low, 4),
            "high90": round(fit.high, 4),
            "verdict": fit.verdict if what in EXPECTED[rule] else "",
        }
        for ((rule, rate), what), fit in fits.items()
    ]
    charts = {**transfer.charts, **dict(_charts(rows))}
    return Report("\n\n".join(text), [*records, *transfer.records], charts)


def _rows(laboratory: MupLaboratory, rule: str, rate: float, shape: Shape, seeds: Sequence[int]) -> list[Row]:
    # at the base every rule is the same
    arm = Arm("AdamW", "muP" if shape == BASE else rule)
    return [laboratory.features(arm, shape, BASE, lr=rate, seed=seed) for seed in seeds]


def value_of(row: Row, what: str) -> float:
    """A quantity of one run."""
    value = row[QUANTITIES[what]]
    return float(value[-1] if isinstance(value, list) else value)


def _fits(rows: Mapping[Key, Mapping[int, Sequence[Row]]]) -> dict[tuple[Key, str], Slope]:
    fits = {}
    for key, by_depth in rows.items():
        for what in QUANTITIES:
            values = {depth: [value_of(row, what) for row in each] for depth, each in by_depth.items()}
            fit = slope(values, "depth")
            if fit is not None:
                fits[key, what] = fit
    return fits


def _table(fits: Mapping[tuple[Key, str], Slope]) -> Iterator[str]:
    yield "| rule | lr | " + " | ".join(QUANTITIES) + " |"
    yield "| --- | --- |" + " --- |" * len(QUANTITIES)
    for rule, rate in ((rule, rate) for rate in RATES for rule in RULES):
        cells = []
        for what in QUANTITIES:
            fit = fits.get(((rule, rate), what))
            number, _, verdict = str(fit).rpartition(" ")
            cells.append("not finite" if fit is None else f"{number} {verdict}" if what in EXPECTED[rule] else number)
        yield f"| {rule} | 2^{math.log2(rate):g} | {' | '.join(cells)} |"


def _charts(rows: Mapping[Key, Mapping[int, Sequence[Row]]]) -> Iterator[tuple[str, str]]:
    panels = []
    for what in QUANTITIES:
        lines = [
            Line(
                list(each),
                [geometric_mean([value_of(row, what) for row in r]) for r in each.values()],
                _colour(rule),
                dashed=rate != RATES[0],
            )
            for (rule, rate), each in rows.items()
            if each
        ]
        panels.append(Panel(what, lines, "depth", "RMS", log_x=True, log_y=True))
    if any(panel.lines for panel in panels):
        legend = [
            (f"{rule}, lr 2^{math.log2(rate):g}", Line([], [], _colour(rule), dashed=rate != RATES[0]))
            for rule, rate in rows
        ]
        yield "mup-depth-features.svg", draw(panels, columns=2, legend=legend, size=LARGE)


def _colour(rule: str) -> str:
    return COLOURS[RULES.index(rule)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return run("depth", __doc__ or "", DURATION, study, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
