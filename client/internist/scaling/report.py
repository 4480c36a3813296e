"""The report on a family: exponents, verdicts, and what is wrong."""

import math
from collections.abc import Sequence

from internist.scaling.diagnosis import diagnose
from internist.scaling.expected import QUANTITIES, Quantity, expectation, slack
from internist.scaling.exponents import AXES, Fit, Point, fit, is_judgeable, verdict
from internist.scaling.family import face, settle
from internist.scaling.members import Member
from internist.scaling.numbers import number
from internist.schema.scaling import (
    FEWEST_SIZES,
    MARGIN,
    ROLE_WORDS,
    Axis,
    Excluded,
    Exponent,
    ScalingReport,
    ScalingVerdict,
)


def report(members: Sequence[Member], excluded: Sequence[Excluded] = ()) -> ScalingReport:
    """The scaling check of a family.

    Args:
        members: trained models of at least three different widths or depths, in any order.
        excluded: models that the collector left out; they are reported with those that are left out here.

    Raises:
        NotAFamily: they cannot be compared; the message says why, and what is missing.
    """
    kept, left_out = settle(members)
    exponents: list[Exponent] = []
    for quantity in QUANTITIES:
        exponents += _exponents(quantity, kept)
    diagnoses = diagnose(exponents, kept)
    judged = [e for e in exponents if e.judged]
    worst = _worst(judged)
    return ScalingReport(
        tuple(face(member) for member in kept),
        (*excluded, *left_out),
        tuple(exponents),
        diagnoses,
        worst,
        _summary(judged, worst, diagnoses[0].sentence if diagnoses else "", len(excluded) + len(left_out)),
    )


def value_of(member: Member, quantity: Quantity) -> float | None:
    """A quantity of a member as it is judged; None where it was not measured.

    The head's own change and its norm are measured before the head's hooks multiply it, so the multiplier they say is
    applied here. Late growth is the late value over the initial one.
    """
    value = member.values.get((quantity.metric, quantity.role, quantity.window))
    if value is None:
        return None
    if quantity.since_start:
        begins = member.values.get((quantity.metric, quantity.role, "init"))
        return value / begins if begins else None
    if quantity.role == "head" and quantity.metric in ("update.own_mean", "update.head_norm"):
        return value * member.facts.multipliers.get("head", 1.0)
    return value


def _exponents(quantity: Quantity, members: Sequence[Member]) -> list[Exponent]:
    measured = [(m, v) for m in members if (v := value_of(m, quantity)) is not None and math.isfinite(v)]
    positive = [(m, v) for m, v in measured if v > 0]
    points = [Point(m.width, m.depth, m.seed, math.log(v)) for m, v in positive]
    fits = fit(points) if len(points) > 1 else {}
    found = []
    for axis in AXES:
        if len({_size(m, axis) for m in members}) < 2:
            continue
        if not measured:
            continue
        found.append(_exponent(quantity, axis, fits.get(axis), positive, points, members, zero=not positive))
    return found


def _exponent(
    quantity: Quantity,
    axis: Axis,
    fitted: Fit | None,
    positive: Sequence[tuple[Member, float]],
    points: Sequence[Point],
    members: Sequence[Member],
    *,
    zero: bool,
) -> Exponent:
    expected, why_not = expectation(quantity, axis, members)
    if zero:
        why_not = "it is zero in every model: a layer that begins at zero is judged by how it moves"
    elif fitted is None:
        why_not = "measured at too few sizes to fit"
    elif not is_judgeable(points, axis):
        why_not = f"measured at fewer than {FEWEST_SIZES} different {axis}s"
    judged = fitted is not None and expected is not None and not why_not
    word: ScalingVerdict = "INCONCLUSIVE"
    if fitted is not None and expected is not None and judged:
        word = verdict(fitted, expected, slack=slack(quantity, axis))
    low95, high95 = map(number, fitted.interval(0.95)) if fitted else (None, None)
    low90, high90 = map(number, fitted.interval(0.9)) if fitted else (None, None)
    return Exponent(
        quantity.metric,
        quantity.role,
        axis,
        quantity.window,
        number(fitted.exponent) if fitted else None,
        number(fitted.standard_error) if fitted and fitted.freedom else None,
        low95,
        high95,
        low90,
        high90,
        expected,
        word,
        _reason(word, fitted, expected) if judged else why_not,
        fitted.curvature if fitted else None,
        fitted.bends if fitted else False,
        tuple(_size(m, axis) for m, _ in positive),
        tuple(v for _, v in positive),
        tuple(m.name for m, _ in positive),
        judged,
        quantity.label,
    )


def _size(member: Member, axis: Axis) -> int:
    return member.width if axis == "width" else member.depth


def _reason(word: ScalingVerdict, fitted: Fit | None, expected: float | None) -> str:
    assert fitted is not None and expected is not None
    if word == "PASS":
        return f"within {MARGIN} of {expected:+.2g}"
    off = fitted.exponent - expected
    if word == "FAIL":
        return f"{off:+.2f} off what is expected ({expected:+.2g})"
    wide = "more sizes or seeds would tell" if fitted.freedom else "too few models for an interval"
    return f"{off:+.2f} off what is expected ({expected:+.2g}), with an interval that tells neither way: {wide}"


def _worst(judged: Sequence[Exponent]) -> ScalingVerdict:
    found = {e.verdict for e in judged}
    if "FAIL" in found:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in found or not judged else "PASS"


def _summary(judged: Sequence[Exponent], worst: ScalingVerdict, sentence: str, left_out: int) -> str:
    without = f" {left_out} of the models {'is' if left_out == 1 else 'are'} left out." if left_out else ""
    if not judged:
        return f"Nothing could be judged.{without}"
    if worst == "PASS":
        return f"All {len(judged)} judged exponents are as a correct parametrisation has them.{without}"
    failed = [e for e in judged if e.verdict == "FAIL"]
    if not failed:
        open_ones = [e for e in judged if e.verdict == "INCONCLUSIVE"]
        return (
            f"Nothing is wrong for certain, but the intervals of {len(open_ones)} of {len(judged)} exponents are too "
            f"wide to tell: add sizes or seeds.{without}"
        )
    if sentence:
        return f"{len(failed)} of {len(judged)} exponents are wrong. {sentence}{without}"
    named = ", ".join(sorted({ROLE_WORDS[e.role] for e in failed}))
    return f"{len(failed)} of {len(judged)} exponents are wrong ({named}), and no known mistake explains them.{without}"
