"""What commands on a database have in common: which one is meant, and how they say that it is no good."""

import argparse
import sqlite3
import sys
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from internist_migrations.upgrade import NewerDatabase
from internist_server.errors import ServerError
from internist_server.settings import Settings, database_url

REASONS: Final = (NewerDatabase, ServerError, SQLAlchemyError, sqlite3.Error, OSError, ValueError)
"""What such a command says in one sentence."""


def parser_of(command: Callable[[Sequence[str]], int], *, codes: str) -> argparse.ArgumentParser:
    """The arguments of `internist` and the function's name, with what its docstring says first.

    Args:
        command: what is called.
        codes: what its exit codes mean.
    """
    description = (command.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"internist {command.__name__}", description=description, epilog=codes)
    parser.add_argument("--database", help="path of a SQLite file, or postgresql://… (default: INTERNIST_DATABASE_URL)")
    return parser


def meant(options: argparse.Namespace) -> str:
    """URL of the database that is meant.

    Raises:
        ValueError: it is none.
    """
    return Settings().database_url if options.database is None else database_url(options.database)


def fail(command: Callable[[Sequence[str]], int], error: Exception) -> int:
    """Say why a command has failed; its exit code."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    sys.stderr.write(f"internist {command.__name__}: {reason}\n")
    return 1
