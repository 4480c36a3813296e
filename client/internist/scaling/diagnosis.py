"""Which mistakes explain the exponents: every one, and every few together, is held against what was measured."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from internist.scaling.causes import MISTAKES, STRENGTHS, Mistake
from internist.scaling.counting import Family, Interval, Setup, count, right_setup
from internist.scaling.evidence import Evidence, evidence
from internist.scaling.expected import QUANTITIES, Quantity
from internist.scaling.exponents import AXES
from internist.scaling.members import Key, Member
from internist.scaling.numbers import finite
from internist.schema.scaling import MARGIN, Axis, Cause, Diagnosis, Exponent

TOLERANCE = 0.2
"""How far an exponent may be from a theory of infinite width: models are finite. The smallest mistake is 1/2."""
TOLERANCE_AT_INIT = 0.1
"""The same of what is measured before anything is learned."""
PRICE = 5.0
"""What one more mistake has to explain, in units of a squared standard deviation; and what a mistake whose power is
free, or predicted as an interval, pays for it."""
TOGETHER = 3
"""Mistakes that are looked for at once: an unscaled standard model makes about as many."""
LEAST = 0.5
"""Share of what is off that has to be explained; else nothing known explains it."""
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class _Off:
    """A judged exponent that is held against the mistakes."""

    key: Key
    label: str
    by: float
    """How far it is off what is expected."""
    sigma: float
    measured: Exponent


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A mistake of a definite strength."""

    mistake: Mistake
    strength: float
    evidence: Evidence

    @property
    def powers(self) -> dict[str, float]:
        return {name: power * self.strength for name, power in self.mistake.powers.items()}


@dataclass(frozen=True, slots=True)
class _Explanation:
    """Some mistakes together, and how badly they fit."""

    parts: tuple[_Candidate, ...]
    off: tuple[Interval, ...]
    misfit: float
    """Sum of squares in standard deviations, without prices."""
    cost: float


def diagnose(exponents: Sequence[Exponent], members: Sequence[Member]) -> tuple[Diagnosis, ...]:
    """The mistakes that explain what fails, most likely first; none where nothing fails or nothing known explains it.

    Misfit is the sum over judged exponents of the squared distance to what a mistake predicts, in units of the standard
    error and the theory's own tolerance. More mistakes pay a price each. Mistakes that predict the same in everything
    that was measured are one diagnosis; the facts of the runs tell them apart where they were recorded.

    Derived for this project.
    """
    labels = {(q.metric, q.role, q.window): q for q in QUANTITIES}
    found: list[Diagnosis] = []
    for axis in AXES:
        judged = [e for e in exponents if e.axis == axis and e.judged and e.expected is not None]
        if any(e.verdict == "FAIL" for e in judged):
            offs = [_off(e, labels[e.metric, e.role, e.window]) for e in _telling(judged)]
            found += _of_axis(axis, offs, members)
    found.sort(key=lambda d: -d.score)
    return tuple(
        Diagnosis(rank, d.axis, d.sentence, d.causes, d.score, d.explains) for rank, d in enumerate(found, start=1)
    )


def _of_axis(axis: Axis, offs: Sequence[_Off], members: Sequence[Member]) -> list[Diagnosis]:
    hidden, rest = family_of(members, "hidden"), family_of(members, "embedding")
    matrices = 1 if all(m.shape.block_matrices == 1 for m in members) else 2
    right = right_setup(axis, hidden, rest, branch_matrices=matrices)
    candidates = [
        _Candidate(m, strength, evidence(m, members, axis))
        for m in MISTAKES
        if m.axis == axis
        and m.hidden in (None, hidden)
        and m.rest in (None, rest)
        and m.branch_matrices in (None, matrices)
        for strength in (STRENGTHS if m.has_strength else (1.0,))
    ]
    nothing = _explain((), axis, right, offs)
    best = _best(candidates, axis, right, offs)
    if best is None or nothing.misfit - best.misfit < LEAST * nothing.misfit or best.cost >= nothing.cost:
        return []
    found = []
    for part in best.parts:
        others = tuple(p for p in best.parts if p is not part)
        alike = [c for c in candidates if c not in others and _is_same(_explain((*others, c), axis, right, offs), best)]
        without = _explain(others, axis, right, offs)
        share = (without.misfit - best.misfit) / nothing.misfit if nothing.misfit else 0.0
        explained = [
            off
            for off, alone, all_ in zip(offs, without.off, best.off, strict=True)
            if _distance(off.by, all_) < _distance(off.by, alone) - MARGIN
        ]
        explained.sort(key=lambda off: _directness(off, best.off[offs.index(off)]))
        found.append(_diagnosis(axis, _unlike(alike or [part]), explained, members, min(1.0, share)))
    return found


def _directness(off: _Off, predicted: Interval) -> tuple[float, float]:
    """What speaks most plainly first: a definite prediction, and nearly met."""
    return predicted[1] - predicted[0], round(_distance(off.by, predicted), 1)


def family_of(members: Sequence[Member], role: str) -> Family:
    """How the optimizer of a role's parameters turns gradients into updates; Adam's way where it is not known."""
    return family_of_name(next((a for m in members for r, a in m.facts.algorithms.items() if r == role), ""))


