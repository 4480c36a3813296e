"""`internist scaling`: the scaling check of runs that a server holds, as a table or as JSON."""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Final

import msgspec

from internist.commands.asked import add_options, connect
from internist.errors import ConfigurationError, RequestRefused
from internist.scaling.words import table, wrapped
from internist.schema.scaling import Scaling, ScalingFamily, ScalingVerdict

PASSED, FAILED, USAGE, INCONCLUSIVE = 0, 1, 2, 3
EXIT_CODES: Final[dict[ScalingVerdict, int]] = {"PASS": PASSED, "FAIL": FAILED, "INCONCLUSIVE": INCONCLUSIVE}
PATIENCE_S: Final = 60.0
"""How long to wait for an answer: the first check of large runs reads them all."""


def command(argv: list[str]) -> int:
    """Check how a family of runs scales in width and depth, and name the rule that is wrong.

    Returns:
        0: every judged exponent passes; 1: one fails; 3: it cannot be told from these runs; 2: there is no such run,
        or the runs are no family. Without runs or a family the families are listed, and it is 0.
    """
    arguments = _parser(os.environ).parse_args(argv)
    try:
        connection = connect(arguments, os.environ, timeout=PATIENCE_S)
        try:
            answer = connection.scaling(arguments.runs, family=arguments.family, project=arguments.project)
        finally:
            connection.close()
    except (RequestRefused, ConfigurationError) as error:
        print(f"internist scaling: {error}", file=sys.stderr)
        return USAGE
    report = answer.report if arguments.runs or arguments.family else None
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(report if report is not None else answer)).decode())
    else:
        print(table(report) if report is not None else "\n".join(list_families(answer)))
    return PASSED if report is None else EXIT_CODES[report.verdict]


def list_families(answer: Scaling) -> list[str]:
    """The families in lines for people, each with the command that checks it."""
    if not answer.families:
        lines = ["The server holds no family: no runs of one project that differ in width or depth alone."]
    else:
        lines = [f"{len(answer.families)} famil{'y' if len(answer.families) == 1 else 'ies'}"]
    for family in answer.families:
        lines += ["", *wrapped(family.name), f"  {len(family.runs)} runs; {_sizes(family)}"]
        if family.checkable:
            lines.append(f"  internist scaling --family {family.id}")
        else:
            lines += wrapped(family.reason, first="  not to be checked: ")
    if answer.excluded:
        lines += ["", "of no family"]
    for left_out in answer.excluded:
        lines += wrapped(f"{left_out.name or left_out.run}: {left_out.reason}", first="  ")
    return lines


def _sizes(family: ScalingFamily) -> str:
    parts = []
    for name, sizes in (("width", family.widths), ("depth", family.depths)):
        parts.append(f"{name}{'s' if len(sizes) > 1 else ''} {', '.join(map(str, sizes))}")
    return "; ".join(parts)


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist scaling",
        description=(command.__doc__ or "").partition("\n")[0],
        epilog="exit code: 0 PASS, 1 FAIL (or the server does not answer), 3 INCONCLUSIVE, 2 wrong arguments",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="id or name of a run; without any, list the families")
    parser.add_argument("--family", metavar="ID", help="the runs of this family, as the list names it")
    parser.add_argument("--project", help="only families of this project")
    add_options(parser, environ)
    parser.add_argument("--json", action="store_true", help="print the answer as the API gives it")
    return parser
