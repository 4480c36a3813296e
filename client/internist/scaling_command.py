"""`internist scaling`: the scaling check of runs that a server holds, as a table or as JSON."""

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from internist.connection import DEFAULT_SERVER, Connection
from internist.errors import ConfigurationError, RequestRefused
from internist.schema.scaling import ROLE_WORDS, Axis, Exponent, Scaling, ScalingFamily, ScalingReport, ScalingVerdict
from internist.schema.views import Number

PASSED, FAILED, USAGE, INCONCLUSIVE = 0, 1, 2, 3
EXIT_CODES: Final[dict[ScalingVerdict, int]] = {"PASS": PASSED, "FAIL": FAILED, "INCONCLUSIVE": INCONCLUSIVE}
WIDTH: Final = 100
"""Columns of the table: no line is wider, except a word that is."""
PATIENCE_S: Final = 60.0
"""How long to wait for an answer: the first check of large runs reads them all."""
MINUS: Final = "\u2212"

_ORDER: Final[dict[ScalingVerdict, int]] = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
_LABEL, _METRIC, _WINDOW, _EXPONENT, _EXPECTED = 34, 23, 5, 12, 8


def command(argv: list[str]) -> int:
    """Check how a family of runs scales in width and depth, and name the rule that is wrong.

    Returns:
        0: every judged exponent passes; 1: one fails; 3: it cannot be told from these runs; 2: there is no such run,
        or the runs are no family. Without runs or a family the families are listed, and it is 0.
    """
    arguments = _parser(os.environ).parse_args(argv)
    try:
        connection = Connection(arguments.server, arguments.token, timeout=PATIENCE_S)
        try:
            answer = connection.scaling(arguments.runs, family=arguments.family, project=arguments.project)
        finally:
            connection.close()
    except (RequestRefused, ConfigurationError) as error:
        print(f"internist scaling: {error}", file=sys.stderr)
        return USAGE
    report = answer.report if arguments.runs or arguments.family else None
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(report if report is not None else answer)).decode())
    else:
        print("\n".join(describe(report) if report is not None else list_families(answer)))
    return PASSED if report is None else EXIT_CODES[report.verdict]


def describe(report: ScalingReport) -> list[str]:
    """The report in lines for people: the verdict, what is wrong, then every exponent, worst first."""
    lines = _wrapped(report.summary, first=f"{report.verdict:<13} ")
    if report.diagnoses:
        lines.append("")
    for diagnosis in report.diagnoses:
        lines += _wrapped(diagnosis.sentence, first=f"{diagnosis.rank}. ")
        for cause in diagnosis.causes:
            told = f"{cause.fact}: {cause.evidence}" if cause.evidence else f"not recorded: {cause.fact}"
            lines += _wrapped(told if len(diagnosis.causes) == 1 else f"{cause.sentence} ({told})", first="   - ")
    axes: tuple[Axis, ...] = ("width", "depth")
    for axis in axes:
        lines += _table(axis, [one for one in report.exponents if one.axis == axis])
    lines += ["", f"{len(report.family)} runs"]
    lines += [f"  {member.name}: width {member.width}, depth {member.depth}" for member in report.family]
    for left_out in report.excluded:
        lines += _wrapped(f"{left_out.name or left_out.run}: {left_out.reason}", first="  left out ")
    return lines


def list_families(answer: Scaling) -> list[str]:
    """The families in lines for people, each with the command that checks it."""
    if not answer.families:
        lines = ["The server holds no family: no runs of one project that differ in width or depth alone."]
    else:
        lines = [f"{len(answer.families)} famil{'y' if len(answer.families) == 1 else 'ies'}"]
    for family in answer.families:
        lines += ["", *_wrapped(family.name), f"  {len(family.runs)} runs; {_sizes(family)}"]
        if family.checkable:
            lines.append(f"  internist scaling --family {family.id}")
        else:
            lines += _wrapped(family.reason, first="  not to be checked: ")
    if answer.excluded:
        lines += ["", "of no family"]
    for left_out in answer.excluded:
        lines += _wrapped(f"{left_out.name or left_out.run}: {left_out.reason}", first="  ")
    return lines


def half_width(exponent: Exponent) -> float | None:
    """Half of the 95 % interval: what stands behind ±; None where there is no interval."""
    low, high = _real(exponent.low95), _real(exponent.high95)
    half = None if low is None or high is None else (high - low) / 2
    return half if half is not None and math.isfinite(half) else None


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
        lines += _wrapped(one.reason, first="    ")
    if one.curvature_warning:
        lines += _wrapped(f"the points bend (curvature {_text(one.curvature)}): larger sizes may differ", first="    ")
    return lines


def _with_interval(one: Exponent) -> str:
    value, half = _real(one.exponent), half_width(one)
    if value is None or not math.isfinite(value):
        return "-"
    return _signed(value) if half is None else f"{_signed(value)} ± {half:.2f}"


def _signed(value: float, *, digits: int = 2) -> str:
    rounded = round(value, digits)
    if not math.isfinite(rounded):
        return str(rounded)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    text = f"{abs(rounded):.{digits}f}"
    return "0" if not rounded and digits < 2 else sign + text


def _text(value: Number) -> str:
    real = _real(value)
    return "-" if real is None else _signed(real)


def _real(value: Number) -> float | None:
    return None if value is None else float(value)


def _sizes(family: ScalingFamily) -> str:
    parts = []
    for name, sizes in (("width", family.widths), ("depth", family.depths)):
        parts.append(f"{name}{'s' if len(sizes) > 1 else ''} {', '.join(map(str, sizes))}")
    return "; ".join(parts)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _wrapped(text: str, *, first: str = "") -> list[str]:
    """Text in lines of at most `WIDTH`, indented under its own beginning."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False,
        break_long_words=False,
    ) or [first.rstrip()]  # fmt: skip


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist scaling",
        description=(command.__doc__ or "").partition("\n")[0],
        epilog="exit code: 0 PASS, 1 FAIL (or the server does not answer), 3 INCONCLUSIVE, 2 wrong arguments",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="id or name of a run; without any, list the families")
    parser.add_argument("--family", metavar="ID", help="the runs of this family, as the list names it")
    parser.add_argument("--project", help="only families of this project")
    server = environ.get("INTERNIST_SERVER") or DEFAULT_SERVER
    parser.add_argument("--server", default=server, help=f"address (default: INTERNIST_SERVER, now {server})")
    token = environ.get("INTERNIST_TOKEN") or None
    parser.add_argument("--token", default=token, help="what the server asks for (default: INTERNIST_TOKEN)")
    parser.add_argument("--json", action="store_true", help="print the answer as the API gives it")
    return parser
