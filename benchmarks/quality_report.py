"""Tables and charts of what the quality benchmark found."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.charts import COLOURS, LARGE, Line, Panel, draw
from benchmarks.quality_search import at_edge, band_share, interval
from benchmarks.quality_trials import WARMUP, Row

if TYPE_CHECKING:
    from benchmarks.quality import Findings, Outcome

ORDER_ONE = 2.5
"""R(W) is of order one between this and its inverse: the bound from which the monitor warns."""
DRIFT = 2.0
"""A norm keeps its place within this factor of its own early median."""
EARLY = 0.1
"""The early part of a run, after warm-up, ends here."""
RESULTS = Path(__file__).with_name("RESULTS.md")
SAID = ("gap", "removed_share", "firings")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Course:
    """What a long run did to one kind of norm, over all hidden matrices."""

    early: float
    """Median of the early part."""
    last: float
    lowest_last: float
    highest_last: float
    """Median, lowest and highest of the last sample."""
    kept: float
    """Share of samples after the early part within a factor of DRIFT of their matrix's early median."""
    kept_last: float
    """The same of the last sample alone."""


def print_findings(findings: "Findings", *, as_json: bool) -> None:
    """Print the tables, or one object a line."""
    if not as_json:
        print("\n" + tables(findings))
        return
    for one in findings.outcomes:
        name = f"quality.d{one.size.width}.{one.arm.name}"
        for what, losses in (("equal steps", one.at_steps), ("equal time", one.at_time)):
            if not losses:
                continue
            mean, half = interval(losses)
            value = {"name": f"{name}.{what}", "value": round(mean, 4), "half_width": round(half, 4)}
            print(json.dumps({**value, "unit": "nats per byte", "lr": one.rate, "ms": round(1e3 * one.seconds, 2)}))
    for arm, _, lr, row in findings.long:
        if not math.isfinite(row["loss"]):
            continue
        weights, updates = course(row, "weight"), course(row, "update")
        value = {"name": f"quality.long.{arm.name}", "value": round(row["loss"], 4), "unit": "nats per byte", "lr": lr}
        print(json.dumps({**value, "weight_norms_kept": weights.kept, "update_norms_kept": updates.kept}))


def tables(findings: "Findings") -> str:
    """Everything as Markdown tables."""
    parts = []
    for size in dict.fromkeys(one.size for one in findings.outcomes):
        ours = [one for one in findings.outcomes if one.size == size]
        parts.append(
            f"**d = {size.width}**, depth {size.depth}, {size.batch} x {size.context} bytes a step, {size.steps} steps "
            f"({size.steps * size.batch * size.context:,} bytes), norms held at R(W) = 1:"
        )
        parts.append("\n".join(_comparison(ours)))
        said = [one for one in ours if any("optimizer.gap" in told for told in one.told)]
        if said:
            parts.append("What Muon++ said of its last step, over hidden matrices and seeds:")
            parts.append("\n".join(_said_table(said)))
    if findings.missing:
        parts.append(f"Not measured from here on: {findings.missing}.")
    if not findings.long:
        return "\n\n".join(parts) + "\n"
    long = findings.plan.long
    parts.append(
        f"**Long run**: d = {long.width}, depth {long.depth}, {long.batch} x {long.context} bytes a step, "
        f"{long.steps:,} steps, one seed:"
    )
    parts.append("\n".join(_long_table(findings)))
    if findings.radii:
        held = {c: min(grid.values()) for c, grid in findings.radii.items()}
        first = findings.plan.sizes[0]
        default = [one for one in findings.outcomes if one.size == first and one.arm.name == "Muon++ decay"]
        held |= {one.arm.settings["radius"]: one.grid[one.rate] for one in default}
        found = ", ".join(f"{held[c]:.3f} at c = {c:g}" for c in sorted(held))
        parts.append(
            f"Muon++ decay at other radii, d = {first.width}, best of each grid with the tuning's seed: {found}."
        )
    return "\n\n".join(parts) + "\n"


