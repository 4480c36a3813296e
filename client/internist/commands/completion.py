"""`internist completion`: what makes a shell complete our commands, options and their values, runs among them."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import click
from click.shell_completion import get_completion_class

from internist.commands.cli import COMPLETING, GROUP
from internist.commands.console import EXIT_CODES, run
from internist.commands.mirror import mirrored

SHELLS: Final = ("bash", "zsh", "fish")


def command(argv: list[str]) -> int:
    """Print what makes bash, zsh or fish complete this command."""
    return run(_command, "completion", argv)


@click.command(epilog=EXIT_CODES)
@click.argument("shell", type=click.Choice(SHELLS))
def _command(shell: str) -> None:
    """Print what makes a shell complete this command. For bash: eval "$(internist completion bash)" in ~/.bashrc."""
    found = get_completion_class(shell)
    assert found is not None, "the shell is one of those that click knows"
    click.echo(found(tree(), {}, "internist", COMPLETING).source())


def answer(environ: Mapping[str, str] = os.environ) -> int:
    """Answer a shell that asks how a line goes on."""
    shell, _, what = environ.get(COMPLETING, "").partition("_")
    found = get_completion_class(shell)
    if found is None or what != "complete":
        return 1
    click.echo(found(tree(), {}, "internist", COMPLETING).complete())
    return 0


class _Tree(click.Group):
    """All commands of ours by their entry points; only the one that a line names is loaded."""

    def __init__(self, entries: Mapping[str, EntryPoint]) -> None:
        super().__init__("internist")
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = self._entries.get(cmd_name)
        return None if entry is None else _of(entry)


def tree() -> click.Group:
    """The whole command as click sees it."""
    return _Tree({entry.name: entry for entry in entry_points(group=GROUP)})


def _of(entry: EntryPoint) -> click.Command:
    """The command of an entry point. What lacks its extra is completed by its name alone."""
    try:
        command = entry.load()
    except (ImportError, AttributeError):
        return click.Command(entry.name)
    module: Any = sys.modules[entry.module]
    found = getattr(module, "group", None) or getattr(module, "_command", None)
    return found if isinstance(found, click.Command) else mirrored(entry.name, command)
