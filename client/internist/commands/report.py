"""`internist report`: a run as one HTML page."""

from pathlib import Path

import click

from internist.commands.console import EXIT_CODES, a_run, of_a_server, reading, run
from internist.history.report import facts_of, report


def command(argv: list[str]) -> int:
    """Write a run as one HTML page that needs nothing else."""
    return run(_command, "report", argv)


@click.command(epilog=EXIT_CODES)
@a_run
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file; default: RUN's id, .html."
)
@of_a_server
def _command(run_id: str, output: Path | None, server: str, token: str | None) -> None:
    """Write a run as one HTML page to mail or to attach to a pull request: its verdicts, curves, alerts, coverage and
    configuration. RUN is an id, or a name that no other has."""
    with reading(server, token) as opened:
        found = opened.run(run_id)
        page = report(facts_of(found))
    path = output or Path(f"{found.id}.html")
    path.write_text(page, encoding="utf-8")
    click.echo(str(path))
