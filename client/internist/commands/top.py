"""`internist top`: a live view of runs in a terminal, for a login node without a browser."""

import time
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from internist.commands.console import EXIT_CODES, as_json, console, of_a_server, print_json, reading, run, table
from internist.commands.runs import row
from internist.errors import ServerError
from internist.history.reading import Server
from internist.schema.alerts import AlertsPage
from internist.schema.views import Run

_SHOWN: Final = 8
"""Alerts that are named."""
_LIVE: Final = ("live", "stalled", "lost")


def command(argv: list[str]) -> int:
    """Watch runs live in the terminal."""
    return run(_command, "top", argv)


@click.command(epilog=EXIT_CODES)
@click.option("--project", help="Only of this project.")
@click.option("--all", "everything", is_flag=True, help="Also runs that are over.")
@click.option("--every", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print once, and end.")
@of_a_server
@as_json
def _command(
    project: str | None, everything: bool, every: float, once: bool, server: str, token: str | None, as_json: bool
) -> None:
    """Runs that are under way and the alerts that are open, again every few seconds, until Ctrl-C."""
    with reading(server, token) as opened:
        if as_json:
            print_json(_runs(opened, project, everything))
            return
        out = console()
        if once or not out.is_terminal:
            out.print(_look(opened, project, everything))
            return
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while True:
                try:
                    live.update(_look(opened, project, everything), refresh=True)
                except ServerError as error:  # it may come back: what was seen last is no longer true
                    live.update(Text(str(error), style="red"), refresh=True)
                time.sleep(every)


def screen(runs: Sequence[Run], alerts: AlertsPage) -> RenderableType:
    """What is shown: a row a run, and the alerts that are open."""
    made = table("run", "name", "project", "state", "step", "loss", "verdict", "alerts", "steps/s", "")
    for one in runs:
        speed = "-" if one.steps_per_second is None else f"{one.steps_per_second:.3g}"
        made.add_row(*row(one), speed, escape(one.sentence))
    lines = [Text(f"{alerts.open} open alert{'' if alerts.open == 1 else 's'}", style="bold")]
    for alert in alerts.alerts[:_SHOWN]:
        colour = "bold red" if alert.severity == "critical" else "yellow"
        lines.append(Text(f"{alert.run_name}  step {alert.opened_step}  {alert.message}", style=colour))
    return Group(made if runs else Text("no run is under way"), Text(), *lines)


def _runs(opened: Server, project: str | None, everything: bool) -> list[Run]:
    return [one for one in opened.runs(project=project) if everything or one.state in _LIVE]


def _look(opened: Server, project: str | None, everything: bool) -> RenderableType:
    return screen(_runs(opened, project, everything), opened.open_alerts())
