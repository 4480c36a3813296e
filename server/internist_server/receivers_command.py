"""`internist receivers`: who is told of alerts, and whether they can be."""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from internist_server.alerts.address_book import Address, AddressBook, require_usable
from internist_server.alerts.calling import open_client
from internist_server.alerts.notify import TIMEOUT_S, Notification, deliver
from internist_server.alerts.rule_files import read_rules
from internist_server.cli import read_settings
from internist_server.errors import RulesError, SettingsError
from internist_server.receivers import book_of
from internist_server.settings import Settings

_AT_ONCE: Final = 16


def command(argv: Sequence[str]) -> int:
    """List who is told of alerts, and send each a test."""
    options = _parser().parse_args(argv)
    try:
        settings, book = _read(options)
        require_usable(book.everyone)
    except (SettingsError, RulesError) as error:
        sys.stderr.write(f"internist receivers: {error}\n")
        return 1
    if not book.everyone:
        sys.stderr.write(
            "internist receivers: there are none; set INTERNIST_WEBHOOK_URL, INTERNIST_APPRISE_URLS, or a [[receiver]] "
            "in the file of rules\n"
        )
        return 1
    tested = options.action == "test"
    failures = test(book.everyone, settings) if tested else [None] * len(book.everyone)
    told = list(zip(book.everyone, failures, strict=True))
    if options.json:
        rows = [
            {"kind": _kind(one), "name": one.name, **({"failure": failure} if tested else {})} for one, failure in told
        ]
        sys.stdout.write(f"{json.dumps(rows, indent=2)}\n")
    else:
        for one, failure in told:
            outcome = f": {failure or 'took it'}" if tested else ""
            sys.stdout.write(f"{_kind(one):<8}  {one.name}{outcome}\n")
    return 1 if any(failures) else 0


def test(addresses: Sequence[Address], settings: Settings) -> list[str | None]:
    """Send every receiver a message that says it is a test; for each what went wrong, or None."""
    message = Notification(
        id=0, run="test", run_name="a test of this receiver", project="test", condition="user", status="resolved",
        alerts=(), attempts=0,
    )  # fmt: skip
    with (
        ThreadPoolExecutor(_AT_ONCE) as pool,
        open_client(TIMEOUT_S, may_be_local=settings.may_call_itself) as client,
    ):
        return list(pool.map(lambda one: deliver(client, one, message, external_url=settings.address), addresses))


def _read(options: argparse.Namespace) -> tuple[Settings, AddressBook]:
    settings = read_settings({"rules": options.rules})
    rules = None if settings.rules is None else read_rules(settings.rules)
    return settings, book_of(settings, () if rules is None else rules.receiver)


def _kind(address: Address) -> str:
    return "webhook" if address.is_webhook else "apprise"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist receivers",
        description="Who is told of alerts, by the settings of this environment.",
        epilog="exit code: 0; 1 there are none, a setting is wrong, or one did not take its test; 2 wrong arguments",
    )
    parser.add_argument("action", choices=("list", "test"), help="`test` sends each receiver a message that is a test")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--rules", type=Path, help="file with rules and receivers of your own (INTERNIST_RULES)")
    return parser
