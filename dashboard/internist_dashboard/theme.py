"""The looks: one Mantine theme, one Plotly template per colour scheme, one palette for both."""

from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

Scheme = Literal["light", "dark"]
DIVERGING_LIMIT = 2.0
"""log2 of the ratio at which the diverging scale saturates: four times the band's centre, the critical edge."""
UNJUDGED = -2.5
"""Stands on the heat map's scale for what was measured and not judged: below all ratios, in a colour of its own."""

FONT = (
    "Inter, ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', Arial, "
    "'Liberation Sans', sans-serif"
)
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one scheme. Red is only ever `violated`."""

    ink: str
    muted: str
    faint: str
    """Hairlines and grids."""
    surface: str
    blue: str
    band_warn: str
    """Fill between centre and warning edge."""
    band_edge: str
    drifting: str
    violated: str
    unmeasured: str
    """Stroke of the hatching."""
    unjudged: str
    """Cells that were measured and not judged."""
    centre: str
    """Middle of the diverging scale: a ratio of one."""
    low: tuple[str, str]
    """Blues of the diverging scale, far and near."""
    high: tuple[str, str]
    """Oranges of the diverging scale, near and far."""
    dot: str
    """NaN and infinite."""
    dot_ring: str


PALETTES: dict[Scheme, Palette] = {
    "light": Palette(
        ink="#1f2328",
        muted="#6a737d",
        faint="#e6e8eb",
        surface="#ffffff",
        blue="#2b6cb0",
        band_warn="rgba(43,108,176,0.09)",
        band_edge="rgba(106,115,125,0.55)",
        drifting="#9a5b00",
        violated="#c92a2a",
        unmeasured="#cfd4da",
        unjudged="#e3e7ee",
        centre="#f5f6f8",
        low=("#1f5a99", "#9dc1e4"),
        high=("#f6c189", "#c75a00"),
        dot="#111418",
        dot_ring="#ffffff",
    ),
    "dark": Palette(
        ink="#e3e6ea",
        muted="#9aa3ad",
        faint="#2b3036",
        surface="#17191d",
        blue="#63a4e0",
        band_warn="rgba(99,164,224,0.13)",
        band_edge="rgba(154,163,173,0.55)",
        drifting="#e0a63a",
        violated="#f25c5c",
        unmeasured="#3a4149",
        unjudged="#333a44",
        centre="#24282d",
        low=("#6fb1f0", "#2f587f"),
        high=("#8a5a24", "#ff9a3c"),
        dot="#000000",
        dot_ring="#f1f3f5",
    ),
}

MANTINE: dict[str, Any] = {
    "primaryColor": "internist",
    "primaryShade": {"light": 7, "dark": 4},
    "fontFamily": FONT,
    "fontFamilyMonospace": MONO,
    "headings": {"fontFamily": FONT, "fontWeight": "600"},
    "defaultRadius": "sm",
    "cursorType": "pointer",
    "respectReducedMotion": True,
    "colors": {
        "internist": [
            "#eaf3fb", "#d3e4f4", "#a6c9e8", "#7cb0de", "#63a4e0",
            "#4a8fd0", "#397fc0", "#2b6cb0", "#225a95", "#17477a",
        ],
        "dark": [
            "#e3e6ea", "#c3c9d0", "#9aa3ad", "#6f7882", "#3a4149",
            "#2b3036", "#202429", "#17191d", "#111316", "#0b0d0f",
        ],
    },
}  # fmt: skip


def palette(scheme: Scheme) -> Palette:
    """The colours of a scheme."""
    return PALETTES[scheme]


def diverging(scheme: Scheme) -> list[tuple[float, str]]:
    """Blue, neutral, orange: the scale of log-ratios from -2 to +2, neutral to 1.4 times either way.

    Colour begins well inside the warning edge (twice), so that a healthy run is calm. Safe for the colour-blind.
    """
    p = PALETTES[scheme]
    return [
        (0.0, p.low[0]),
        (0.25, p.low[1]),
        (0.375, p.centre),
        (0.625, p.centre),
        (0.75, p.high[0]),
        (1.0, p.high[1]),
    ]


def heat_scale(scheme: Scheme) -> list[tuple[float, str]]:
    """The diverging scale from -2 to +2, and below it the one colour of what was measured and not judged."""
    p = PALETTES[scheme]
    width = DIVERGING_LIMIT - UNJUDGED
    start = (-DIVERGING_LIMIT - UNJUDGED) / width
    rest = [(start + (1 - start) * place, colour) for place, colour in diverging(scheme)]
    return [(0.0, p.unjudged), (start * 0.99, p.unjudged), (start * 0.99, rest[0][1]), *rest]


def logit_scale(scheme: Scheme) -> list[tuple[float, str]]:
    """The scale of log10 MaxLogit from 0 to 3: ever bluer up to 100, orange from there to 1,000."""
    p = PALETTES[scheme]
    return [
        (0.0, p.centre),
        (0.45, p.low[1]),
        (0.6666, p.low[0]),
        (0.6667, p.high[0]),
        (1.0, p.high[1]),
    ]


def template(scheme: Scheme) -> go.layout.Template:
    """The Plotly template of a scheme: no frame, light horizontal grid, tabular figures."""
    p = PALETTES[scheme]
    axis: dict[str, Any] = {
        "gridcolor": p.faint,
        "linecolor": p.faint,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": 11, "color": p.muted},
        "title": {"font": {"size": 11, "color": p.muted}, "standoff": 6},
        "automargin": False,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": p.ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [p.blue, p.muted],
            "xaxis": axis | {"showgrid": False, "ticks": "outside", "ticklen": 4, "tickcolor": p.faint},
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": p.surface,
                "bordercolor": p.faint,
                "align": "left",
                "font": {"family": FONT, "size": 12, "color": p.ink},
            },
            "hovermode": "closest",
            "dragmode": "zoom",
            "showlegend": False,
            "separators": "." + "\u2009",
            "margin": {"l": 56, "r": 16, "t": 8, "b": 34},
        }
    )
