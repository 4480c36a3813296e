"""`internist export`: points of runs in files that other tools read."""

from pathlib import Path
from typing import get_args

import click

from internist.commands.console import EXIT_CODES, of_a_server, progress, reading, run, some_runs
from internist.history.exporting import Format, export


def command(argv: list[str]) -> int:
    """Write runs of a server to a file: Parquet, CSV, JSON lines, OpenMetrics, TensorBoard."""
    return run(_command, "export", argv)


@click.command(epilog=EXIT_CODES)
@some_runs
@click.option("--format", "format", type=click.Choice(get_args(Format)), required=True, help="What is written.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file; for tensorboard a directory."
)
@click.option("--metric", multiple=True, help="Only this metric; may be repeated.")
@click.option("--subject", help="Only subjects in which this regular expression is found.")
@of_a_server
def _command(
    run_ids: tuple[str, ...],
    format: Format,
    output: Path,
    metric: tuple[str, ...],
    subject: str | None,
    server: str,
    token: str | None,
) -> None:
    """Write the points of runs to a file that other tools read. RUN is an id, or a name that is no other's."""
    with reading(server, token) as opened, progress() as bar:
        histories = []
        for one in bar.track(run_ids, description="reading"):
            histories.append(opened.run(one).history(metric=metric or None, subject=subject))
    if not any(history.curves for history in histories):
        asked = [*(f"metric {one}" for one in metric), *([] if subject is None else [f"subjects like {subject}"])]
        raise click.UsageError(f"{', '.join(run_ids)}: nothing was measured{' of ' if asked else ''}{', '.join(asked)}")
    count = export(histories, output, format=format)
    click.echo(f"{count:,} points of {len(histories)} run{'' if len(histories) == 1 else 's'} in {output}")
