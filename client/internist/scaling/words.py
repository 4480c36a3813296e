"""A report as text for a terminal."""

import math
import textwrap
from collections.abc import Sequence
from typing import Final

from internist.scaling.numbers import finite
from internist.schema.scaling import ROLE_WORDS, Axis, Exponent, ScalingReport, ScalingVerdict

WIDTH: Final = 100
"""Columns of the table: no line is wider, except a word that is."""
LISTED: Final = 12
"""Models that are named one by one; of more, their number is told."""
MINUS: Final = "\u2212"

_ORDER: Final[dict[ScalingVerdict, int]] = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
_LABEL, _METRIC, _WINDOW, _EXPONENT, _EXPECTED = 34, 23, 5, 12, 8


def table(report: ScalingReport) -> str:
    """The verdict, what is wrong, then every exponent, worst first, then whose it was."""
    lines = wrapped(report.summary, first=f"{report.verdict:<13} ")
    if report.diagnoses:
        lines.append("")
    for diagnosis in report.diagnoses:
        lines += wrapped(diagnosis.sentence, first=f"{diagnosis.rank}. ")
        for cause in diagnosis.causes:
            told = f"{cause.fact}: {cause.evidence}" if cause.evidence else f"not recorded: {cause.fact}"
            lines += wrapped(told if len(diagnosis.causes) == 1 else f"{cause.sentence} ({told})", first="   - ")
    axes: tuple[Axis, ...] = ("width", "depth")
    for axis in axes:
        lines += _table(axis, [one for one in report.exponents if one.axis == axis])
    lines += ["", f"{len(report.family)} models"]
    if len(report.family) <= LISTED:
        lines += [f"  {member.name}: width {member.width}, depth {member.depth}" for member in report.family]
    for left_out in report.excluded:
        lines += wrapped(f"{left_out.name or left_out.run}: {left_out.reason}", first="  left out ")
    return "\n".join(lines)


def half_width(exponent: Exponent) -> float | None:
    """Half of the 95 % interval: what stands behind ±; None where there is no interval."""
    half = (finite(exponent.high95) - finite(exponent.low95)) / 2
    return half if math.isfinite(half) else None


def _table(axis: Axis, exponents: Sequence[Exponent]) -> list[str]:
    if not exponents:
        return []
    sizes = sorted({size for one in exponents for size in one.sizes})
    head = (
        f"{'quantity':<{_LABEL}} {'metric':<{_METRIC}} {'when':<{_WINDOW}} {'exponent':>{_EXPONENT}} "
        f"{'expected':>{_EXPECTED}}  verdict"
    )
    lines = ["", f"against {axis}: {', '.join(map(str, sizes))}", head]
    for one in sorted(exponents, key=lambda one: (not one.judged, _ORDER[one.verdict])):
        lines += _row(one)
    return lines


def _row(one: Exponent) -> list[str]:
    expected = "" if one.expected is None else _signed(one.expected, digits=1)
    verdict = one.verdict if one.judged else "not judged"
    label = _cut(one.label or ROLE_WORDS[one.role], _LABEL)
    line = (
        f"{label:<{_LABEL}} {_cut(one.metric, _METRIC):<{_METRIC}} {one.window:<{_WINDOW}} "
        f"{_with_interval(one):>{_EXPONENT}} "
        f"{expected:>{_EXPECTED}}  {verdict}"
    )
    lines = [line]
    if one.reason and not one.judged:
        lines += wrapped(one.reason, first="    ")
    if one.curvature_warning:
        lines += wrapped(
            f"the points bend (curvature {_signed(finite(one.curvature))}): larger sizes may differ", first="    "
        )
    return lines


def _with_interval(one: Exponent) -> str:
    value, half = finite(one.exponent), half_width(one)
    if not math.isfinite(value):
        return "-"
    return _signed(value) if half is None else f"{_signed(value)} ± {half:.2f}"


def _signed(value: float, *, digits: int = 2) -> str:
    rounded = round(value, digits)
    if not math.isfinite(rounded):
        return str(rounded)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    text = f"{abs(rounded):.{digits}f}"
    return "0" if not rounded and digits < 2 else sign + text


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def wrapped(text: str, *, first: str = "") -> list[str]:
    """Text in lines of at most `WIDTH`, indented under its own beginning."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False,
        break_long_words=False,
    ) or [first.rstrip()]  # fmt: skip
