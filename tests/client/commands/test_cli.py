import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

import internist
from internist.commands import cli
from internist.commands.cli import extra_of, main
from internist.errors import SpoolError


def greet(argv: list[str]) -> int:
    """Say hello.

    And nothing else.
    """
    print("hello", *argv)
    return 0


def lack_torch(argv: list[str]) -> int:
    """Need what is not there."""
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def fail(argv: list[str]) -> int:
    """Fail."""
    raise SpoolError("the spool is no good")


def misuse(argv: list[str]) -> int:
    """Be misused."""
    raise SystemExit(2)


def stop(argv: list[str]) -> int:
    """Be interrupted."""
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    here = __name__
    targets = {name: f"{here}:{name}" for name in ("greet", "lack_torch", "fail", "misuse", "stop")}
    targets["absent"] = "psycopg_is_not_here.cli:serve"
    targets["broken"] = "colorsys:no_such_function"
    entries = EntryPoints(EntryPoint(name, value, cli.GROUP) for name, value in targets.items())
    monkeypatch.setattr(cli, "entry_points", lambda group: entries.select(group=group))
    monkeypatch.setitem(sys.modules, here, sys.modules[__name__])


def test_a_command_gets_the_arguments_behind_its_name(capsys):
    assert main(["greet", "--loud", "you"]) == 0
    assert capsys.readouterr().out == "hello --loud you\n"


def test_version_says_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"internist {internist.__version__}\n"


def test_help_lists_every_command_with_the_first_line_of_its_docstring(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "  greet       Say hello.\n" in out
    assert "nothing else" not in out
    assert "absent" in out


def test_no_command_shows_the_help_and_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "usage: internist COMMAND" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error_that_names_the_known_ones(capsys):
    assert main(["gret"]) == 2
    error = capsys.readouterr().err
    assert "no command 'gret'" in error
    assert "greet" in error


def test_a_missing_extra_is_named(capsys):
    assert main(["lack_torch"]) == 1
    assert capsys.readouterr().err == "internist lack_torch: needs pip install 'internist[torch]'\n"


def test_a_missing_module_of_no_extra_is_named_without_a_traceback(capsys):
    assert main(["absent"]) == 1
    assert "cannot be loaded: No module named 'psycopg_is_not_here'" in capsys.readouterr().err
    assert main(["broken"]) == 1
    assert "cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("fastapi", "server"),
        ("sqlalchemy.orm", "server"),
        ("pydantic_settings", "server"),
        ("psycopg", "postgres"),
        ("torch", "torch"),
        ("pytest", None),
        ("msgspec", None),
        ("unheard_of", None),
    ],
)
def test_extras_are_those_of_the_distribution(module, extra):
    assert extra_of(module) == extra


def test_errors_of_internist_are_one_line_and_code_1(capsys):
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "internist fail: the spool is no good\n"


def test_wrong_arguments_are_code_2_and_an_interrupt_is_130():
    assert main(["misuse"]) == 2
    assert main(["stop"]) == 130


def test_the_installed_command_knows_sync():
    done = subprocess.run(
        [sys.executable, "-m", "internist", "sync", "--help"], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0
    assert "Ship what jobs that have ended left" in done.stdout
