"""Commands that read a server: for people, for programs, and when something is wrong."""

import html.parser
import json
import math
from importlib.metadata import entry_points

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from internist.commands import cli, completion, console
from internist.commands.export import command as export_command
from internist.commands.imports import command as import_command
from internist.commands.report import command as report_command
from internist.commands.runs import command as runs_command
from internist.commands.top import command as top_command
from internist.history.chart import chart
from internist.history.curves import Curve
from internist.history.importing import read_source
from tests.dashboard.serving import served

NAMES = ("tiny", "<b>wide</b>")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server with two runs that were imported by the command: one of them has a loss that is no number."""
    directory = tmp_path_factory.mktemp("commands")
    path = directory / "log.jsonl"
    with path.open("w") as file:
        for name in NAMES:
            for step in range(20):
                value = "nan" if step == 19 and name == "tiny" else 2.0 - step / 40
                file.write(json.dumps({"run": name, "tag": "train/nll", "step": step, "value": value}) + "\n")
    with served(directory) as address:
        arguments = ["jsonl", str(path), "--name", "train/nll=loss", "--project", "shop", "--server", address]
        assert import_command(arguments) == 0
        yield address


@pytest.fixture(autouse=True)
def at(address, monkeypatch):
    monkeypatch.setenv("INTERNIST_SERVER", address)


def test_runs_are_listed_with_their_verdicts(capsys):
    assert runs_command(["list", "--project", "shop"]) == 0
    out = capsys.readouterr().out
    assert "violated" in out and "tiny" in out and "<b>wide</b>" in out
    assert "\x1b" not in out  # no colours where the output is no terminal

    assert runs_command(["list", "--json"]) == 0
    assert {one["name"]: one["verdict"] for one in json.loads(capsys.readouterr().out)} == {
        "tiny": "violated", "<b>wide</b>": "not measured",
    }  # fmt: skip


def test_one_run_is_shown_by_its_name(capsys):
    assert runs_command(["show", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "violated  loss of model" in out

    assert runs_command(["show", "tiny", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"]["loss"] == "nan" and shown["verdicts"]["state"] == "violated"


def test_runs_are_compared_side_by_side(capsys):
    assert runs_command(["compare", *NAMES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [word for line in lines if line.startswith("verdict") for word in line.split()] == [
        "verdict", "violated", "not", "measured",
    ]  # fmt: skip


def test_top_prints_once_where_there_is_no_terminal(capsys):
    assert top_command([]) == 0
    assert "no run is under way" in capsys.readouterr().out
    assert top_command(["--all"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert top_command(["--all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_export_writes_a_file_that_import_reads(capsys, tmp_path):
    path = tmp_path / "out.jsonl"

    assert export_command([*NAMES, "--format", "jsonl", "-o", str(path), "--metric", "loss"]) == 0
    assert f"40 points of 2 runs in {path}" in capsys.readouterr().out
    assert len(read_source("jsonl", path)) == 2


class Page(html.parser.HTMLParser):
    """Checks that what is opened is closed, and collects what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta",):
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", NAMES)
def test_a_report_is_one_page_that_fetches_nothing(capsys, tmp_path, name):
    path = tmp_path / "run.html"

    assert report_command([name, "-o", str(path)]) == 0
    page = Page()
    page.feed(path.read_text())
    assert page.open == [] and page.fetched == []
    assert name in page.text  # escaped: names are text, never markup
    assert ("<script" in path.read_text()) is False
    assert path.read_text().count("<svg") == 1


def test_a_chart_marks_what_is_no_number():
    drawn = chart(Curve("loss", steps=[0, 1, 2], times_ms=[0, 0, 0], values=[1.0, math.nan, 2.0]))

    assert drawn.count('class="odd"') == 1
    assert drawn.count('class="line"') == 1
    assert "nan" not in chart(Curve("loss", steps=[0], times_ms=[0], values=[math.nan]))


