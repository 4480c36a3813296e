"""`internist import`: what other tools kept becomes runs of ours, judged like any."""

from pathlib import Path
from typing import get_args

import click

from internist.commands.console import (
    EXIT_CODES,
    FAILURE,
    as_json,
    console,
    of_a_server,
    print_json,
    progress,
    reading,
    run,
    state,
    table,
)
from internist.history.importing import Source, import_runs, read_source


def command(argv: list[str]) -> int:
    """Take in runs of TensorBoard, wandb, MLflow or JSON lines, and judge them."""
    return run(_command, "import", argv)


@click.command(epilog=EXIT_CODES)
@click.argument("source", type=click.Choice(get_args(Source)))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--project", help="Groups the runs; default: the tool's own word.")
@click.option("--name", "names", multiple=True, metavar="THEIRS=OURS", help="Such as train/nll=loss; may be repeated.")
@of_a_server
@as_json
def _command(
    source: Source,
    path: Path,
    project: str | None,
    names: tuple[str, ...],
    server: str,
    token: str | None,
    as_json: bool,
) -> int:
    """Take in what another tool kept: a directory of event files, wandb's directory, MLflow's mlruns or mlflow.db, a
    file of JSON lines. Their numbers are judged as if they had been measured now; a second import adds nothing."""
    with progress() as bar:
        task = bar.add_task("reading", total=None)
        histories = read_source(source, path, names=dict(map(_pair, names)))

        def shipped(done: int, of: int) -> None:
            bar.update(task, description="shipping", completed=done, total=of)

        imported, report = import_runs(histories, server=server, token=token, project=project, told=shipped)
    with reading(server, token) as opened:
        runs = [opened.run(one.run).view for one in imported]
    if as_json:
        print_json(runs)
    else:
        made = table("run", "name", "project", "curves", "points", "verdict", "")
        for one, view in zip(imported, runs, strict=True):
            points = sum(len(curve.steps) for curve in one.history.curves)
            counts = f"{len(one.history.curves):,}", f"{points:,}"
            made.add_row(view.id, view.name, view.project, *counts, state(view.verdict), view.sentence)
        console().print(made)
    for reason, number in report.refused.items():
        click.echo(f"refused: {number} records: {reason}", err=True)
    return FAILURE if report.refused else 0


def _pair(text: str) -> tuple[str, str]:
    theirs, sign, ours = text.rpartition("=")
    if not sign or not theirs or not ours:
        raise click.BadParameter(f"{text!r}: expected THEIRS=OURS, such as train/nll=loss", param_hint="--name")
    return theirs, ours
