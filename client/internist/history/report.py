"""A run as one HTML page that needs nothing else: to mail, or to attach to a pull request."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final

from internist import __version__
from internist.history.chart import chart
from internist.history.curves import Curve, number
from internist.history.reading import StoredRun
from internist.schema.alerts import Alert
from internist.schema.conditions import CONDITION
from internist.schema.views import Coverage, Number, Run, Verdicts
from internist.schema.windows import Points

HEADLINES: Final = ("loss", "gradient.global_norm", "learning_rate")
_WORST: Final = 12
_ALERTS: Final = 50
_PIXELS: Final = 600
_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2129;--soft:#5c6470;--rule:#d9dde3;--page:#fff;--line:#2f6fb5}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa3af;--rule:#333a44;--page:#15181d;--line:#6ea8e6}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1180px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .75rem .25rem 0;vertical-align:top;
border-bottom:1px solid var(--rule)}th{color:var(--soft);font-weight:500}
.soft{color:var(--soft)}.ok{color:#1f7a4d}.drifting{color:#a06a00}.violated{color:#c0392b;font-weight:600}
.not-measured{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(360px,1fr));gap:1rem}figure{margin:0}
figcaption{font-size:.85rem;color:var(--soft)}svg{width:100%;font-size:11px;fill:var(--soft)}
.line{fill:none;stroke:var(--line);stroke-width:1.5}.edge{fill:none;stroke:#c0392b;stroke-dasharray:4 3}
.grid{stroke:var(--rule)}.odd{stroke:#c0392b;stroke-width:1.5}
"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart of the page: its curve, the band it was judged by, and why it is there."""

    window: Points
    why: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a report is made of."""

    run: Run
    verdicts: Verdicts
    alerts: Sequence[Alert]
    coverage: Coverage
    charts: Sequence[Drawn]


def facts_of(stored: StoredRun) -> Facts:
    """What a server tells of a run: its headline curves, and those of its worst series."""
    verdicts = stored.verdicts()
    worst = [one for one in verdicts.members if one.state in ("violated", "drifting") and one.series is not None]
    reasons = {one.series: f"{one.state}: {one.reason}" for one in worst[:_WORST] if one.series is not None}
    headlines = [one.id for one in stored.series(metric=HEADLINES) if one.last_step is not None]
    wanted = [*headlines[:_WORST], *(series for series in reasons if series not in headlines)]
    windows = stored.points(wanted, pixels=_PIXELS).windows if wanted else ()
    charts = [Drawn(window, reasons.get(window.series.id, "")) for window in windows if window.steps]
    return Facts(stored.view, verdicts, stored.alerts().alerts, stored.coverage(), charts)


def report(facts: Facts) -> str:
    """The page."""
    run = facts.run
    written = datetime.fromtimestamp(run.server_time_ms / 1e3, UTC)
    sections = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="soft">{escape(run.project)} · {escape(run.id)} · {run.state}'
        f" · {written:%Y-%m-%d %H:%M} UTC · Internist {__version__}</p>",
        f"<p>{_state(run.verdict)} {escape(run.sentence)}</p>",
        _table(
            ("step", "loss", "learning rate", "steps/s", "violated", "drifting", "open alerts", "coverage"),
            [(_whole(run.last_step), _shown(run.loss), _shown(run.learning_rate), _shown(run.steps_per_second),
              str(run.violated), str(run.drifting), str(run.open_alerts), _share(facts.coverage.share))],
        ),
        "<h2>Conditions</h2>",
        _cards(facts.verdicts),
        "<h2>Curves</h2>",
        f'<div class="charts">{"".join(_figure(drawn) for drawn in facts.charts)}</div>',
        *_alerts(facts.alerts),
        *_not_measured(facts.coverage),
        "<h2>Configuration</h2>",
        _table(("name", "value"), [(escape(name), escape(str(value))) for name, value in sorted(run.config.items())]),
    ]  # fmt: skip
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(run.name)}: {run.verdict}</title>'
        f"<style>{_STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )


def _cards(verdicts: Verdicts) -> str:
    rows = [
        (
            escape(card.title),
            _state(card.state),
            *map(str, (card.ok, card.drifting, card.violated, card.not_measured)),
            escape(f"{card.worst.metric} of {card.worst.subject}: {card.worst.reason}") if card.worst else "",
        )
        for card in verdicts.cards
    ]
    return _table(("condition", "verdict", "ok", "drifting", "violated", "not measured", "worst"), rows)


def _figure(drawn: Drawn) -> str:
    window = drawn.window
    series = window.series
    values = [number(value) for value in window.values]
    curve = Curve(series.metric, series.kind, series.subject, series.index, window.steps, window.times_ms, values)
    band = window.band
    low = [number(edge) for edge in band.critical_low] if band else ()
    high = [number(edge) for edge in band.critical_high] if band else ()
    unit = f" ({series.unit})" if series.unit else ""
    why = f" · {escape(drawn.why)}" if drawn.why else ""
    caption = f"<figcaption>{escape(curve.tag)}{escape(unit)}{why}</figcaption>"
    return f"<figure>{caption}{chart(curve, low=low, high=high)}</figure>"


def _alerts(alerts: Sequence[Alert]) -> Iterable[str]:
    if not alerts:
        return
    rows = [
        (
            alert.state,
            alert.severity,
            _whole(alert.opened_step),
            escape(alert.message),
            escape(alert.advice or (CONDITION[alert.condition].advice if alert.condition in CONDITION else "")),
        )
        for alert in alerts[:_ALERTS]
    ]
    yield f"<h2>Alerts ({len(alerts)})</h2>"
    yield _table(("state", "severity", "step", "what", "what to try first"), rows)


def _not_measured(coverage: Coverage) -> Iterable[str]:
    reasons: dict[tuple[str, str, str], int] = {}
    for entry in coverage.entries:
        if entry.state != "measured":
            key = entry.family, entry.state, entry.reason
            reasons[key] = reasons.get(key, 0) + 1
    if reasons:
        yield "<h2>Not measured</h2>"
        rows = [(*map(escape, key), str(count)) for key, count in sorted(reasons.items())]
        yield _table(("family", "state", "reason", "parts"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _state(word: str) -> str:
    return f'<span class="{word.replace(" ", "-")}">{escape(word)}</span>'


def _shown(value: Number) -> str:
    found = number(value)
    return "–" if value is None else f"{found:.4g}" if math.isfinite(found) else str(value)


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