def course(row: Row, which: str) -> Course:
    """How the norms of a long run went; updates are taken per unit of the learning rate at their step."""
    series, early = _series(row, which), _early(row)
    base = {name: statistics.median(values[i] for i in early) for name, values in series.items()}
    late = [i for i, sample in enumerate(row["watched"]) if sample["step"] >= EARLY * row["asked"]["steps"]]
    against = [(values[i] / base[name], i) for name, values in series.items() for i in late]
    last = sorted(values[-1] for values in series.values())
    return Course(
        early=statistics.median(base.values()),
        last=statistics.median(last),
        lowest_last=last[0],
        highest_last=last[-1],
        kept=band_share([ratio for ratio, _ in against], 1 / DRIFT, DRIFT),
        kept_last=band_share([ratio for ratio, i in against if i == late[-1]], 1 / DRIFT, DRIFT),
    )


def order_one_share(row: Row) -> float:
    """Share of all samples of all hidden matrices whose R(W) is of order one."""
    return band_share([v for sample in row["watched"] for v in sample["weight"].values()], 1 / ORDER_ONE, ORDER_ONE)


def write_docs(findings: "Findings", folder: Path) -> None:
    """Write the tables between the marks of `quality.md` and of the page of results, and the charts beside them.

    Raises:
        ValueError: a page has no marks.
    """
    for page in (folder / "quality.md", RESULTS):
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f"expected {BEGIN} and {END} in {page}")
        page.write_text(f"{before}{BEGIN}\n\n{tables(findings)}\n{END}{after}", encoding="utf-8")
    for name, chart in charts(findings):
        (folder / "images" / f"quality-{name}.svg").write_text(chart, encoding="utf-8")


def charts(findings: "Findings") -> Iterator[tuple[str, str]]:
    """Name and SVG of each chart."""
    names = list(dict.fromkeys(one.arm.name for one in findings.outcomes)) + [arm.name for arm, *_ in findings.long]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}
    if "Muon, no decay" in colours:
        colours["Muon, no decay"] = colours["Muon"]

    def line(name: str, xs: Sequence[float], ys: Sequence[float]) -> Line:
        return Line(xs, ys, colours[name], dashed=name in ("torch Muon", "Muon, no decay"))

    panels = []
    for size in dict.fromkeys(one.size for one in findings.outcomes):
        ours = [one for one in findings.outcomes if one.size == size]
        lines = [line(one.arm.name, sorted(one.grid), [one.grid[r] for r in sorted(one.grid)]) for one in ours]
        best = min(min(one.grid.values()) for one in ours)
        title = f"d = {size.width}, {size.steps} steps"
        panels.append(Panel(title, lines, "learning rate", "loss", log_x=True, y_range=(best, best + 0.6)))
    compared = {one.arm.name for one in findings.outcomes}
    yield (
        "rates",
        draw(
            panels,
            columns=len(panels),
            legend=[(name, line(name, [], [])) for name in colours if name in compared],
            size=LARGE,
        ),
    )

    followed = list(dict.fromkeys(arm.name for arm, *_ in findings.long))
    if not followed:
        return
    panels = []
    for factor in dict.fromkeys(factor for _, factor, _, _ in findings.long):
        rows = [(arm, row) for arm, own, _, row in findings.long if own == factor]
        # the last loss is over other bytes than those along the way: it is in the table
        curves = [(arm, row["curve"][:-1]) for arm, row in rows if len(row["curve"]) > 1]
        lines = [line(arm.name, *zip(*curve, strict=True)) for arm, curve in curves]
        best = min(loss for _, curve in curves for _, loss in curve)
        panels.append(Panel(f"best rate x {factor:g}", lines, "step", "loss", y_range=(best, best + 0.8)))
    yield (
        "long",
        draw(panels, columns=len(panels), legend=[(name, line(name, [], [])) for name in followed], size=LARGE),
    )

    kinds = {"attn.qkv": COLOURS[0], "attn.proj": COLOURS[1], "mlp.fc1": COLOURS[2], "mlp.fc2": COLOURS[3]}
    panels = []
    for which in ("weight", "update"):
        for arm, _, lr, row in findings.long[: len(followed)]:
            lines = list(_norm_lines(row, which, kinds))
            title = f"{arm.name}, lr {lr:.2g}"
            if which == "weight":
                band, ends, label = (1 / ORDER_ONE, ORDER_ONE), (0.1, 100.0), "R(W)"
            else:
                band, ends, label = (1 / DRIFT, DRIFT), (0.1, 10.0), "R(ΔW)/lr, over early median"
            panels.append(Panel(title, lines, "step", label, log_y=True, y_range=ends, band=band))
    legend = [(kind, Line([], [], colour)) for kind, colour in kinds.items()]
    yield "norms", draw(panels, columns=min(4, len(followed)), legend=legend)


