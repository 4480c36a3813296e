"""What the demo has to show, checked through the public API only, and the table that tells it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internist.demo.training import MISTAKE_FROM, MISTAKE_UNTIL, SICK_BLOCK

OPENS_WITHIN = 40
"""Steps after the mistake began by which the alert has to be open."""
RESOLVES_WITHIN = 150
"""Steps after the mend by which it has to be resolved."""
LOSS_SHOWS = 0.10
"""A loss this much above the twin's would show the mistake to the eye."""

BLOCK = f"blocks.{SICK_BLOCK}"
Alert = Mapping[str, Any]
Losses = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    what: str
    expected: str
    seen: str
    holds: bool | None
    """None: for information."""


def findings(
    *,
    alerts: Sequence[Alert],
    twin_alerts: Sequence[Alert],
    bodies: Sequence[Mapping[str, Any]],
    losses: Losses,
    twin_losses: Losses,
) -> list[Finding]:
    """Everything the demo promises, as seen."""
    update = [a for a in alerts if a["condition"] == "update"]
    early = [a for a in alerts if a["opened_step"] is not None and a["opened_step"] < MISTAKE_FROM]
    return [
        Finding("alerts before the mistake", "none", _names(early) or "none", not early),
        _opened(update),
        _named_first(bodies),
        _webhook(bodies, "firing"),
        _resolved(update),
        _webhook(bodies, "resolved"),
        _loss(losses, twin_losses),
        _others(alerts),
        Finding("alerts of the twin without the mistake", "none", _names(twin_alerts) or "none", not twin_alerts),
    ]


def table(found: Sequence[Finding]) -> str:
    """The findings as text, columns aligned."""
    rows = [("", "what", "expected", "seen")]
    marks = {True: "ok", False: "MISSING", None: "·"}
    rows += [(marks[f.holds], f.what, f.expected, f.seen) for f in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(row[c].ljust(widths[c]) for c in range(3)), row[3]]).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in (*widths, max(len(row[3]) for row in rows))))
    return "\n".join(lines)


def _opened(update: Sequence[Alert]) -> Finding:
    steps = [a["opened_step"] for a in update if a["block"] == BLOCK and a["opened_step"] is not None]
    first = min(steps, default=None)
    limit = MISTAKE_FROM + OPENS_WITHIN
    holds = first is not None and MISTAKE_FROM <= first <= limit
    return Finding(
        f"update alert of {BLOCK} opens", f"by step {limit}", "never" if first is None else f"step {first}", holds
    )


def _named_first(bodies: Sequence[Mapping[str, Any]]) -> Finding:
    firing = [b for b in bodies if b["status"] == "firing" and b["groupLabels"].get("condition") == "update"]
    first = firing[0]["alerts"][0]["labels"] if firing else {}
    seen = f"{first.get('module')} ({first.get('metric')})" if first else "no notification"
    return Finding("named first in the notification", f"a module of {BLOCK}", seen, first.get("block") == BLOCK)


def _webhook(bodies: Sequence[Mapping[str, Any]], status: str) -> Finding:
    mine = [b for b in bodies if b["status"] == status and b["groupLabels"].get("condition") == "update"]
    seen = f"{len(mine)}, version {mine[0]['version']}, {len(mine[0]['alerts'])} members" if mine else "none"
    return Finding(f"webhook: update {status}", "1, version 4", seen, len(mine) == 1 and mine[0]["version"] == "4")


def _resolved(update: Sequence[Alert]) -> Finding:
    limit = MISTAKE_UNTIL + RESOLVES_WITHIN
    still = [a for a in update if a["state"] in ("pending", "firing")]
    last = max((a["closed_step"] for a in update if a["closed_step"] is not None), default=None)
    seen = f"still open: {_names(still)}" if still else ("never opened" if last is None else f"all by step {last}")
    return Finding(
        "update alerts resolve",
        f"by step {limit}",
        seen,
        bool(update) and not still and last is not None and last <= limit,
    )


def _loss(losses: Losses, twin: Losses) -> Finding:
    window = [step for step in losses if MISTAKE_FROM <= step < MISTAKE_UNTIL and step in twin]
    if not window:
        return Finding("loss during the mistake", f"under {LOSS_SHOWS:.0%} above the twin's", "not recorded", False)
    ratio = statistics.fmean(losses[s] for s in window) / statistics.fmean(twin[s] for s in window) - 1
    return Finding(
        "loss during the mistake", f"under {LOSS_SHOWS:.0%} above the twin's", f"{ratio:+.1%}", ratio < LOSS_SHOWS
    )


def _others(alerts: Sequence[Alert]) -> Finding:
    others = [a for a in alerts if a["condition"] != "update" and a["state"] in ("pending", "firing")]
    return Finding(
        "other alerts still open at the end", f"may stay on {BLOCK}'s weights", _names(others) or "none", None
    )


def _names(alerts: Sequence[Alert]) -> str:
    names = [f"{a['condition']} {a['subject']}" for a in alerts]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
