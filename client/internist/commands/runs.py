"""`internist runs`: the runs that a server holds: listed, shown, compared, deleted."""

import sys

import click
from rich.markup import escape

from internist.commands.console import (
    EXIT_CODES,
    a_run,
    as_json,
    console,
    of_a_server,
    print_json,
    reading,
    run,
    shown,
    some_runs,
    state,
    table,
)
from internist.history.reading import StoredRun
from internist.schema.views import Run, Verdicts

_WORST = 10
"""Series that `show` names."""


def command(argv: list[str]) -> int:
    """List, show, compare and delete the runs that a server holds."""
    return run(group, "runs", argv)


@click.group(help="List, show, compare and delete the runs that a server holds.", epilog=EXIT_CODES)
def group() -> None:
    """The command with its subcommands."""


@group.command("list", epilog=EXIT_CODES)
@click.option("--project", help="Only of this project.")
@click.option("--name", help="A part of the run's name or id.")
@of_a_server
@as_json
def list_runs(project: str | None, name: str | None, server: str, token: str | None, as_json: bool) -> None:
    """Runs, newest first."""
    with reading(server, token) as opened:
        runs = opened.runs(project=project, name=name)
    if as_json:
        print_json(runs)
        return
    made = table("run", "name", "project", "state", "step", "loss", "verdict", "alerts")
    for one in runs:
        made.add_row(*row(one))
    console().print(made)


@group.command(epilog=EXIT_CODES)
@a_run
@of_a_server
@as_json
def show(run_id: str, server: str, token: str | None, as_json: bool) -> None:
    """One run: its state, its verdict card by card, its worst series. RUN is an id, or a name that no other has."""
    with reading(server, token) as opened:
        found = opened.run(run_id)
        verdicts = found.verdicts()
    if as_json:
        print_json({"run": found.view, "verdicts": verdicts})
        return
    out = console()
    view = found.view
    out.print(f"[bold]{escape(view.name)}[/]  {view.id}  {escape(view.project)}  {view.state}")
    out.print(f"{state(view.verdict)}  {escape(view.sentence)}")
    out.print(f"step {view.last_step if view.last_step is not None else '-'}, loss {shown(view.loss)}\n")
    out.print(_cards(verdicts))
    worst = [one for one in verdicts.members if one.state in ("drifting", "violated")][:_WORST]
    for one in worst:
        out.print(f"{state(one.state)}  {escape(one.metric)} of {escape(one.subject)}: {escape(one.reason)}")
        if one.how_sure:
            out.print(f"  how sure: {escape(one.how_sure)}")


@group.command(epilog=EXIT_CODES)
@some_runs
@of_a_server
@as_json
def compare(run_ids: tuple[str, ...], server: str, token: str | None, as_json: bool) -> None:
    """Runs beside one another: how they stand, their verdicts by card, and where their configurations differ."""
    with reading(server, token) as opened:
        found = [opened.run(one) for one in run_ids]
        verdicts = [one.verdicts(limit=0) for one in found]
    if as_json:
        print_json([{"run": one.view, "verdicts": own} for one, own in zip(found, verdicts, strict=True)])
        return
    made = table("", *(escape(one.view.name) for one in found))
    views = [one.view for one in found]
    made.add_row("run", *(view.id for view in views))
    made.add_row("state", *(view.state for view in views))
    made.add_row("step", *(str(view.last_step) for view in views))
    made.add_row("loss", *(shown(view.loss) for view in views))
    made.add_row("steps/s", *(shown(view.steps_per_second) for view in views))
    made.add_row("verdict", *(state(view.verdict) for view in views))
    for cards in zip(*(own.cards for own in verdicts), strict=True):
        made.add_row(f"  {cards[0].name}", *(state(card.state) for card in cards))
    for name, values in differences(views):
        made.add_row(escape(name), *(escape(value) for value in values))
    console().print(made)


@group.command(epilog=EXIT_CODES)
@some_runs
@click.option("--yes", is_flag=True, help="Do not ask.")
@of_a_server
def rm(run_ids: tuple[str, ...], yes: bool, server: str, token: str | None) -> None:
    """Delete runs with all that the server holds of them. Their spools stay where they are."""
    with reading(server, token) as opened:
        found = [opened.run(one) for one in run_ids]
        if not yes and not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here: say --yes")
        if not yes:
            click.confirm(f"Delete {', '.join(one.view.name for one in found)}?", abort=True)
        for one in found:
            _delete(one)


def row(one: Run) -> tuple[str, ...]:
    """A run as a row of the table."""
    step = "-" if one.last_step is None else f"{one.last_step:,}"
    name, project = escape(one.name), escape(one.project)
    return one.id, name, project, one.state, step, shown(one.loss), state(one.verdict), str(one.open_alerts)


def differences(views: list[Run]) -> list[tuple[str, list[str]]]:
    """Entries of the configurations that are not the same in all runs, by name."""
    names = sorted({name for view in views for name in view.config})
    rows = [(name, [str(view.config.get(name, "-")) for view in views]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _cards(verdicts: Verdicts) -> object:
    made = table("condition", "verdict", "ok", "drifting", "violated", "not measured")
    for card in verdicts.cards:
        counts = (card.ok, card.drifting, card.violated, card.not_measured)
        made.add_row(escape(card.title), state(card.state), *map(str, counts))
    return made


def _delete(one: StoredRun) -> None:
    one.delete()
    click.echo(f"deleted {one.view.name} ({one.id})")
