"""A report as text for a terminal."""

import math

from internist.scaling.numbers import finite
from internist.schema.scaling import ROLE_WORDS, Exponent, ScalingReport


def table(report: ScalingReport) -> str:
    """Every exponent with its interval and verdict, then the diagnoses, then what was left out."""
    titles = ("axis", "quantity", "window", "exponent", "95 % interval", "expected", "verdict")
    rows: list[tuple[str, ...]] = [titles, *(_row(e) for e in report.exponents)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    for diagnosis in report.diagnoses:
        lines += ["", f"{diagnosis.rank}. {diagnosis.sentence} (explains {diagnosis.score:.0%})"]
        for cause in diagnosis.causes:
            said = cause.evidence or "not recorded"
            lines.append(f"   {cause.id}: {cause.fact}: {said}")
    for out in report.excluded:
        lines += ["", f"left out: {out.name}: {out.reason}"]
    return "\n".join([*lines, "", f"{report.verdict}. {report.summary}"])


def _row(e: Exponent) -> tuple[str, ...]:
    number = finite(e.exponent)
    known = not math.isnan(number)
    verdict = e.verdict if e.judged else f"not judged: {e.reason}"
    return (
        e.axis,
        f"{ROLE_WORDS[e.role]}: {e.metric}",
        e.window,
        f"{number:+.2f}" if known else "",
        f"{finite(e.low95):+.2f} .. {finite(e.high95):+.2f}" if known else "",
        "" if e.expected is None else f"{e.expected:+.2g}",
        verdict + (", bends" if e.curvature_warning else ""),
    )