def family_of_name(name: str) -> Family:
    """The same of an algorithm's name."""
    if any(word in name for word in ("muon", "shampoo", "scion", "spectral")):
        return "matrix"
    return "sgd" if name.startswith("sgd") else "adam"


def _telling(judged: Sequence[Exponent]) -> list[Exponent]:
    """Without the early changes of which the first is known: from then on a mistake changes what is learned, and that
    the exponents of everything."""
    first = {(e.metric, e.role) for e in judged if e.window == "init"}
    return [e for e in judged if e.window != "early" or (e.metric, e.role) not in first]


def _off(exponent: Exponent, quantity: Quantity) -> _Off:
    assert exponent.expected is not None
    measured, low, high = (finite(n) for n in (exponent.exponent, exponent.low90, exponent.high90))
    error = (high - low) / 2 / 1.645  # of a normal variable with this interval: wide where few sizes give it
    by = measured - exponent.expected
    if math.isinf(quantity.slack):
        by = max(0.0, by)
    key: Key = exponent.metric, exponent.role, exponent.window
    tolerance = TOLERANCE if quantity.metric.startswith("update.") else TOLERANCE_AT_INIT
    return _Off(key, quantity.label, by, math.hypot(error, tolerance), exponent)


def _best(candidates: Sequence[_Candidate], axis: Axis, right: Setup, offs: Sequence[_Off]) -> _Explanation | None:
    """The cheapest explanation by one mistake, or by a few that change different powers and explain something alone;
    facts decide between equals."""
    nothing = _explain((), axis, right, offs)
    found = [_explain((c,), axis, right, offs) for c in candidates]
    useful = [e.parts[0] for e in found if e.misfit < nothing.misfit]
    for size in range(2, TOGETHER + 1):
        for parts in itertools.combinations(useful, size):
            touched = [name for part in parts for name in part.mistake.powers]
            if len(set(touched)) == len(touched) and sum(p.mistake.has_strength for p in parts) <= 1:
                found.append(_explain(parts, axis, right, offs))
    return min(found, key=lambda e: (round(e.cost, 6), -_told(e)), default=None)


def _told(explanation: _Explanation) -> int:
    """How many of its parts the facts speak for, less those they speak against."""
    said = [part.evidence.speaks for part in explanation.parts]
    return sum(s is True for s in said) - sum(s is False for s in said)


def _explain(parts: tuple[_Candidate, ...], axis: Axis, right: Setup, offs: Sequence[_Off]) -> _Explanation:
    wrong = right
    for part in parts:
        wrong = wrong.changed(part.powers)
    predicted, usual = count(axis, wrong), count(axis, right)
    intervals: list[Interval] = []
    misfit = spread = 0.0
    for off in offs:
        low, high = predicted.get(off.key, (0.0, 0.0))
        base = usual.get(off.key, (0.0, 0.0))
        interval = low - base[0], high - base[1]
        intervals.append(interval)
        misfit += (_distance(off.by, interval) / off.sigma) ** 2
        spread += interval[1] - interval[0]
    price = PRICE * (len(parts) + 0.5 * spread + 0.5 * sum(p.mistake.has_strength for p in parts))
    return _Explanation(parts, tuple(intervals), misfit, misfit + price)


def _distance(value: float, interval: Interval) -> float:
    return max(interval[0] - value, value - interval[1], 0.0)


def _is_same(one: _Explanation, other: _Explanation) -> bool:
    """Whether two explanations predict the same in everything that was measured."""
    return all(abs(a[0] - b[0]) < _SAME and abs(a[1] - b[1]) < _SAME for a, b in zip(one.off, other.off, strict=True))


def _unlike(alike: Sequence[_Candidate]) -> list[_Candidate]:
    """The class: those that the facts speak for, if for any; else without those they speak against, if any is left."""
    for keep in ((True,), (True, None), (True, None, False)):
        kept = [c for c in alike if c.evidence.speaks in keep]
        if kept:
            return kept
    return []


def _diagnosis(
    axis: Axis, alike: Sequence[_Candidate], explained: Sequence[_Off], members: Sequence[Member], share: float
) -> Diagnosis:
    causes = tuple(Cause(c.mistake.id, c.mistake.sentence, c.mistake.fact, c.evidence.text) for c in alike)
    optimizer = members[0].optimizer
    under = f" under {_WRITTEN.get(optimizer, optimizer)}" if optimizer else ""
    what = " or ".join(cause.sentence for cause in causes)
    seen = ""
    if explained:
        off = explained[0]
        seen = f"{off.label}: {_with_error(off.measured)} in {axis}{under}: "
        if off.measured.expected:
            seen = (
                f"{off.label}: {_with_error(off.measured)} in {axis}{under} ({off.measured.expected:+.2g} is right): "
            )
    labels = tuple(o.label for o in explained)
    return Diagnosis(0, axis, f"{seen}{what}", causes, share, labels)


def _with_error(exponent: Exponent) -> str:
    middle = finite(exponent.exponent)
    return f"{middle:+.2f} ± {finite(exponent.high95) - middle:.2f}"


_WRITTEN = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "muon": "Muon", "lion": "Lion"}
