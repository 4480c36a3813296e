"""`internist check`: a stored run, judged once more, by itself or by a reference run, for people and for CI."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from internist.commands.asked import add_options, connect
from internist.errors import ConfigurationError, RequestRefused
from internist.monitor.reference import read_file
from internist.scaling.words import wrapped
from internist.schema.check import Check, Deviation
from internist.schema.conditions import State
from internist.ship.connection import Connection

WELL, ILL, USAGE, UNKNOWN = 0, 1, 2, 3
EXIT_CODES: Final[dict[State, int]] = {"ok": WELL, "drifting": ILL, "violated": ILL, "not measured": UNKNOWN}
PATIENCE_S: Final = 300.0
"""How long to wait for an answer: all steps of a run are judged."""
_SHOWN: Final = 20


def command(argv: list[str]) -> int:
    """Judge a stored run once more, by itself or held to a reference run, and list what was out of its band.

    Returns:
        0; 2: there is no such run, or it cannot be held to that reference. With `--exit-code`, 1: something was out of
        its band, 3: too little was measured to tell.
    """
    arguments = _parser(os.environ).parse_args(argv)
    try:
        connection = connect(arguments, os.environ, timeout=PATIENCE_S)
        try:
            if arguments.save is not None:
                Path(arguments.save).write_bytes(msgspec.json.encode(connection.trajectory(arguments.run)))
                print(f"{arguments.save}: what a larger run can be held to")
                return WELL
            answer = _ask(connection, arguments.run, arguments.reference)
        finally:
            connection.close()
    except (RequestRefused, ConfigurationError, OSError) as error:
        print(f"internist check: {error}", file=sys.stderr)
        return USAGE
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())
    else:
        print("\n".join(in_words(answer)))
    return EXIT_CODES[answer.state] if arguments.exit_code else WELL


def in_words(answer: Check) -> list[str]:
    """A check in lines for people."""
    by = "" if answer.reference is None else f" held to {answer.reference} in {answer.held} series,"
    lines = [f"{answer.state}: run {answer.run},{by} {answer.steps} steps judged", *wrapped(answer.sentence)]
    for one in answer.deviations[:_SHOWN]:
        lines += ["", *wrapped(f"{one.severity} · {_span(one)} · {one.message}")]
        lines += wrapped(f"how sure: {one.how_sure}") if one.how_sure else []
        lines += wrapped(f"try: {one.advice}")
    if len(answer.deviations) > _SHOWN:
        lines += ["", f"{len(answer.deviations) - _SHOWN} more; --json lists them"]
    return lines


def _span(one: Deviation) -> str:
    end = "the end" if one.closed_step is None else f"step {one.closed_step}"
    return f"step {one.opened_step} to {end}"


def _ask(connection: Connection, run: str, reference: str | None) -> Check:
    trajectory = None if reference is None else read_file(reference)
    if trajectory is not None:
        return connection.check(run, trajectory=msgspec.json.encode(trajectory))
    return connection.check(run, reference=reference)


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist check",
        description=(command.__doc__ or "").partition("\n")[0],
        epilog="exit code: 0; 2 wrong arguments; with --exit-code 1 something was out of its band, 3 not measured",
    )
    parser.add_argument("run", metavar="RUN", help="id or name of the run")
    parser.add_argument(
        "--reference", metavar="RUN", help="the run to hold it to, by id or name, or a file that --save wrote"
    )
    parser.add_argument("--exit-code", action="store_true", help="tell the verdict by the exit code")
    parser.add_argument(
        "--save", metavar="FILE", help="write what others can be held to, of this run, and judge nothing"
    )
    add_options(parser, environ)
    parser.add_argument("--json", action="store_true", help="print the answer as the API gives it")
    return parser
