"""Commands of argparse as click sees them, so that one mechanism completes them all."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from internist.commands.console import runs_like

_OF_RUNS: Final = ("run", "runs", "reference")
"""Arguments that name runs."""
_OF_FILES: Final = ("FILE", "DIR", "PATH", "SCRIPT", "SPOOL")


def mirrored(name: str, command: Callable[[list[str]], int]) -> click.Command:
    """A command with the options, subcommands and choices of the parser that it hands its arguments to."""
    with _asking():
        try:
            command([])
        except _Asked as asked:
            return _command(name, asked.parser)
    return click.Command(name)


class _Asked(BaseException):
    """A command has come as far as its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@contextmanager
def _asking() -> Iterator[None]:
    """Parsers that parse nothing, and tell who they are. For a process that does nothing but complete a line."""

    def told(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Asked(self)

    parses: Any = argparse.ArgumentParser.parse_args
    setattr(argparse.ArgumentParser, "parse_args", told)  # noqa: B010 - a type checker knows no such assignment
    try:
        yield
    finally:
        setattr(argparse.ArgumentParser, "parse_args", parses)  # noqa: B010


def _command(name: str, parser: argparse.ArgumentParser) -> click.Command:
    found: list[click.Parameter] = []
    below: dict[str, click.Command] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = {one: _command(one, own) for one, own in action.choices.items()}
        elif action.option_strings and not isinstance(action, argparse._HelpAction):
            found.append(_option(action))
        elif not action.option_strings:
            found.append(_argument(action))
    if below:
        return click.Group(name, below, params=found, help=parser.description)
    return click.Command(name, params=found, help=parser.description)


def _option(action: argparse.Action) -> click.Option:
    is_flag = action.nargs == 0
    several = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    named: dict[str, Any] = {"help": action.help, "multiple": several}
    if is_flag:
        return click.Option([*action.option_strings, action.dest], is_flag=True, help=action.help)
    return click.Option([*action.option_strings, action.dest], type=_type(action), **named, **_completes(action))


def _argument(action: argparse.Action) -> click.Argument:
    several = action.nargs in ("+", "*")
    return click.Argument([action.dest], type=_type(action), nargs=-1 if several else 1, **_completes(action))


def _type(action: argparse.Action) -> "click.ParamType[Any] | None":  # generic since click 8.5 alone
    if action.choices is not None:
        return click.Choice([str(one) for one in action.choices])
    return click.Path() if action.type is Path or str(action.metavar).strip(".") in _OF_FILES else None


def _completes(action: argparse.Action) -> dict[str, Any]:
    return {"shell_complete": runs_like} if action.dest in _OF_RUNS else {}
