"""Writes deploy/grafana/internist.json, the server's dashboard for Grafana: `python -m deploy.dashboard`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parent / "grafana" / "internist.json"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
OF: Final = 'instance=~"$instance"'
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
RATE: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: lines by their legend."""

    title: str
    lines: tuple[tuple[str, str], ...]
    """Expressions of PromQL, and the legend of each."""
    unit: str = "short"
    says: str = ""
    stacked: bool = False


def rate(metric: str, *, by: str = "", where: str = "") -> str:
    """What a counter rises by a second."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{', '.join(filter(None, (OF, where)))}}}[{RATE}]))"


def quantile(q: float, metric: str, *, by: str = "", where: str = "") -> str:
    """A quantile of a histogram."""
    groups = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', by=groups, where=where)})"


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    """The middle of a histogram, and its slow end."""
    return ((quantile(0.5, metric), "half of them"), (quantile(0.99, metric), "99 %"))


def now(metric: str, *, where: str = "") -> str:
    """A gauge."""
    return f"{metric}{{{', '.join(filter(None, (OF, where)))}}}"


PANELS: Final = (
    Panel(
        "Runs",
        ((now("internist_runs", where='state=~"live|stalled|lost"'), "{{state}}"),),
        stacked=True,
        says="By how they stand; those that ended are left out.",
    ),
    Panel("Alerts that fire", ((now("internist_open_alerts"), "alerts"),), says="On training runs."),
    Panel(
        "Messages not delivered",
        ((now("internist_notifications_undelivered"), "{{receiver}}: {{state}}"),),
        says="By receiver: those that wait, fail, and were given up.",
    ),
    Panel("Points stored", ((rate("internist_ingest_points_total"), "points a second"),), "wps"),
    Panel("Bytes taken", ((rate("internist_ingest_bytes_total"), "of requests"),), "Bps"),
    Panel(
        "Frames and refusals",
        (
            (rate("internist_ingest_frames_total"), "frames"),
            (rate("internist_ingest_refused_total"), "records refused"),
        ),
        "wps",
    ),
    Panel(
        "Lag",
        quantiles("internist_ingest_lag_seconds"),
        "s",
        says="From when a frame was measured until it was stored. Runs that are shipped after their end lag as long.",
    ),
    Panel(
        "Requests",
        ((rate("internist_request_duration_seconds_count", by="status"), "{{status}}"),),
        "reqps",
        stacked=True,
    ),
    Panel(
        "Time to answer, 99 %", ((quantile(0.99, "internist_request_duration_seconds", by="route"), "{{route}}"),), "s"
    ),
    Panel(
        "Requests that wait",
        ((now("internist_requests_waiting"), "{{lane}}"),),
        says="For their turn, by lane: frames, signs of life, reads, streams.",
    ),
    Panel("Wait for a turn, 99 %", ((quantile(0.99, "internist_request_wait_seconds", by="lane"), "{{lane}}"),), "s"),
    Panel(
        "Requests turned away",
        ((rate("internist_requests_turned_away_total", by="lane"), "{{lane}}"),),
        "reqps",
        says="With 503: there was no room for them. Clients come again.",
    ),
    Panel("Steps judged", ((rate("internist_judged_steps_total"), "steps a second"),), "wps"),
    Panel("Time to judge", quantiles("internist_judge_duration_seconds"), "s"),
    Panel("Time of a tick", quantiles("internist_tick_duration_seconds"), "s"),
    Panel("Frames that wait to become tiles", ((now("internist_compaction_backlog_frames"), "frames"),)),
    Panel(
        "Time of a round of compacting, 99 %",
        ((quantile(0.99, "internist_compaction_duration_seconds"), "a round"),),
        "s",
    ),
    Panel("Database", ((now("internist_database_bytes"), "on its disk"),), "bytes"),
    Panel("CPU", ((f"rate({now('process_cpu_seconds_total')}[{RATE}])", "cores"),), "none"),
    Panel("Memory", ((now("process_resident_memory_bytes"), "resident"),), "bytes"),
    Panel("Open files", ((now("process_open_fds"), "open"), (now("process_max_fds"), "at most")), "none"),
)


def dashboard(panels: Sequence[Panel] = PANELS) -> dict[str, Any]:
    """The whole dashboard, as Grafana imports it."""
    return {
        "uid": "internist-server",
        "title": "Internist server",
        "description": "How an Internist server does. How the training runs do is on its own board.",
        "tags": ["internist"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "instance", "type": "query", "label": "Server", "datasource": SOURCE, "refresh": 2,
                    "query": {"query": "label_values(internist_build_info, instance)", "refId": "instances"},
                    "includeAll": False, "multi": False,
                },
            ]
        },
        "panels": [_panel(number, one) for number, one in enumerate(panels)],
    }  # fmt: skip


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS // WIDTH)
    custom = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    custom |= {"stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(panel.lines)
        ],
    }


def text() -> str:
    """The file as it is written."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
