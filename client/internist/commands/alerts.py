"""`internist alerts`: what fires on a server, seen, silenced, and told again from a terminal."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from internist.commands.asked import add_options, connect
from internist.errors import ConfigurationError, RequestRefused, ServerError
from internist.schema.alerts import Alert, AlertsPage, Silence
from internist.ship.connection import Connection

_CODES: Final = "exit code: 0; 1 the server cannot be asked; 2 it refused, or the arguments are wrong"
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def command(argv: Sequence[str]) -> int:
    """List alerts of a server, acknowledge and silence them."""
    options = _parser(os.environ).parse_args(argv)
    try:
        connection = connect(options, os.environ)
        try:
            found: Alert | Silence | tuple[Alert | Silence, ...] = options.act(connection, options)
        finally:
            connection.close()
    except (ServerError, ConfigurationError) as error:
        sys.stderr.write(f"internist alerts: {error}\n")
        return 2 if isinstance(error, RequestRefused | ConfigurationError) else 1
    if options.json:
        lines = [msgspec.json.format(msgspec.json.encode(found)).decode()]
    else:
        lines = [_line(one) for one in (found if isinstance(found, tuple) else (found,))] or [options.none]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def seconds(text: str) -> float:
    """A duration such as `30m`, `2h` or `1d`, in seconds.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"expected a duration such as 30m, 2h or 1d, got {text!r}")
    return float(number) * _UNITS[unit]


def matcher(text: str) -> tuple[str, str]:
    """A label and the glob that it must match.

    Raises:
        argparse.ArgumentTypeError: it is no `label=glob`.
    """
    name, equals, glob = text.partition("=")
    if not (name and equals and glob):
        raise argparse.ArgumentTypeError(f"expected label=glob, such as module=blocks.*, got {text!r}")
    return name, glob


def _list(connection: Connection, options: argparse.Namespace) -> tuple[Alert, ...]:
    states = None if options.all else ["pending", "firing"]
    return connection.read("alerts", AlertsPage, run=options.run, state=states).alerts


def _acknowledge(connection: Connection, options: argparse.Namespace) -> Alert:
    body = {"by": options.author, "new_normal": options.new_normal}
    return connection.write(f"alerts/{options.alert}/acknowledge", body, Alert)


def _withdraw(connection: Connection, options: argparse.Namespace) -> Alert:
    return connection.delete(f"alerts/{options.alert}/acknowledge", Alert)


def _silence(connection: Connection, options: argparse.Namespace) -> Silence:
    body = {"matchers": dict(options.matchers), "author": options.author, "reason": options.reason}
    return connection.write("silences", body | {"seconds": options.duration}, Silence)


def _end_silence(connection: Connection, options: argparse.Namespace) -> Silence:
    return connection.delete(f"silences/{options.silence}", Silence)


def _silences(connection: Connection, _: argparse.Namespace) -> tuple[Silence, ...]:
    return connection.read("silences", tuple[Silence, ...])


def _line(one: Alert | Silence) -> str:
    """An alert or a silence in a line."""
    if isinstance(one, Silence):
        matchers = " ".join(f"{name}={glob}" for name, glob in one.matchers.items())
        return f"{one.id:>6}  {matchers}  by {one.author}: {one.reason}"
    seen = f"  (seen by {one.acknowledged_by})" if one.acknowledged_by else ""
    return f"{one.id:>6}  {one.state:<9} {one.severity:<8} {one.run}  {one.message}{seen}"


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    description = (command.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="internist alerts", description=description, epilog=_CODES)
    add_options(parser, environ)
    actions = parser.add_subparsers(required=True)

    listing = actions.add_parser("list", help="open alerts")
    listing.add_argument("--run", help="only of this run")
    listing.add_argument("--all", action="store_true", help="also those that are over")
    listing.set_defaults(act=_list, none="no alert is open")

    seen = actions.add_parser("ack", help="say that you have seen an alert: receivers are not told of it again")
    seen.add_argument("alert", type=int)
    seen.add_argument("--new-normal", action="store_true", help="and that its value is well from now on")
    seen.set_defaults(act=_acknowledge)

    unseen = actions.add_parser("unack", help="take that back")
    unseen.add_argument("alert", type=int)
    unseen.set_defaults(act=_withdraw)

    silence = actions.add_parser("silence", help="tell nobody of alerts with these labels for a while")
    silence.add_argument("matchers", nargs="+", type=matcher, metavar="LABEL=GLOB")
    silence.add_argument("--for", dest="duration", type=seconds, default=seconds("2h"), help="such as 30m, 2h, 1d")
    silence.add_argument("--reason", required=True)
    silence.set_defaults(act=_silence)

    unsilence = actions.add_parser("unsilence", help="take a silence back")
    unsilence.add_argument("silence", type=int)
    unsilence.set_defaults(act=_end_silence)

    silences = actions.add_parser("silences", help="silences in force")
    silences.set_defaults(act=_silences, none="nothing is silenced")

    for action in actions.choices.values():
        action.epilog = _CODES
        action.add_argument("--json", action="store_true", help="print the answer as the API gives it")
    for action in (seen, silence):
        login = environ.get("USER") or environ.get("LOGNAME")
        action.add_argument("--author", default=login, required=not login, help="who says so (default: your login)")
    return parser
