"""What commands that read a server share: their options, exit codes, and tables for people and JSON for programs."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from internist.errors import ConfigurationError, InternistError, RequestRefused
from internist.history.reading import Server, read
from internist.schema.conditions import State
from internist.schema.views import Number, Run
from internist.ship.connection import DEFAULT_SERVER, Connection
from internist.ship.credentials import token_for

FAILURE, USAGE, INTERRUPTED = 1, 2, 130
EXIT_CODES: Final = (
    "\b\nexit codes:\n"
    "  0    it did its work\n"
    "  1    it failed: the server cannot be used, a file cannot be read or written\n"
    "  2    wrong arguments, or there is no such run\n"
    "  130  interrupted"
)
STYLES: Final[dict[State, str]] = {"ok": "green", "drifting": "yellow", "violated": "bold red", "not measured": "dim"}
"""Colours on a terminal; NO_COLOR leaves them out."""

COMPLETED_IN_S: Final = 1.0
"""What a shell that completes a line waits for a server at most."""
_OFFERED: Final = 100
_ONE_WORD: Final = re.compile(r"[\w.@%+/-]+")  # what no shell takes apart

_F = TypeVar("_F", bound=Callable[..., Any])


def run(command: click.Command, name: str, argv: Sequence[str]) -> int:
    """Run a command of click's as a subcommand of ours; its exit code."""
    try:
        return int(command.main(args=list(argv), prog_name=f"internist {name}", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return USAGE
    except (ConfigurationError, RequestRefused) as error:
        click.echo(f"internist {name}: {error}", err=True)
        return USAGE
    except OSError as error:
        click.echo(f"internist {name}: {error}", err=True)
        return FAILURE
    except click.Abort:
        return INTERRUPTED


def of_a_server(function: _F) -> _F:
    """Options that say which server is asked."""
    server = click.option(
        "--server",
        envvar="INTERNIST_SERVER",
        default=DEFAULT_SERVER,
        show_default=True,
        show_envvar=True,
        help="Address of the server.",
    )
    token = click.option(
        "--token",
        help="What it asks for; by default INTERNIST_TOKEN, else what `internist login` kept.",
        metavar="TOKEN",
    )
    return server(token(function))


def runs_like(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Runs of the server that a line names, the newest first: by name where no other has it, else by id."""
    server = ctx.params.get("server") or os.environ.get("INTERNIST_SERVER") or DEFAULT_SERVER
    try:
        connection = Connection(server, token_for(server, ctx.params.get("token")), timeout=COMPLETED_IN_S)
        try:
            runs = connection.read("runs", tuple[Run, ...], name=incomplete or None, limit=_OFFERED)
        finally:
            connection.close()
    except InternistError:  # no server, or not for whoever types: a line is completed without it
        return []
    names = Counter(run.name for run in runs)
    found = []
    for run in runs:
        by_name = names[run.name] == 1 and run.name.startswith(incomplete) and _ONE_WORD.fullmatch(run.name)
        if by_name or run.id.startswith(incomplete):
            found.append(CompletionItem(run.name if by_name else run.id, help=f"{run.project}, {run.state}"))
    return found


a_run = click.argument("run_id", metavar="RUN", shell_complete=runs_like)
some_runs = click.argument("run_ids", metavar="RUN...", nargs=-1, required=True, shell_complete=runs_like)
as_json = click.option("--json", "as_json", is_flag=True, help="Print what the API answers, as JSON.")


@contextmanager
def reading(server: str, token: str | None) -> Iterator[Server]:
    """A server that is read from."""
    with read(server, token) as opened:
        yield opened


def console() -> Console:
    """Where tables go: plain text where the output is no terminal, as wide as it needs to be; no colours where NO_COLOR
    is set."""
    found = Console(highlight=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        return Console(highlight=False, width=200)
    return found


def progress() -> Progress:
    """How far long work is: on the terminal alone, and gone when it is done."""
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def print_json(value: object) -> None:
    """Print views as the API writes them: NaN and infinities are strings."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def table(*columns: str) -> Table:
    """A table without rules, which a terminal and a pipe show alike."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def state(word: State) -> str:
    """A verdict's state in its colour."""
    return f"[{STYLES[word]}]{word}[/]"


def shown(value: Number) -> str:
    """A number in four digits; a dash where there is none."""
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"