def test_no_such_run_is_code_2_and_no_server_code_1(capsys):
    assert runs_command(["show", "absent"]) == console.USAGE
    assert "has no run 'absent', by id or by name" in capsys.readouterr().err
    assert cli.main(["runs", "show", "absent", "--server", "http://127.0.0.1:9"]) == cli.FAILURE
    assert "no Internist server answers" in capsys.readouterr().err
    assert runs_command(["show"]) == console.USAGE
    assert import_command(["jsonl", "no/such/file"]) == console.USAGE
    assert import_command(["jsonl", __file__]) == console.USAGE
    assert "test_server_commands.py:1 is no JSON" in capsys.readouterr().err


def test_what_was_never_measured_is_not_exported_as_an_empty_file(capsys, tmp_path):
    path = tmp_path / "run.csv"

    assert export_command(["tiny", "--format", "csv", "-o", str(path), "--metric", "losss"]) == console.USAGE
    assert "nothing was measured of metric losss" in capsys.readouterr().err
    assert not path.exists()


def test_a_run_is_deleted_only_when_that_was_said(capsys):
    assert runs_command(["rm", "tiny"]) == console.USAGE
    assert "nobody can be asked here: say --yes" in capsys.readouterr().err
    assert runs_command(["show", "tiny"]) == 0


def test_help_documents_the_exit_codes(capsys):
    for command in (["runs", "list"], ["export"], ["import"], ["report"], ["top"], ["completion"]):
        assert cli.main([*command, "--help"]) == 0
        assert "exit codes:\n    0    it did its work" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "expected"), [
    ("internist ru", "runs"), ("internist runs sh", "show"), ("internist export --format p", "parquet"),
    ("internist import w", "wandb"), ("internist syn", "sync"), ("internist runs show t", "tiny"),
    ("internist check --re", "--reference"), ("internist check t", "tiny"), ("internist alerts si", "silence"),
    ("internist token create x --scope i", "ingest"), ("internist serve --base", "--base-path"),
    ("internist backup --d", "--database"), ("internist mup plan --opt", "--optimizer"),
])  # fmt: skip
def test_a_shell_is_told_how_a_line_goes_on(capsys, monkeypatch, words, expected):
    assert expected in completions(words, capsys, monkeypatch)


def test_a_run_whose_name_a_shell_would_take_apart_is_completed_by_its_id(capsys, monkeypatch):
    wide = runs_of(capsys)["<b>wide</b>"]

    assert completions(f"internist report {wide[:6]}", capsys, monkeypatch) == [wide]


def test_a_line_is_completed_without_a_server(capsys, monkeypatch):
    monkeypatch.setenv("INTERNIST_SERVER", "http://127.0.0.1:1")

    assert completions("internist runs show t", capsys, monkeypatch) == []


@pytest.mark.parametrize("name", sorted(entry.name for entry in entry_points(group=cli.GROUP)))
def test_every_command_is_completed_beyond_its_name(name):
    found = completion.tree().get_command(click.Context(completion.tree()), name)

    assert isinstance(found, click.Group) or found.params


def completions(words, capsys, monkeypatch):
    """What bash is told of a line."""
    monkeypatch.setenv("_INTERNIST_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert cli.main([]) == 0
    return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line]


def runs_of(capsys):
    assert runs_command(["list", "--json"]) == 0
    return {one["name"]: one["id"] for one in json.loads(capsys.readouterr().out)}


def test_the_scripts_for_shells_are_printed(capsys):
    for shell in completion.SHELLS:
        assert completion.command([shell]) == 0
        assert "_INTERNIST_COMPLETE" in capsys.readouterr().out


def test_colours_are_left_out_where_no_color_is_set(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Console(force_terminal=True, width=80)
    with out.capture() as captured:
        out.print(console.state("violated"))

    assert "31m" not in captured.get()
    assert CliRunner().invoke(completion._command, ["bash"]).exit_code == 0
