"""The command `internist sync`: its arguments, and its report in lines for people."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from internist.commands.asked import add_options, token_of
from internist.errors import InternistError
from internist.ship.segments import DEFAULT_DIRECTORY
from internist.ship.sync import SyncReport, sync


def command(argv: list[str]) -> int:
    """Ship what jobs that have ended left in their spool directories."""
    arguments = _parser(os.environ).parse_args(argv)
    if arguments.directory is None:
        arguments.directory = _default_directory(os.environ)
        why = "INTERNIST_DIR" if os.environ.get("INTERNIST_DIR") else "the default: INTERNIST_DIR is not set"
        print(f"from {arguments.directory} ({why})")
    try:
        token = token_of(arguments, os.environ)
        report = sync(arguments.directory, server=arguments.server, token=token, verify=arguments.verify)
    except (InternistError, OSError) as error:
        print(f"internist sync: {error}", file=sys.stderr)
        return 1
    print("\n".join(describe(report)))
    return 1 if report.missing or report.refused or report.unreadable else 0


def describe(report: SyncReport) -> list[str]:
    """The report in lines for people."""
    lines = [
        f"{_count(len(report.runs), 'run')}, {_count(report.attempts, 'attempt')}, {_count(report.spools, 'spool')}:"
        f" {_count(report.records, 'record')} sent, {report.stored:,} of them new to the server"
    ]
    lines += [f"  {url}" for url in report.urls]
    lines += [f"refused: {_count(number, 'record')}: {reason}" for reason, number in report.refused.items()]
    lines += [f"still being written, to be synced again: {path}" for path in report.live]
    lines += [f"left out, its beginning is damaged: {path}" for path in report.unreadable]
    if report.corrupt:
        lines.append(f"{_count(report.corrupt, 'damaged place')} skipped")
    if report.missing is not None:
        lacked = (
            f"lacked {_count(report.missing, 'record')}, which it has now" if report.missing else "has every record"
        )
        lines.append(f"verified: the server {lacked}")
    return lines


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="internist sync", description=(command.__doc__ or "").partition("\n")[0])
    here = _unformatted(str(_default_directory(environ)))
    parser.add_argument(
        "directory", type=Path, nargs="?",
        help=f"directory of all runs, of one run, attempt or rank (default: INTERNIST_DIR, now {here})",
    )  # fmt: skip
    add_options(parser, environ)
    parser.add_argument("--verify", action="store_true", help="send all again and count what the server lacked")
    return parser


def _default_directory(environ: Mapping[str, str]) -> Path:
    """Where `watch` keeps runs unless it is told otherwise."""
    return Path(environ.get("INTERNIST_DIR") or DEFAULT_DIRECTORY).expanduser()


def _unformatted(text: str) -> str:
    """A text as argparse shows it as it is."""
    return text.replace("%", "%%")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
