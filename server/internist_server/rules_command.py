"""`internist rules`: is a file of rules right, and what would it have said of a run?"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from internist_migrations.upgrade import is_current
from internist_server.alerts.rule_files import read_rules
from internist_server.alerts.rules import RuleFile
from internist_server.errors import NotFound, RulesError
from internist_server.replay import changed_alerts, replay
from internist_server.settings import Settings, database_url
from internist_server.store.database import Database

FIRED: Final = 3
_CODES: Final = """exit codes:
  0  the file is right, or the run was replayed
  1  the file is wrong (a line for each mistake), or the run cannot be read
  2  the arguments are wrong
  3  test --exit-code: something would have fired"""


def command(argv: Sequence[str]) -> int:
    """Check a file of rules, or test it on a stored run."""
    options = _parser().parse_args(argv)
    try:
        rules = read_rules(options.file)
    except RulesError as error:
        return _fail(str(error))
    if options.action == "check":
        sys.stdout.write(
            f"{options.file}: {_count(len(rules.rule), 'rule')}, {_count(len(rules.receiver), 'receiver')}\n"
        )
        return 0
    try:
        found = _test(rules, run=options.run, database=options.database)
    except (NotFound, OSError) as error:
        return _fail(f"internist rules: {error}")
    if options.json:
        sys.stdout.write(f"{json.dumps(asdict(found), indent=2)}\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _in_words(found))
    return FIRED if found.fired and options.exit_code else 0


@dataclass(frozen=True, slots=True)
class Change:
    """What would have become of an alert, and when."""

    attempt: str
    step: int
    state: str
    rule: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class Tested:
    """What a file of rules would have said of a run: what fires and resolves, how many alerts that is, and how many
    recorded alerts each rule on a condition is on."""

    changes: tuple[Change, ...]
    fired: int
    on_conditions: dict[str, tuple[str, int]]


def _test(rules: RuleFile, *, run: str, database: str | None) -> Tested:
    url = Settings().database_url if database is None else database_url(database)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise OSError(f"there is no database at {url.removeprefix('sqlite:///')}")
    store = Database(url)
    try:
        if not is_current(store.engine):
            raise OSError("the database is of another version: `internist serve` brings it up to date")
        with store.read() as session:
            changes = tuple(
                Change(found.attempt, one.step, one.state, one.rule, one.severity, one.message)
                for found in replay(session, run, rules.rule)
                for one in (found.change,)
            )
            conditions = {
                rule.name: (rule.condition, len(changed_alerts(session, run, rule)))
                for rule in rules.rule
                if rule.condition is not None
            }
        return Tested(changes, sum(one.state == "firing" for one in changes), conditions)
    finally:
        store.close()


def _in_words(found: Tested) -> list[str]:
    lines = [
        f"{one.attempt}  step {one.step:>8}  {one.state:<8}  {one.rule} ({one.severity}): {one.message}"
        for one in found.changes
    ]
    for name, (condition, count) in found.on_conditions.items():
        lines.append(f"{name}: on {_count(count, 'recorded alert')} of {condition}")
    return [*lines, f"{_count(found.fired, 'alert')} would have fired"]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _fail(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist rules",
        description=(command.__doc__ or "").partition("\n")[0],
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="whether a file is right", description="Whether a file of rules is right.")
    test = actions.add_parser(
        "test", help="what a file would have said of a run", description="What rules would have said of a stored run."
    )
    for action in (check, test):
        action.epilog, action.formatter_class = _CODES, argparse.RawDescriptionHelpFormatter
        action.add_argument("file", type=Path, help="file of rules, such as internist.toml")
    test.add_argument("--run", required=True, help="id of a run that the database holds")
    test.add_argument("--database", help="path of a SQLite file, or postgresql://… (default: INTERNIST_DATABASE_URL)")
    test.add_argument("--json", action="store_true", help="print one object")
    test.add_argument("--exit-code", action="store_true", help=f"exit with {FIRED} if something would have fired")
    return parser
