"""A sparkline as an image mask: its shape is here, its colour comes from the style sheet and so from the theme."""

import math
from collections.abc import Sequence

from internist.schema.views import Number
from internist_dashboard import words

BARS = 36
HEIGHT = 24
LIMIT = 10.0
"""|log2 ratio| that fills the height: a thousand times the band's centre. Heights grow ever slower, so that four times
and thirty times are told apart and a little over one is still seen."""


def mask(values: Sequence[Number]) -> str:
    """A CSS `url(...)` of bars, one for each of the last values; what is not finite fills the height."""
    shown = [words.real(value) for value in values[-BARS:]]
    bars = "".join(
        f"<rect x='{4 * (BARS - len(shown) + index)}' y='{HEIGHT - tall}' width='3' height='{tall}' rx='0.5'/>"
        for index, tall in enumerate(_tall(value) for value in shown)
        if tall
    )
    width = 4 * BARS - 1
    box = f"viewBox='0 0 {width} {HEIGHT}' preserveAspectRatio='none'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' {box}>{bars}</svg>"
    return 'url("data:image/svg+xml,' + svg.replace("<", "%3C").replace(">", "%3E").replace("#", "%23") + '")'


def _tall(value: float | None) -> float:
    if value is None:
        return 0.0
    if not math.isfinite(value):
        return float(HEIGHT)
    share = math.log1p(min(LIMIT, abs(value))) / math.log1p(LIMIT)
    return round(2 + (HEIGHT - 2) * share, 1)
