"""Writes docs/metrics.md from the catalogue, the conditions and the rules: `python -m docs.catalogue`."""

from pathlib import Path

from internist.schema import conditions, rules
from internist.schema.conditions import CONDITIONS, CRITERIA, Criterion
from internist.schema.metrics import CATALOGUE, Metric

PAGE = Path(__file__).with_name("metrics.md")

SUBJECTS = {
    "Activations": ("activation", "block"),
    "Weights": ("weight",),
    "Updates": ("update",),
    "Residual branches": ("branch",),
    "Gradients": ("gradient",),
    "Attention": ("attention",),
    "Experts": ("router",),
    "Output": ("output",),
    "Optimizers, of themselves": ("optimizer",),
    "As the run gives them": ("loss", "learning_rate", "weight_decay", "schedule"),
    "The monitor itself": ("monitor",),
}

MERGES = {
    "mean_square": "root of the mean of squares, weighted by count",
    "sum_square": "root of the sum of squares",
    "mean": "mean, weighted by count",
    "max": "largest",
    "sum": "sum",
    "first": "as given by the lowest rank that sent it",
    "differs": "whether the ranks' checksums are not all the same",
}

CRITERION_HEADS = "condition | metric | of | sides | schedule | baseline | reference | target: warns, violates"

CADENCES = {
    "light": "light",
    "model_heavy": "model-heavy",
    "matrix_heavy": "matrix-heavy",
    "logged": "when logged",
}

INTRODUCTION = """\
<!-- Written by `python -m docs.catalogue` from the schema; edit that, not this page. -->

# Metrics and conditions

What Internist measures, and what it holds the values against. A metric never changes its meaning under the same name: a
changed definition is a new name.

A *token* is any position of an activation other than its feature dimension (the last; for convolutions the channels,
so that a pixel is a token). A *probe* is a small fixed part of the batch. Weights are `(fan_out, fan_in)`. ΔW is the
weight after a step minus the weight before it, as stored in the parameter's own dtype.
`R(A) = √(fan_in / fan_out) · ‖A‖₂` is the RMS-to-RMS operator norm of a matrix.

NaN and infinities are values: they are kept, drawn as marks and violate at once. A point not measured is absent.

## Cadence

| class | measured |
| --- | --- |
| light | every `every` steps (10 by default) |
| model-heavy | every `10 × every` steps |
| matrix-heavy | every `10 × every` steps, a rotating quarter of the matrices |
| when logged | whenever the run reports it |

While a run is young, the samples of every class lie on a geometric grid instead, eight an octave, until its regular
ones are denser: steps 0 to 16 all, then every second, from 32 on every fourth, and so on, all matrices at once.
[t/4, t/2] then holds eight samples from step 32 on, which a baseline needs. Where samples cost more than
`max_overhead` allows, the governor thins them by powers of two, each class by itself, so that what a coarser grid
holds a finer one does too; the `monitor.` series tell what is in force.

A frame's step is the number of optimizer rounds completed before its forward pass; the update that ends that round
has the same number.
"""


BRANCHES = """\
## Residual branches

The spectral conditions under width *and* depth ([μP](mup.md)) are about products. A model of L blocks adds branches
`h ← h + α W_k … W_1 h` to its stream; at every width and depth `α·R(W_k)…R(W_1)`, and the same product with any one
norm or any two replaced by those of the updates, are to be of order 1/L (k ≥ 2), and of one matrix `α·R(W)` of order
1/√L and `α·R(ΔW)` of order 1/L. The metrics are multiplied by L (√L), so that all are of order one, and runs of any
depth can be laid side by side. They are worked out on the host from the frame's own `weight.operator_norm` and
`update.operator_norm`: nothing is asked of the device for them. The matrices of one branch are measured in one turn.

- *L*: the residual blocks of the model, as this process has it.
- *Stages*: the matrices of a branch in the order in which their shapes fit; side by side where they take the same input
  (a gate and what it gates), of which the largest norm counts. Attention's are its values and its output.
- *Queries and keys* have products of their own, with s·d for α: s is what attention multiplies `q·k` by, d the features
  of a head.
- *Fused projections*: the rows that take part have at most the norm of the whole: bound `upper`.
- *Experts*: each has products of its own.
- *α*: what the forward hooks of `internist.mup` say, times what the block's own code multiplies by: the RMS of what it
  adds over that of its branches' outputs together. Between 1/2 and 2 that is taken for one: outputs that point the same
  way, or against each other, make the rest.
- *α not seen*: where a norm may stand behind the branch, or the block's output is the branch's, α may be smaller: bound
  `upper`.

An upper bound is never held against a target, since it proves no excess. The targets allow for a base of 4 blocks (the
product of the right parametrisation at any depth is that of its base) and for R(W) of 2.5 in each of two matrices.
Branches whose stages cannot be told have no products; norms' gains and what lies between two stages are not reckoned.

## Number formats

What of a tensor *underflows* and *saturates* says whether low precision is safe. Of the format in use: entries that
are not zero and smaller than its smallest normal number (they have lost bits), and entries at or beyond its largest.
Of the next narrower format: entries that are not zero and would round to zero, and entries that would round past its
largest number; rounding is to nearest, ties to even, and no scale is applied first. A gradient counts as it is stored,
with a gradient scaler's scale on it: that is what its format has to hold. NaN and infinities count as saturated.

| in use | next narrower | rounds to zero up to | rounds past the largest from |
| --- | --- | --- | --- |
| float64 | float32 | 2⁻¹⁵⁰ | 2¹²⁸ − 2¹⁰³ |
| float32 | float16 (bfloat16 has float32's range) | 2⁻²⁵ | 65,520 |
| bfloat16, float16: activations, weights | float8 E4M3 | 2⁻¹⁰ | above 464 |
| bfloat16, float16: gradients | float8 E5M2 | 2⁻¹⁷ | 61,440 |

Activations are looked at on the probe tokens, weights and gradients on up to 1,024 entries, evenly strided over all
columns: bound `sampled`. A series' method names its two formats. These are shown, not judged. The choice of float8 for
gradients and for the rest is that of Micikevicius et al. 2022, arXiv:2209.05433.
"""


