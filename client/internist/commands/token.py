"""`internist token`: makes, lists and revokes what programs and people show to a server."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from internist.commands.asked import add_options, connect
from internist.errors import ConfigurationError, RequestRefused
from internist.schema.access import NewToken, Token
from internist.ship.connection import Connection

WELL, USAGE = 0, 2
_NEVER: Final = "never"
_CODES: Final = "exit code: 0; 1 the server cannot be asked; 2 it refused, or the arguments are wrong"


def command(argv: Sequence[str]) -> int:
    """Make, list or revoke tokens of a server.

    Returns:
        0; 2: the server refused, or the arguments are wrong.
    """
    arguments = _parser(os.environ).parse_args(argv)
    try:
        connection = connect(arguments, os.environ)
        try:
            return int(arguments.act(connection, arguments))
        finally:
            connection.close()
    except (RequestRefused, ConfigurationError) as error:
        print(f"internist token: {error}", file=sys.stderr)
        return USAGE


def _create(connection: Connection, arguments: argparse.Namespace) -> int:
    wanted = {
        "name": arguments.name, "scopes": arguments.scope, "project": arguments.project, "days": arguments.days
    }  # fmt: skip
    made = connection.write("tokens", wanted, NewToken)
    print(made.secret)
    print(
        f"{_told(made.token)}\nThe server keeps its hash alone: this is the only time that it is shown.",
        file=sys.stderr,
    )
    return WELL


def _list(connection: Connection, arguments: argparse.Namespace) -> int:
    found = connection.read("tokens", tuple[Token, ...])
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
        return WELL
    for token in found:
        print(_told(token))
    return WELL


def _revoke(connection: Connection, arguments: argparse.Namespace) -> int:
    revoked = connection.delete(f"tokens/{arguments.id}", Token)
    print(f"token {arguments.id} is revoked: {revoked.name}")
    return WELL


def _told(token: Token) -> str:
    """A token in a line."""
    parts = [f"{token.id:>4}  {token.name}", "+".join(token.scopes)]
    parts.append("all projects" if token.project is None else f"project {token.project}")
    if token.revoked_at_ms is not None:
        parts.append(f"revoked {_day(token.revoked_at_ms)}")
    else:
        parts += [f"expires {_day(token.expires_at_ms)}", f"last used {_day(token.last_used_ms)}"]
    return " · ".join(parts)


def _day(at_ms: int | None) -> str:
    return _NEVER if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist token",
        description=(command.__doc__ or "").partition("\n")[0],
        epilog=_CODES,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a token, and print it once")
    create.add_argument("name", metavar="NAME", help="what its bearer does is told of under it; runs belong to it")
    create.add_argument(
        "--scope", action="append", required=True, choices=("ingest", "read", "admin"),
        help="what it is for; may be repeated: to send what runs measure, to read, or everything",
    )  # fmt: skip
    create.add_argument("--project", help="the only project that it is for (default: all)")
    create.add_argument("--days", type=float, help="until it expires (default: never)")
    create.set_defaults(act=_create)
    listed = actions.add_parser("list", help="tokens that were made, the newest first")
    listed.add_argument("--json", action="store_true", help="print the answer as the API gives it")
    listed.set_defaults(act=_list)
    revoke = actions.add_parser("revoke", help="let nobody use a token any more")
    revoke.add_argument("id", type=int, metavar="ID", help="as the list has it")
    revoke.set_defaults(act=_revoke)
    for action in (create, listed, revoke):
        action.epilog = _CODES
        add_options(action, environ, what="one that administers")
    return parser
