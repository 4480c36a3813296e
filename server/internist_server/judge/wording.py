"""Verdicts in words: plain, short, the number first."""

import math

from internist.schema.conditions import CONDITION, SANITY_RELATIVE_UPDATE, Basis

_SUBJECT_OF_CONDITION = {
    "forward": "output is",
    "dependency": "token spread is",
    "update": "moved",
    "spectral_weight": "weight is",
    "spectral_update": "update is",
    "depth": "branch is, for its depth,",
    "attention": "largest logit is",
    "logit_scale": "queries times keys are",
    "invariance": "is off its frozen pair by",
    "gap": "one step's share of the gap is",
    "frozen_share": "removed share of the momentum is",
    "learned_spectrum": "what lies beneath its top pair is",
    "routing": "is",
    "replicas": "is",
}
"""What stands between a module's name and how far it is out."""
_CLAIMS = {
    "optimizer.left_out": ("in an optimizer", "no data: it wants a gradient and is in no optimizer"),
    "optimizer.misrouted": ("on the matrix optimizer", "a hidden matrix that another algorithm steps"),
    "weight.replicas_differ": ("the same on all ranks", "on some rank another model than on the others"),
}
"""Metrics that are 0 or 1, in words."""


def figure(value: float) -> str:
    """A number to three digits."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.3g}"


def times(ratio: float) -> str:
    """How many times: `31x`, `2.4x`."""
    return f"{ratio:.0f}x" if ratio >= 9.5 else f"{ratio:.1f}x"


def place(subject: str, index: int | None) -> str:
    """A subject with its head or expert; the whole model by that name."""
    name = subject or "model"
    return name if index is None else f"{name} [{index}]"


def standing(*, metric: str, basis: Basis, ratio: float, value: float, low: float | None, high: float | None) -> str:
    """Where a value is, such as `31x its baseline`, `1/12 of its baseline`, `150, over 100`.

    Args:
        metric: whose value it is.
        basis: what the band rests on.
        ratio: value over the band's centre; for targets and sanity over the edge.
        value: as measured.
        low: the band's lower edge, or None.
        high: its upper edge, or None.
    """
    if metric in _CLAIMS:
        return _CLAIMS[metric][value > 0]
    if basis == "sanity":
        return f"{ratio * SANITY_RELATIVE_UPDATE:.0%} of itself in one step, over {SANITY_RELATIVE_UPDATE:.0%}"
    if basis == "target":
        if high is not None and value > high:
            return f"{figure(value)}, over {figure(high)}"
        if low is not None and value < low:
            return f"{figure(value)}, under {figure(low)}"
        return (
            f"{figure(value)}, at most {figure(high)}"
            if high is not None and low is None
            else f"{figure(value)}, in its band"
        )
    known = "the reference run's" if basis == "reference" else "its baseline"
    if ratio == 0:
        return f"zero, {known} is not"
    return f"{times(ratio)} {known}" if ratio > 0.5 else f"1/{1 / ratio:.0f} of {known}"


def nonfinite(metric: str, value: float) -> str:
    """What is not finite, such as `12 entries of its output are NaN or infinite` or `loss is NaN`."""
    if metric == "activation.nonfinite" and math.isfinite(value):
        entries = "1 entry" if value == 1 else f"{value:.0f} entries"
        return f"{entries} of its output {'is' if value == 1 else 'are'} NaN or infinite"
    return f"{metric} is {'NaN' if math.isnan(value) else 'infinite'}"


def fact(said: str, value: float, bound: float, *, whose: str) -> str:
    """A fact of the first step, such as `R(W) at the start is 12, over 10 of a standard parametrisation`."""
    of = f" of {whose}" if whose else ""
    return f"{said} is {figure(value)}, {'over' if value > bound else 'under'} {figure(bound)}{of}"


def sureness(samples: int, deviations: float, sure: float, *, is_out: bool) -> str:
    """How sure it is of a band that values made, such as `97.6 %: 18 deviations from 41 values`; of what is well no
    more than how far it is from them."""
    values = "value" if samples == 1 else "values"
    if math.isinf(deviations):
        said = f"unlike each of {samples} {values}"
    else:
        said = (
            f"{figure(deviations)} {'deviation' if figure(deviations) == '1' else 'deviations'} from {samples} {values}"
        )
    return f"{percent(sure)}: {said}" if is_out else said


def percent(share: float) -> str:
    """A share of one, never rounded up to all."""
    return f"{math.floor(1000 * share) / 10:g} %"


SURE_OF: dict[Basis, str] = {
    "target": "as sure as the band: it was measured, and no past is behind the edge",
    "reference": "one run is behind the band: the reference's",
    "baseline": "the values behind its band were not counted",
    "sanity": "as sure as the linearisation of a step: it was measured, and no past is behind the edge",
}
"""How sure it is of a band that the series' own values did not make, or whose values an earlier version took."""
COUNTED = "certain: it was counted"
SEEN = "certain that it leapt: both samples were measured"


def group(subject: str) -> str:
    """A parameter group by its name; one that has none by its number, and its optimizer's where there are several."""
    optimizer, dot, name = subject.partition(".")
    if dot and optimizer.isdigit():
        return f"{group(name)} of optimizer {optimizer}"
    return f"group {subject}" if subject.isdigit() else subject if subject.startswith("group ") else f"group {subject}"


def band(low: float | None, high: float | None) -> str:
    """A band in words: `band 0.1 to 2`, `band up to 3.61`; empty without one."""
    if low is not None and high is not None:
        return f"band {figure(low)} to {figure(high)}"
    if low is not None:
        return f"band from {figure(low)}"
    return "" if high is None else f"band up to {figure(high)}"


def recovered(said: str, *, value: float, edges: str, step: int) -> str:
    """How an alert ended that its value ended."""
    return f"{said}; at step {step} it is back at {figure(value)}" + (f", inside the {edges} it had" if edges else "")


def renewed(said: str, *, step: int) -> str:
    """How an alert ended that a person ended."""
    return f"{said}; at step {step} someone called this its new normal: its baseline is taken from there on"


def sentence(condition: str, where: str, phrase: str, since: int | None) -> str:
    """The worst thing, in words: condition, module, how far, since when, what to try."""
    known = CONDITION[condition]
    verb = _SUBJECT_OF_CONDITION.get(condition)
    said = f"{where} {verb} {phrase}" if verb else f"{where}: {phrase}"
    start = "" if since is None else f" since step {since}"
    return f"{known.card} - {said}{start}. Try: {known.advice}."


def forgotten(*, now: float, before: float) -> str:
    """How much of its steps an optimizer's state has lost."""
    return f"its state has seen {figure(now)} steps where {figure(before)} were made"


def jump(ratio: float) -> str:
    """How a value jumped, by what it is over what it was."""
    if ratio < 0:
        return "changed its sign between two samples"
    if ratio >= 1:
        return f"rose {times(ratio)} between two samples"
    return f"fell to 1/{1 / ratio:.0f} between two samples" if ratio > 0 else "fell to zero between two samples"


def message(
    *, metric: str, where: str, phrase: str, low: float | None, high: float | None, since: int, basis: Basis
) -> str:
    """One alert in words, for a message that stands alone."""
    if metric in _CLAIMS:
        return f"{where}: {phrase}, since step {since}"
    if basis == "sanity":
        return f"{where}: moved its output by {phrase}, since step {since}"
    edges = band(low, high)
    return f"{where}: {metric} is {phrase}{f' ({edges})' if edges else ''}, since step {since}"