def page() -> str:
    """The whole of docs/metrics.md."""
    sections = metrics_section(), BRANCHES, conditions_section(), criteria_section(), rules_section()
    return "\n".join([INTRODUCTION, *sections])


def metrics_section() -> str:
    """The catalogue: one table per subject."""
    lines = [
        "## Metrics",
        "",
        "*Merged* says how the parts of several micro-batches, and then of several ranks, become one value.",
        "",
    ]
    for title, subjects in SUBJECTS.items():
        lines += [f"### {title}", "", *table("metric | of each | unit | what it is | merged | cadence | source")]
        lines += [row(*metric_cells(metric)) for metric in CATALOGUE if metric.name.split(".")[0] in subjects]
        lines.append("")
    return "\n".join(lines)


def conditions_section() -> str:
    """What must hold, and what to try first when it does not."""
    lines = ["## Conditions", "", *table("condition | holds when | first look at")]
    lines += [row(f"`{c.name}`<br>{c.title}", c.summary, c.advice) for c in CONDITIONS]
    return "\n".join([*lines, ""])


def criteria_section() -> str:
    """Which metric speaks for which condition, and with which bands."""
    lines = [
        "## Bands",
        "",
        "*Baseline*: the run's own, the median over its points with step in [t/4, t/2], at least "
        f"{conditions.BASELINE_MINIMUM_POINTS} of them. "
        f"A value more than {conditions.BASELINE_CRITICAL:g} times its baseline is violated; a two-sided one also when "
        "that much smaller, unless most modules have fallen together. The band is wider where its window scatters or "
        "grows, and stays as it is while a check fires: what is wrong does not become what it is measured by, until "
        "someone acknowledges a new normal. It is wider by the square of how much younger a run is than "
        "512 steps, above by the root of how far the learning rate has fallen since its window, below by all of it. "
        "What a step does to an expert that none of its tokens came to is not judged, and how far it moves what a "
        "choice of experts has made is judged below alone. "
        f"*Last values*: judged at every step it is known by its last {conditions.RECENT_POINTS} values that were in "
        f"their band, from {conditions.RECENT_MINIMUM_POINTS} on: more than {conditions.RECENT_RISE:g} standard "
        f"deviations over their mean or {conditions.RECENT_FALL:g} under it and under half of it; what scatters in "
        "multiples, more than six robust deviations of its logarithm and eight times over its median. "
        "*Target*: a number from theory, judged only where it applies. "
        f"*Sanity*: a step that moves a module's output by more than {conditions.SANITY_RELATIVE_UPDATE:g} of itself "
        "violates, whatever the baseline. "
        "*Reference*: the run that is named by `watch(reference=...)`, where it has the same place in the model, as "
        f"far through it, at the same step: violated beyond {conditions.REFERENCE_EDGE:g} times where that run was, on "
        "either side, its own scatter and what muP says of the sizes allowed for ([how](reference.md)). "
        "*Schedule*: the value is divided by the factor of the learning rate's schedule before it is judged, its "
        "group's own where that has drifted away from the run's.",
        "",
        "*How sure* each verdict is, it says itself (`samples`, `deviations`, `sure`, `how_sure` of "
        "`GET /api/v1/runs/RUN/verdicts`; in the board's drawer, in `internist check` and `internist runs show`): how "
        "many values of the series its band rests on, how many of their standard deviations the value is from their "
        "middle (in the logarithm, what they grow by allowed for), and one less the chance at most that one more value "
        "like them would lie so far away: `97.5 %: 31 deviations from 40 values`. Of n + 1 values no more than one in "
        "k² lies k or more of their deviations from their mean, whatever they are distributed like, and each is as "
        "likely to be the last: so it is never more than n / (n + 1), and few values make nobody sure. That an alert "
        "waits for several such values in a row is not counted in: neighbouring values are not independent. Behind a "
        "target or a reference stand no values of its own, and it says what does.",
        "",
        *table(CRITERION_HEADS),
    ]
    lines += [row(*criterion_cells(criterion)) for criterion in CRITERIA]
    return "\n".join([*lines, ""])


