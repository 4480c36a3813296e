"""What the scaling check answers: exponents in width and depth over a family of models, and what is wrong with them.

A family is a set of trained models that differ in width, depth and seed only. In JSON, NaN and infinities are the
strings "nan", "inf", "-inf"; an absent value is null.
"""

from dataclasses import dataclass
from typing import Literal

from internist.schema.views import Number

Axis = Literal["width", "depth"]
ScalingRole = Literal["embedding", "hidden", "residual", "attention", "head", "gain", "bias", "model"]
"""What a quantity belongs to; `residual` is the stream after the blocks, `model` the loss and what has no module."""
ScalingWindow = Literal["init", "early", "late"]
"""The first complete sample; the first optimizer rounds after it; the last quarter of the run."""
ScalingVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
"""Of an exponent, by equivalence: PASS where its 90 % interval lies within the margin of what is expected, FAIL where
its 95 % interval lies outside of it altogether, else INCONCLUSIVE. Of a report: its worst judged exponent."""

ROLE_WORDS: dict[ScalingRole, str] = {
    "embedding": "embedding",
    "hidden": "hidden matrices",
    "residual": "residual stream",
    "attention": "attention logits",
    "head": "output head",
    "gain": "gains",
    "bias": "biases",
    "model": "whole model",
}
"""Roles as sentences and tables name them."""
MARGIN = 0.1
"""Half width of the band around the expected exponent in which an exponent is well. The smallest mistake that is told
apart makes an exponent wrong by 1/2."""
FEWEST_SIZES = 3
"""Different widths (or depths) from which on an exponent against them is judged."""


@dataclass(frozen=True, slots=True)
class FamilyMember:
    """One trained model of the family."""

    run: str
    """Its run's id; empty where the model was never a run."""
    name: str
    width: int
    """Features of the residual stream (of the hidden layers where there is none)."""
    depth: int
    """Number of residual blocks."""
    seed: int | None
    optimizer: str
    """The algorithm that steps the hidden matrices: `adamw`, `muon`, ..."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """A model that was asked for, or belongs to the family, and is not in the fit."""

    run: str
    name: str
    reason: str
    """In words, e.g. `its loss is NaN from step 40 on`."""


@dataclass(frozen=True, slots=True)
class Exponent:
    """How one quantity grows with one size: the slope of ln(value) over ln(width) or ln(depth)."""

    metric: str
    role: ScalingRole
    axis: Axis
    window: ScalingWindow
    exponent: Number
    standard_error: Number
    low95: Number
    high95: Number
    """Ends of its 95 % confidence interval."""
    low90: Number
    high90: Number
    """Ends of its 90 % confidence interval, the one equivalence is judged by."""
    expected: float | None
    """The exponent under a correct width-depth parametrisation; null where nothing is expected of it."""
    verdict: ScalingVerdict
    reason: str
    """In words: why it is not judged, or by how much it is off."""
    curvature: Number
    """Second-order term of ln(value) over ln(size); null with fewer than four sizes."""
    curvature_warning: bool
    """The points bend: a straight line through small sizes would mislead about larger ones."""
    sizes: tuple[int, ...]
    """The width (or depth) of each member of `members`."""
    values: tuple[Number, ...]
    """The quantity of each member, in its metric's own unit: what a log-log plot shows."""
    members: tuple[str, ...]
    """Names of the members that measured it, aligned with `sizes` and `values`."""
    judged: bool
    """Whether its verdict counts for the report."""
    label: str = ""
    """The quantity in words, as sentences about it begin: `hidden matrices`, `logits' change`."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One mistake that would make just these exponents."""

    id: str
    sentence: str
    """What is wrong, in words: `the hidden learning rate is not divided by the width ratio`."""
    fact: str
    """What of a run tells it apart from the other causes of its class, e.g. `learning rate of the hidden group`."""
    evidence: str
    """What that fact said; empty where the runs did not record it."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A class of mistakes that predict the same exponents in everything that was measured."""

    rank: int
    """From 1, the most likely."""
    axis: Axis
    sentence: str
    """What was found and what it means: `hidden matrices: +0.98 ± 0.03 in width under AdamW: ...`."""
    causes: tuple[Cause, ...]
    """The mistakes of the class, those that the runs' facts speak for first."""
    score: float
    """How well it explains the exponents: 1 is all of what is off, 0 nothing."""
    explains: tuple[str, ...]
    """The quantities whose exponents it explains, in words."""


@dataclass(frozen=True, slots=True)
class ScalingReport:
    """The scaling check of one family."""

    family: tuple[FamilyMember, ...]
    """Smallest first."""
    excluded: tuple[Excluded, ...]
    exponents: tuple[Exponent, ...]
    diagnoses: tuple[Diagnosis, ...]
    """Most likely first; empty where nothing is wrong, and where nothing known explains what is."""
    verdict: ScalingVerdict
    summary: str
    """The whole in one sentence."""


@dataclass(frozen=True, slots=True)
class ScalingFamily:
    """Runs of one project that agree in everything but width, depth and seed, as their shapes tell."""

    id: str
    """Names it in the API; the same as long as what its runs share is the same, whatever runs join."""
    name: str
    """What they share, in words: project, optimizer, and what else tells it from the project's other families."""
    project: str
    runs: tuple[FamilyMember, ...]
    """Smallest first."""
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    """The different ones, ascending."""
    checkable: bool
    """Whether three different widths or three different depths are there."""
    reason: str
    """Where it is not checkable: what is missing, in words."""
    url: str
    """Path of its report: `/api/v1/scaling?family=...`."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What `GET /scaling` answers: the families there are, and the report of the one that was asked for."""

    families: tuple[ScalingFamily, ...]
    """Checkable ones first, then the newest; empty where runs were named."""
    excluded: tuple[Excluded, ...]
    """Runs that belong to no family, with the reason; empty where runs were named."""
    family: str | None
    """Id of the family that is reported on; null where runs were named."""
    report: ScalingReport | None
    """Of the runs or of the family that was named, or of the only checkable family; null where there is a choice to
    make, or nothing to check."""
