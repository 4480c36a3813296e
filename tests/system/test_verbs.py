"""What every command promises: help with its exit codes, JSON where it reads, a line on the page of commands."""

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from internist.commands.cli import EXTRAS

ROOT = Path(__file__).parents[2]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["internist.commands"]
VERBS = {
    "alerts": ("list", "ack", "unack", "silence", "unsilence", "silences"),
    "mup": ("plan",),
    "rules": ("check", "test"),
    "runs": ("list", "show", "compare", "rm"),
    "token": ("create", "list", "revoke"),
}
READING = {
    "alerts list", "alerts silences", "check", "doctor", "mup plan", "receivers", "rules test", "runs list",
    "runs show", "runs compare", "scaling", "token list", "top",
}  # fmt: skip
LINES = sorted({*COMMANDS} - {*VERBS} | {f"{name} {verb}" for name, verbs in VERBS.items() for verb in verbs})


@pytest.fixture
def help_of(capsys):
    """What a command says of itself."""

    def told(line):
        name, *verbs = line.split()
        try:
            code = EntryPoint(name, COMMANDS[name], "internist.commands").load()([*verbs, "--help"])
        except SystemExit as stop:
            code = stop.code
        assert code in (0, None)
        return capsys.readouterr().out

    return told


@pytest.mark.parametrize("line", LINES)
def test_help_documents_the_exit_codes_and_what_reads_speaks_json(help_of, line):
    told = help_of(line)

    assert re.search(r"exit codes?:", told), told
    assert line not in READING or "--json" in told or "--format" in told


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_told_by_its_command(help_of, name):
    told = help_of(name)

    assert [verb for verb in VERBS[name] if not re.search(rf"\b{verb}\b", told)] == []


def test_the_page_of_commands_has_every_command():
    page = (ROOT / "docs" / "commands.md").read_text()
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))

    assert [name for name in COMMANDS if not re.search(rf"`{name}\b", rows)] == []


def test_the_page_of_commands_says_what_each_needs():
    told = {}
    for line in (ROOT / "docs" / "commands.md").read_text().splitlines():
        if line.startswith("| `"):
            _, names, _, extras, _ = line.split("|")
            told |= {name: tuple(re.findall(r"`(\w+)`", extras)) for name in re.findall(r"`(\w+)", names)}

    del told["doctor"]  # it does what it can with what is there
    assert {name: extras for name, extras in told.items() if extras} == EXTRAS
