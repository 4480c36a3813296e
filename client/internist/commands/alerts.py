"""`internist alerts`: what fires on a server, seen, silenced, and told again from a terminal."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from internist.commands.asked import add_options, connect
from internist.errors import ConfigurationError, ServerError
from internist.schema.views import Alert, AlertsPage, Silence
from internist.ship.connection import Connection

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def command(argv: Sequence[str]) -> int:
    """List alerts of a server, acknowledge and silence them."""
    options = _parser(os.environ).parse_args(argv)
    try:
        connection = connect(options, os.environ)
        try:
            lines: list[str] = options.act(connection, options)
        finally:
            connection.close()
    except (ServerError, ConfigurationError) as error:
        sys.stderr.write(f"internist alerts: {error}\n")
        return 1
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


def _list(connection: Connection, options: argparse.Namespace) -> list[str]:
    states = None if options.all else ["pending", "firing"]
    found = connection.read("alerts", AlertsPage, run=options.run, state=states)
    return [_line(alert) for alert in found.alerts] or ["no alert is open"]


def _acknowledge(connection: Connection, options: argparse.Namespace) -> list[str]:
    body = {"by": options.author, "new_normal": options.new_normal}
    return [_line(connection.write(f"alerts/{options.alert}/acknowledge", body, Alert))]


def _withdraw(connection: Connection, options: argparse.Namespace) -> list[str]:
    return [_line(connection.delete(f"alerts/{options.alert}/acknowledge", Alert))]


def _silence(connection: Connection, options: argparse.Namespace) -> list[str]:
    body = {"matchers": dict(options.matchers), "author": options.author, "reason": options.reason}
    return [_silence_line(connection.write("silences", body | {"seconds": options.duration}, Silence))]


def _end_silence(connection: Connection, options: argparse.Namespace) -> list[str]:
    return [_silence_line(connection.delete(f"silences/{options.silence}", Silence))]


def _silences(connection: Connection, _: argparse.Namespace) -> list[str]:
    found = connection.read("silences", tuple[Silence, ...])
    return [_silence_line(one) for one in found] or ["nothing is silenced"]


def _line(alert: Alert) -> str:
    seen = f"  (seen by {alert.acknowledged_by})" if alert.acknowledged_by else ""
    return f"{alert.id:>6}  {alert.state:<9} {alert.severity:<8} {alert.run}  {alert.message}{seen}"


def _silence_line(silence: Silence) -> str:
    matchers = " ".join(f"{name}={glob}" for name, glob in silence.matchers.items())
    return f"{silence.id:>6}  {matchers}  by {silence.author}: {silence.reason}"


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="internist alerts", description=(command.__doc__ or "").partition("\n")[0])
    add_options(parser, environ)
    actions = parser.add_subparsers(required=True)

    listing = actions.add_parser("list", help="open alerts")
    listing.add_argument("--run", help="only of this run")
    listing.add_argument("--all", action="store_true", help="also those that are over")
    listing.set_defaults(act=_list)

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

    actions.add_parser("silences", help="silences in force").set_defaults(act=_silences)
    for action in (seen, silence):
        login = environ.get("USER") or environ.get("LOGNAME")
        action.add_argument("--author", default=login, required=not login, help="who says so (default: your login)")
    return parser
