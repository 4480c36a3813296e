"""What the facts of the runs say about a mistake: they tell apart what predicts the same exponents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from internist.scaling.causes import Fact, Mistake
from internist.scaling.exponents import Point, fit
from internist.scaling.members import Member, Role
from internist.schema.scaling import Axis

_NEAR = 0.15
"""How near a fact's exponent has to be; facts are exact, but bases and schedules round."""
EPS_SHARE = 0.1
"""Adam's eps over the RMS of the gradients from which on it matters: gradients under ten times eps are the warning
level of arXiv:2309.14322 that the documentation states."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a fact said of one mistake."""

    speaks: bool | None
    """For it, against it; None: the fact was not recorded."""
    text: str
    """In words; empty where it was not recorded."""


def evidence(mistake: Mistake, members: Sequence[Member], axis: Axis) -> Evidence:
    """What the runs recorded about a mistake."""
    total = 0.0
    for name, role in mistake.shows:
        if name == "eps" and not _eps_matters(members, role):
            return Evidence(False, f"eps is under {EPS_SHARE} of the gradients' RMS at every size: too small to matter")
        if name == "weight_decay" and all(m.facts.weight_decay.get(role) == 0 for m in members):
            return Evidence(mistake.shown == mistake.right, "weight decay is zero at every size")
    for fact, weight in mistake.shows.items():
        exponent = fact_exponent(fact, members, axis)
        if exponent is None:
            return Evidence(None, "")
        total += weight * exponent
    speaks = abs(total - mistake.shown) < _NEAR
    if mistake.has_strength and mistake.shown != mistake.right:
        speaks = abs(total - mistake.right) >= _NEAR  # what is wrong by any power is
    return Evidence(speaks, f"its exponent in {axis} is {total:+.2f} ({mistake.right:+.2g} is right)")


def _eps_matters(members: Sequence[Member], role: Role) -> bool:
    """Whether eps is not small against the gradients of some member; so it is taken to where that was not measured."""
    for member in members:
        eps, gradient = member.facts.eps.get(role), member.values.get(("gradient.rms", role, "init"))
        if eps is None or not gradient or eps >= EPS_SHARE * gradient:
            return True
    return False


def fact_exponent(fact: Fact, members: Sequence[Member], axis: Axis) -> float | None:
    """The exponent of a recorded number; None where some member did not record it, or where multipliers are one
    everywhere: then none was recorded, though the model's own code may apply one."""
    name, role = fact
    points: list[Point] = []
    values: list[float] = []
    for member in members:
        recorded = member.facts.attention_scale if name == "attention_scale" else getattr(member.facts, name).get(role)
        if recorded is None or not recorded > 0:
            return None
        values.append(recorded)
        points.append(Point(member.width, member.depth, member.seed, math.log(recorded)))
    if name == "multipliers" and all(value == 1.0 for value in values):
        return None
    fitted = fit(points).get(axis)
    return None if fitted is None else fitted.exponent
