"""`internist doctor`: what Internist sees on this machine, and what it would measure of a training script."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from internist.errors import InternistError
from internist.schema.coverage import FAMILIES
from internist.schema.wire import CoverageEntry
from internist.ship.connection import DEFAULT_SERVER
from internist.ship.credentials import token_for
from internist.ship.segments import DEFAULT_DIRECTORY

if TYPE_CHECKING:
    from internist.commands.surroundings import Finding
    from internist.commands.trial import Trial, Watched

GROUP = "internist.doctor"
"""Entry points of what other packages look at: `store`, of the server's, a database."""
_SHOWN = 3
_EPILOG = """exit codes:
  0  nothing that was looked at costs a measurement
  1  a problem: the spool cannot be written, the server refuses, the script fails or watches nothing, or nothing of
     its model is measured
  2  the arguments are wrong"""
_UNWELL = ("silent", "not captured", "unsupported")
"""States of a part of which something is missing; frozen, idle and excluded parts have nothing to be measured."""


@dataclass(frozen=True, slots=True)
class Group:
    """Parts of a model of which the same became, for the same reason, as far as one family of metrics goes."""

    family: str
    kind: str
    state: str
    reason: str
    subjects: tuple[str, ...]


def command(argv: list[str]) -> int:
    """Say what Internist sees here, and what it would measure of a training script."""
    arguments = _parser().parse_args(argv)
    if arguments.database is not None:
        return _check_store(arguments.database, as_json=arguments.json)
    from internist.commands.surroundings import patches, surroundings  # these load torch, which a server may not have
    from internist.commands.trial import run_script

    environ = os.environ
    server = arguments.server or environ.get("INTERNIST_SERVER") or DEFAULT_SERVER
    findings = list(
        surroundings(
            server=server,
            token=token_for(server, environ=environ),
            directory=Path(environ.get("INTERNIST_DIR") or DEFAULT_DIRECTORY).expanduser(),
            environ=environ,
        )
    )
    trial = None
    if arguments.script is not None:
        with contextlib.redirect_stdout(sys.stderr):  # what the script prints is not the report
            trial = run_script(arguments.script, arguments.arguments, steps=arguments.steps)
    findings += patches()
    problems = [f"{f.topic}, {f.name}: {f.text}" for f in findings if f.state == "problem"] + list(_problems(trial))
    if arguments.json:
        print(json.dumps(_as_json(findings, trial, problems)))
    else:
        print("\n".join(_as_text(findings, trial, problems)))
    return 1 if problems else 0


def _check_store(place: str, *, as_json: bool) -> int:
    """Have the server's own look at a database."""
    found = entry_points(group=GROUP, name="store")
    if not found:
        raise InternistError("a database is checked by the server: pip install 'internist[server]'")
    return int(next(iter(found)).load()(place, as_json))


def grouped(entries: Iterable[CoverageEntry]) -> list[Group]:
    """Coverage by family, kind of part, state and reason: families in the order of the catalogue, the rest in the order
    in which each first appears."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    order = {family: place for place, family in enumerate(FAMILIES)}
    for entry in sorted(entries, key=lambda entry: order.get(entry.family, len(order))):
        groups.setdefault((entry.family, entry.kind, entry.state, entry.reason), []).append(entry.subject)
    return [Group(*key, tuple(subjects)) for key, subjects in groups.items()]


def _problems(trial: "Trial | None") -> Iterable[str]:
    """What is wrong with a script, as far as measuring goes."""
    if trial is None:
        return
    if trial.error:
        yield f"the script ended early: {trial.error}"
    if not trial.watched:
        yield "the script never called internist.watch(model, optimizer)"
    for watched in trial.watched:
        if not watched.steps:
            yield f"{watched.model}: no optimizer step was seen; pass the optimizer, or call monitor.step()"
        elif not any(entry.state == "measured" for entry in watched.coverage):
            yield f"{watched.model}: nothing was measured"


def _as_text(findings: Sequence["Finding"], trial: "Trial | None", problems: Sequence[str]) -> list[str]:
    lines: list[str] = []
    width = max(len(finding.name) for finding in findings)
    for topic in dict.fromkeys(finding.topic for finding in findings):
        lines += [topic]
        for finding in findings:
            if finding.topic == topic:
                mark = {"ok": " ", "note": "-", "problem": "!"}[finding.state]
                lines.append(f"{mark} {finding.name:<{width}}  {finding.text}")
        lines += [""]
    for watched in trial.watched if trial else ():
        lines += [*_coverage_lines(watched), ""]
    return [*lines, *(f"problem: {problem}" for problem in problems)] if problems else [*lines, "no problem was found"]


def _coverage_lines(watched: "Watched") -> list[str]:
    lines = [f"{watched.model}, after {watched.steps} optimizer steps"]
    groups = grouped(watched.coverage)
    width = max((len(group.family) + len(group.state) for group in groups), default=0) + 1
    for group in groups:
        mark = "!" if group.state in _UNWELL else " "
        label = f"{group.family} {group.state}"
        why = f": {group.reason}" if group.reason else ""
        which = f" ({_listed(group.subjects)})" if group.state != "measured" else ""
        lines.append(f"{mark} {label:<{width}}  {len(group.subjects):>5}{why}{which}")
    return lines


def _as_json(findings: Sequence["Finding"], trial: "Trial | None", problems: Sequence[str]) -> dict[str, object]:
    script = None
    if trial is not None:
        models = [
            {"model": each.model, "steps": each.steps, "coverage": [asdict(group) for group in grouped(each.coverage)]}
            for each in trial.watched
        ]
        script = {"error": trial.error or None, "watched": models}
    return {"findings": [asdict(finding) for finding in findings], "script": script, "problems": list(problems)}


def _listed(subjects: Sequence[str]) -> str:
    more = f", {len(subjects) - _SHOWN} more" if len(subjects) > _SHOWN else ""
    return ", ".join(subjects[:_SHOWN]) + more


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internist doctor",
        description="Say what Internist sees on this machine. With a training script: run it for a few steps,\n"
        "offline, and say what of its model is measured and what is not, and why.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=_steps, default=3, help="optimizer steps that the script makes (default 3)")
    parser.add_argument(
        "--server", help="address of the server (default: INTERNIST_SERVER, else " + DEFAULT_SERVER + ")"
    )
    parser.add_argument(
        "--database",
        help="look at a server's database instead: whether what must be true of it is (a path, or postgresql://…)",
    )
    parser.add_argument("script", type=_script, nargs="?", help="a Python script that calls internist.watch")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    return parser


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of steps, 1 or more, got {text!r}")
    return int(text)


def _script(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no file")
    return path
