"""Numbers, ages and verdicts in the words a reader sees."""

import math
import re
from collections.abc import Iterable
from html import escape

from internist.schema.conditions import State
from internist.schema.metrics import Bound
from internist.schema.views import Number, Verdict

THIN_SPACE = "\u2009"
"""Between the thousands of a step, and between a number and its prefix."""
MINUS = "\u2212"
BOUND_MARKS: dict[Bound, str] = {"exact": "", "lower": "≥\u2009", "upper": "≤\u2009", "sampled": "~\u2009"}
"""What stands before an estimate, so that it is never read as exact."""
SHAPES: dict[State, str] = {"ok": "●", "drifting": "◐", "violated": "■", "not measured": "○"}
"""The verdict's shape: legible without colour."""
STATE_CLASSES: dict[State, str] = {
    "ok": "ok",
    "drifting": "drifting",
    "violated": "violated",
    "not measured": "unmeasured",
}
BASES = {"target": "target", "reference": "reference", "baseline": "own baseline", "sanity": "sanity limit"}
"""What a band rests on."""
_TIMES = re.compile(r"(?<=\d)x\b")
_FORECAST = re.compile(r", leaves its band near step [\d\s]+ if this goes on")
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def real(value: Number) -> float | None:
    """A number of the API as a float; NaN and infinities as such, None where absent."""
    return None if value is None else float(value)


def is_nonfinite(value: Number) -> bool:
    """Whether a value was measured and is NaN or infinite."""
    return value is not None and not math.isfinite(float(value))


def number(value: Number, *, bound: Bound = "exact") -> str:
    """A value to three significant digits, with SI prefix when large and exponent when tiny; an em dash when absent."""
    x = real(value)
    if x is None:
        return "—"
    if math.isnan(x):
        return "NaN"
    sign = MINUS if x < 0 else ""
    if math.isinf(x):
        return sign + "∞"
    return BOUND_MARKS[bound] + sign + _magnitude(abs(x))


def step(value: int | None) -> str:
    """A step with thin spaces between thousands; an em dash when absent."""
    return "—" if value is None else f"{value:,}".replace(",", THIN_SPACE)


def share(value: float | None) -> str:
    """A share as a percentage to two digits; an em dash when absent."""
    if value is None or not math.isfinite(value):
        return "—"
    percent = 100 * value
    digits = 0 if percent >= 99.95 or percent == 0 or abs(percent) >= 10 else 1
    return f"{percent:.{digits}f}{THIN_SPACE}%"


def rate(value: float | None) -> str:
    """Steps per second."""
    return "—" if value is None else f"{number(value)} it/s"


def times(value: Number) -> str:
    """How many times its band: `31×`, `1.2×`, `1/12×`; an infinite or NaN excess by name."""
    x = real(value)
    if x is None:
        return "—"
    if not math.isfinite(x):
        return number(value)
    if 0 < x < 0.45:
        return f"1/{_times(1 / x)}×"
    return f"{_times(x)}×"


def crossed(text: str) -> str:
    """Text of the judge with proper multiplication signs: `31x` becomes `31×`; its dash too."""
    return _TIMES.sub("×", text).replace(" - ", " — ")


def without_forecast(text: str) -> str:
    """Text of the judge without what would come: of a run that has ended, or of a value that is out already."""
    return _FORECAST.sub("", text)


def plain(text: str) -> str:
    """A name as Plotly takes it: what looks like a tag or a placeholder of Plotly's stands as it is written."""
    return escape(text, quote=False).replace("%{", "%\u2060{")


def age(milliseconds: int | float | None) -> str:
    """An age in words, `3 s ago`; negative ages, from clocks that differ, count as now."""
    if milliseconds is None:
        return "never"
    seconds = max(0, int(milliseconds // 1000))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def span(milliseconds: int | float) -> str:
    """A length of time in words: `3 h`; what is over is `0 s`."""
    return age(milliseconds).removesuffix(" ago")


def subject(name: str, index: int | None = None) -> str:
    """A subject with its head or expert; the whole model by that name."""
    shown = name or "model"
    return shown if index is None else f"{shown} · head {index}"


def basis(name: str | None) -> str:
    """What a band rests on, in words."""
    return "" if name is None else BASES.get(name, name)


def against(basis_name: str | None) -> str:
    """What a ratio of the heat map is to."""
    return f"its band ({basis(basis_name)})" if basis_name else "its band"


def measure(basis_name: str | None) -> str:
    """What a ratio counts in: a value's own baseline is the middle of its band, a target the edge."""
    return "its baseline" if basis_name == "baseline" else "its limit"


def verdict(state: State, *, basis_name: str | None = None, count: int = 0, of: int = 0) -> str:
    """A verdict in words: `ok (own baseline)`, `violated · 3 of 34`, `not measured`."""
    if state == "ok" and basis_name:
        return f"ok ({basis(basis_name)})"
    if state in ("drifting", "violated") and count:
        return f"{state} · {count}" + (f" of {of}" if of > count else "")
    return state


def where(worst: Verdict) -> str:
    """How far, then where to look: `31× its baseline · blocks.2`."""
    return listing([without_forecast(crossed(worst.reason)), subject(worst.subject, worst.index)])


def plural(count: int, noun: str) -> str:
    """`1 alert`, `2 alerts`, `no alerts`."""
    shown = "no" if count == 0 else str(count)
    return f"{shown} {noun}" if count == 1 else f"{shown} {noun}s"


def listing(parts: Iterable[str]) -> str:
    """Parts that are not empty, joined by middle dots."""
    return " · ".join(part for part in parts if part)


def _times(x: float) -> str:
    return f"{x:.1f}" if x < 9.95 else f"{x:.0f}" if x < 999.5 else _magnitude(x)


def _magnitude(x: float) -> str:
    if x == 0:
        return "0"
    if x < 1e-3:
        mantissa, exponent = f"{x:.2e}".split("e")
        return f"{mantissa}e{MINUS}{abs(int(exponent))}"
    if float(f"{x:.3g}") < 1e3:
        return _three_digits(x)
    if x >= 9.995e14:
        return f"{x:.2e}".replace("e+", "e")
    scale, prefix = next((s, p) for s, p in _PREFIXES if float(f"{x:.3g}") >= s)
    return _three_digits(x / scale) + prefix


def _three_digits(x: float) -> str:
    rounded = float(f"{x:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(rounded))) if rounded else 0
    return f"{rounded:.{decimals}f}"