def _comparison(outcomes: Sequence["Outcome"]) -> Iterator[str]:
    yield "| optimizer | best lr (tried) | step time / AdamW | loss at equal steps | minus Muon | steps in AdamW's time | loss at equal time |"  # noqa: E501
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    adamw = next(one for one in outcomes if one.arm.kind == "AdamW")
    muon = next(one for one in outcomes if one.arm.kind == "Muon")
    for one in outcomes:
        edge = ", **at the edge**" if at_edge(one.grid) else ""
        minus = [a - b for a, b in zip(one.at_steps, muon.at_steps, strict=False)]  # of equal seeds
        cells = (
            one.arm.name,
            f"{one.rate:.2g} ({min(one.grid):.2g} to {max(one.grid):.2g}{edge})",
            f"{one.seconds / adamw.seconds:.2f}" if one.seconds else "",
            _with_interval(one.at_steps),
            "" if one is muon else _with_interval(minus, sign="+"),
            str(one.timed.steps) if one.timed else "",
            _with_interval(one.at_time),
        )
        yield f"| {' | '.join(cells)} |"


def _said_table(outcomes: Sequence["Outcome"]) -> Iterator[str]:
    yield "| optimizer | gap, median (smallest) | removed share, median | firings per matrix | of steps |"
    yield "| --- | --- | --- | --- | --- |"
    for one in outcomes:
        said = {name: [v for told in one.told for v in told[f"optimizer.{name}"]] for name in SAID}
        gap, share, firings = (said[name] for name in SAID)
        cells = (
            one.arm.name,
            f"{statistics.median(gap):.3f} ({min(gap):.3f})",
            f"{statistics.median(share):.2f}",
            f"{statistics.fmean(firings):.0f}",
            str(one.size.steps),
        )
        yield f"| {' | '.join(cells)} |"


def _long_table(findings: "Findings") -> Iterator[str]:
    yield "| optimizer | lr | loss | R(W) early → end (range at end) | of order one | kept | kept at end | R(ΔW)/lr early → end | kept | kept at end |"  # noqa: E501
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for arm, _, lr, row in findings.long:
        if not math.isfinite(row["loss"]):
            yield f"| {arm.name} | {lr:.4g} | diverged at step {row['diverged_at']} |" + " |" * 7
            continue
        weights, updates = course(row, "weight"), course(row, "update")
        cells = (
            arm.name,
            f"{lr:.4g}",
            f"{row['loss']:.3f}",
            f"{weights.early:.2f} → {weights.last:.2f} ({weights.lowest_last:.2f} to {weights.highest_last:.2f})",
            f"{order_one_share(row):.0%}",
            f"{weights.kept:.0%}",
            f"{weights.kept_last:.0%}",
            f"{updates.early:.2f} → {updates.last:.2f}",
            f"{updates.kept:.0%}",
            f"{updates.kept_last:.0%}",
        )
        yield f"| {' | '.join(cells)} |"


def _with_interval(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:{sign}.3f} ± {half:.3f}" + (f" (n = {len(values)})" if len(values) < 3 else "")


def _series(row: Row, which: str) -> dict[str, list[float]]:
    """Matrix to its norms by sample; those of updates over the learning rate of their step."""
    samples = row["watched"]
    return {
        name: [sample[which][name] / (sample["rate"] if which == "update" else 1.0) for sample in samples]
        for name in samples[0][which]
    }


def _early(row: Row) -> list[int]:
    """Samples after warm-up in the early part of the run."""
    steps = row["asked"]["steps"]
    return [i for i, sample in enumerate(row["watched"]) if WARMUP * steps <= sample["step"] < EARLY * steps]


def _norm_lines(row: Row, which: str, kinds: dict[str, str]) -> Iterator[Line]:
    """A curve for each matrix; updates over their early median."""
    steps = [sample["step"] for sample in row["watched"]]
    for name, values in _series(row, which).items():
        base = statistics.median(values[i] for i in _early(row)) if which == "update" else 1.0
        colour = next(colour for kind, colour in kinds.items() if kind in name)
        yield Line(steps, [value / base for value in values], colour)
