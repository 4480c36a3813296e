"""A report's log-log plots as one SVG, drawn by hand: no library for plots is needed."""

import math
from collections.abc import Sequence
from html import escape

from internist.scaling.numbers import finite
from internist.schema.scaling import ROLE_WORDS, Exponent, ScalingReport

PANEL_WIDTH, PANEL_HEIGHT, MARGIN_LEFT, MARGIN_TOP, COLUMNS = 300, 220, 56, 42, 3
_INK, _GRID, _MUTED = "#24292f", "#d0d7de", "#57606a"
_VERDICT_INK = {"PASS": "#1a7f37", "FAIL": "#cf222e", "INCONCLUSIVE": "#9a6700"}


def drawing(report: ScalingReport) -> str:
    """The SVG text: a panel for each judged exponent, with the members, the fitted line and the expected slope."""
    panels = [e for e in report.exponents if e.judged and e.values]
    rows = max(1, math.ceil(len(panels) / COLUMNS))
    width, height = COLUMNS * PANEL_WIDTH + 20, rows * PANEL_HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="14" fill="{_INK}">{escape(f"Scaling check: {report.verdict}")}</text>',
    ]
    for place, exponent in enumerate(panels):
        x, y = 10 + place % COLUMNS * PANEL_WIDTH, 32 + place // COLUMNS * PANEL_HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(exponent), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(e: Exponent) -> list[str]:
    sizes = [math.log2(size) for size in e.sizes]
    values = [math.log10(finite(value)) for value in e.values]
    left, right = min(sizes), max(sizes)
    middle = sum(values) / len(values)
    reach = max(0.5, max(abs(v - middle) for v in values) * 1.2)
    inner_width, inner_height = PANEL_WIDTH - MARGIN_LEFT - 16, PANEL_HEIGHT - MARGIN_TOP - 34

    def at(size: float, value: float) -> tuple[float, float]:
        return (
            MARGIN_LEFT + (size - left) / max(right - left, 1e-9) * inner_width,
            MARGIN_TOP + (middle + reach - value) / (2 * reach) * inner_height,
        )

    centre = sum(sizes) / len(sizes)
    title = f"{ROLE_WORDS[e.role]}: {e.metric}, {e.window}"
    said = f"{finite(e.exponent):+.2f} in {e.axis}, expected {e.expected:+.2g}: {e.verdict}"
    found = [
        f'<text x="{MARGIN_LEFT}" y="14" fill="{_INK}">{escape(title)}</text>',
        f'<text x="{MARGIN_LEFT}" y="30" fill="{_VERDICT_INK[e.verdict]}">{escape(said)}</text>',
        f'<rect x="{MARGIN_LEFT}" y="{MARGIN_TOP}" width="{inner_width}" height="{inner_height}" fill="none" '
        f'stroke="{_GRID}"/>',
    ]
    for whole in sorted(set(e.sizes)):
        x, _ = at(math.log2(whole), middle)
        found.append(_label(x, MARGIN_TOP + inner_height + 14, str(whole), "middle"))
    for value in (middle + reach, middle - reach):
        _, y = at(left, value)
        found.append(_label(MARGIN_LEFT - 6, y + 4, f"{10**value:.2g}", "end"))
    for slope, ink, dash in ((float(e.expected or 0.0), _MUTED, "4 3"), (finite(e.exponent), _INK, "none")):
        ends = [at(s, middle + slope * (s - centre) * math.log10(2)) for s in (left, right)]
        found.append(_line(ends, ink, dash))
    for size, value in zip(sizes, values, strict=True):
        x, y = at(size, value)
        found.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_VERDICT_INK[e.verdict]}" fill-opacity="0.7"/>')
    return found


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_MUTED}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(ends: Sequence[tuple[float, float]], ink: str, dash: str) -> str:
    (x1, y1), (x2, y2) = ends
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{ink}" stroke-width="1.5" '
        f'stroke-dasharray="{dash}"/>'
    )