def rules_section() -> str:
    """When a verdict becomes an alert."""
    lines = [
        "## Alerts",
        "",
        f"An alert fires when the breach has lasted {rules.FOR_POINTS_LIGHT} points of a light series, "
        f"{rules.FOR_POINTS_HEAVY} of a heavy one, or as the table says, wherever they lie; of a light one that is "
        "half as far out again as its band is wide, two are enough. What is pending in a module fires with what "
        "leaves its band in the whole model. It resolves when the log-ratio is back under "
        f"{conditions.RECOVERY:.0%} of the band's own log-width. A run is `lost` when its heartbeat is older than "
        f"{rules.LOST_AFTER_S:g} s, and `stalled` when its step has not moved for {rules.STALLED_AFTER_STEPS:g} median "
        f"step times and {rules.STALLED_AFTER_S:g} s, and for {rules.STALLED_AFTER_PAUSES:g} times the longest pause "
        "it has come back from; an evaluation of the watched model counts as a move, and `monitor.pause()` tells of "
        "anything else. When a run ends, whatever fires is resolved.",
        "",
        *table("rule | condition | drifting | violated | points"),
    ]
    lines += [
        row(f"`{r.name}`", f"`{r.condition}`", r.drifting or "no alert", r.violated, str(r.for_points or "by cadence"))
        for r in rules.RULES
    ]
    lines += ["", *table("rule on the run | what is wrong | severity | first look at")]
    lines += [row(f"`{r.name}`", r.fault, r.severity, r.advice) for r in rules.RUN_RULES]
    return "\n".join([*lines, ""])


def metric_cells(metric: Metric) -> tuple[str, ...]:
    """The cells of one metric."""
    merges, cadence = MERGES[metric.combine], CADENCES[metric.cadence]
    return f"`{metric.name}`", metric.kind, metric.unit, metric.summary, merges, cadence, metric.source


def criterion_cells(criterion: Criterion) -> tuple[str, ...]:
    """The cells of one criterion."""
    of = {
        "all": "all", "blocks": "block outputs", "normalized_input": "modules with normalised input",
        "stages": "block outputs, modules outside blocks", "matrices": "hidden matrices",
    }  # fmt: skip
    bases = {None: "yes" if criterion.baseline else "", "sum": "its last values", "product": "its last values"}
    target = criterion.target
    bands = ""
    if target:
        critical = "never" if target.critical_above is None else f"{target.critical_above:g}"
        times = {
            "one": "",
            "inverse_root_rank": ", times 1/√rank",
            "followed_pair": f", times {conditions.FOLLOWED_PAIR:g} where the pair is followed (`retract`)",
        }[target.times]
        bands = f"{target.warn_above:g}, {critical}{times} ({conditions.APPLIES[target.applies_when]}; {target.source})"
    if criterion.growth:
        bands += f"; else {criterion.growth:g} times its first value, or of 1 where that was less, never"
    if criterion.sanity_relative_to:
        bands += f"sanity, against `{criterion.sanity_relative_to}`"
    return (
        f"`{criterion.condition}`",
        f"`{criterion.metric}`",
        of[criterion.applies_to],
        sides(criterion),
        "yes" if criterion.scheduled else "",
        bases[criterion.recent],
        "yes" if criterion.reference else "",
        bands,
    )


def sides(criterion: Criterion) -> str:
    """On which sides of its band a value is out."""
    if criterion.vanishing is not None:
        what = "one less it, " if criterion.complement else ""
        return f"{what}below {criterion.vanishing:g} of its baseline"
    if criterion.target is not None and criterion.target.is_floor:
        return "below"
    return "both" if criterion.two_sided else "above"


def table(heads: str) -> list[str]:
    """The two head lines of a table."""
    return [f"| {heads} |", "|" + " --- |" * (heads.count("|") + 1)]


def row(*cells: str) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
