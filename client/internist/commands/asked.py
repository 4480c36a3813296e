"""Which server a command asks, and what it shows there: options of the commands that need no extra."""

import argparse
from collections.abc import Mapping

from internist.ship.connection import DEFAULT_SERVER, READ_S, Connection
from internist.ship.credentials import token_for


def add_options(parser: argparse.ArgumentParser, environ: Mapping[str, str], *, what: str = "what it asks for") -> None:
    """Let a command be told of its server.

    Args:
        what: the token is, in words.
    """
    server = environ.get("INTERNIST_SERVER") or DEFAULT_SERVER
    shown = server.replace("%", "%%")  # as argparse shows it as it is
    parser.add_argument("--server", default=server, help=f"address (default: INTERNIST_SERVER, now {shown})")
    parser.add_argument(
        "--token", default=None, help=f"{what} (default: INTERNIST_TOKEN, else what `internist login` kept)"
    )


def connect(arguments: argparse.Namespace, environ: Mapping[str, str], *, timeout: float = READ_S) -> Connection:
    """A connection to the server that is asked.

    Raises:
        ConfigurationError: the address or the token cannot be one.
    """
    return Connection(arguments.server, token_of(arguments, environ), timeout=timeout)


def token_of(arguments: argparse.Namespace, environ: Mapping[str, str]) -> str | None:
    """What is shown to the server that is asked."""
    return token_for(arguments.server, arguments.token, environ=environ)
