"""What of a run is measured and what is not, by metric family, as the drawer lists it."""

from collections.abc import Iterable, Sequence
from typing import Final

from dash import html

from internist.schema.coverage import FAMILIES, is_missing
from internist.schema.views import Coverage
from internist.schema.wire import CoverageEntry, CoverageState
from internist_dashboard import words
from internist_dashboard.components import Node
from internist_dashboard.filters import compiled

STATES: Final[tuple[CoverageState, ...]] = (
    "not captured",
    "unsupported",
    "silent",
    "idle",
    "frozen",
    "excluded",
    "measured",
)
"""In the order in which they are listed: what is missing first, what is well last."""
SHOWN_SUBJECTS: Final = 50
"""Subjects of one state and reason that are named; the filter finds the others."""
_WHOLE: Final = "all metrics of a subject"


def listing(coverage: Coverage, text: str | None) -> Node:
    """The share, then every family with its entries: families that miss something first.

    Args:
        text: the page's filter, applied to subjects; None or empty: all.
    """
    pattern = compiled(text)
    entries = [entry for entry in coverage.entries if pattern is None or pattern.search(entry.subject)]
    families = _families(entries)
    families.sort(key=lambda family: not any(is_missing(entry.state) for entry in family))
    return html.Div([_head(coverage), *(_family(members) for members in families)], className="coverage")


def _head(coverage: Coverage) -> Node:
    missing = sum(is_missing(entry.state) for entry in coverage.entries)
    apart = len(coverage.entries) - missing - coverage.counts.get("measured", 0)
    counted = words.listing(
        [
            f"{coverage.counts.get('measured', 0)} measured",
            f"{missing} missing",
            f"{apart} not counted (idle, frozen, excluded)" if apart else "",
        ]
    )
    return html.P(
        [
            html.Strong(words.share(coverage.share), className="num"),
            f" of what could be measured is: {counted}. No alert never means no data.",
        ],
        className="quiet",
    )


def _families(entries: Iterable[CoverageEntry]) -> list[list[CoverageEntry]]:
    """Entries by family, in the order of the catalogue of families; unknown ones last."""
    found: dict[str, list[CoverageEntry]] = {family: [] for family in FAMILIES}
    for entry in entries:
        found.setdefault(entry.family, []).append(entry)
    return [members for members in found.values() if members]


def _family(entries: Sequence[CoverageEntry]) -> Node:
    """One family: what it says in words, how much of it is missing, and its entries by state and reason."""
    name = entries[0].family
    missing = sum(is_missing(entry.state) for entry in entries)
    groups: dict[tuple[str, str], list[CoverageEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.state, entry.reason), []).append(entry)
    ordered = sorted(groups.values(), key=lambda group: (STATES.index(group[0].state), -len(group)))
    counted = f"{missing} of {len(entries)} missing" if missing else f"{len(entries)}, none missing"
    heading = words.listing([name, FAMILIES.get(name, "" if name else _WHOLE), counted])
    return html.Details([html.Summary(heading), *(_group(group) for group in ordered)], open=bool(missing))


def _group(entries: Sequence[CoverageEntry]) -> Node:
    """The entries of one state and reason."""
    first = entries[0]
    lines = [html.Li(html.Code(entry.subject or "model")) for entry in entries[:SHOWN_SUBJECTS]]
    if len(entries) > SHOWN_SUBJECTS:
        lines.append(html.Li(f"and {len(entries) - SHOWN_SUBJECTS} more: the filter finds them", className="quiet"))
    heading = words.listing([first.state, str(len(entries)), first.reason])
    return html.Details([html.Summary(heading), html.Ul(lines)], open=is_missing(first.state))
