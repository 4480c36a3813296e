"""`internist login` and `internist logout`: the token of a server, looked at there and kept for its owner."""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from internist.errors import ConfigurationError, RequestRefused, TokenRefused
from internist.schema.access import Identity
from internist.ship import credentials
from internist.ship.connection import DEFAULT_SERVER, Connection, address_of

WELL, FAILURE, USAGE = 0, 1, 2
OPEN: Final = "anyone"
"""For whom a server takes everybody that asks for no token."""
_CODES: Final = "exit code: 0; 1 the server cannot be asked; 2 it does not know the token, or the arguments are wrong"


def login(argv: Sequence[str]) -> int:
    """Keep a server's token, so that scripts and commands of this user need not be told it."""
    arguments = _login_parser(os.environ).parse_args(argv)
    try:
        token = arguments.token if arguments.token is not None else _asked(arguments.server)
        connection = Connection(arguments.server, token)
        try:
            identity = connection.read("identity", Identity)
        finally:
            connection.close()
        file = None if identity.name == OPEN else credentials.keep(arguments.server, token, os.environ)
    except (TokenRefused, RequestRefused, ConfigurationError) as error:
        return _fail("login", str(error), USAGE)
    except OSError as error:
        return _fail("login", str(error), FAILURE)
    if arguments.json:
        place = None if file is None else str(file)
        print(json.dumps({"server": connection.server, **asdict(identity), "file": place}))
    elif file is None:
        print(f"{connection.server} asks for no token: nothing is kept")
    else:
        print(f"{connection.server} knows you as {described(identity)}; kept in {file}")
    if file is not None and os.environ.get("INTERNIST_TOKEN"):
        print("INTERNIST_TOKEN is set, and wins over what is kept", file=sys.stderr)
    return WELL


def logout(argv: Sequence[str]) -> int:
    """Forget a server's token here; there it stays in force until it is revoked."""
    arguments = _logout_parser(os.environ).parse_args(argv)
    try:
        gone = credentials.forget(None if arguments.all else arguments.server, os.environ)
    except ConfigurationError as error:
        return _fail("logout", str(error), USAGE)
    except OSError as error:
        return _fail("logout", str(error), FAILURE)
    if arguments.json:
        print(json.dumps({"forgotten": gone}))
    elif gone:
        print(f"forgotten: the token of {', '.join(gone)}")
    else:
        print("nothing was kept" if arguments.all else f"nothing was kept for {address_of(arguments.server)}")
    return WELL


def described(identity: Identity) -> str:
    """Whose a token is and what it is for, in words."""
    parts = [f"{identity.name}: {' and '.join(identity.scopes)}"]
    parts.append("all projects" if identity.project is None else f"project {identity.project}")
    if identity.expires_at_ms is not None:
        parts.append(f"until {datetime.fromtimestamp(identity.expires_at_ms / 1000, UTC):%Y-%m-%d %H:%M UTC}")
    return ", ".join(parts)


def _asked(server: str) -> str:
    """The token, from whoever sits at the terminal, or from what is piped in.

    Raises:
        ConfigurationError: there is none.
    """
    typed = getpass.getpass(f"Token for {address_of(server)}: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not typed.strip():
        raise ConfigurationError("no token was given: type it, pipe it in, or say --token")
    return typed.strip()


def _fail(command: str, reason: str, code: int) -> int:
    print(f"internist {command}: {reason}", file=sys.stderr)
    return code


def _login_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist login", description=(login.__doc__ or "").partition("\n")[0], epilog=_CODES
    )
    _add_server(parser, environ)
    parser.add_argument(
        "--token", help="default: asked for, or read from what is piped in, so that no history keeps it"
    )
    parser.add_argument("--json", action="store_true", help="print for whom the server takes you, as JSON")
    return parser


def _logout_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist logout", description=(logout.__doc__ or "").partition("\n")[0], epilog=_CODES
    )
    _add_server(parser, environ)
    parser.add_argument("--all", action="store_true", help="of all servers")
    parser.add_argument("--json", action="store_true", help="print the servers whose token was forgotten, as JSON")
    return parser


def _add_server(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    server = environ.get("INTERNIST_SERVER") or DEFAULT_SERVER
    shown = server.replace("%", "%%")  # as argparse shows it as it is
    parser.add_argument("server", nargs="?", default=server, help=f"address (default: INTERNIST_SERVER, now {shown})")
