"""A run's end is recorded as what it was, whatever way its process ends; and that way stays what it is."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from internist.monitor.ending import outcome_of
from internist.schema.wire import Finish
from tests.client.points import read, records

IN_TIME_S = 2.0
"""A killed process is gone within 0.8 s by promise; the rest is for a machine that does much else."""


@dataclass(frozen=True)
class End:
    status: int
    seconds: float | None
    runs: list[Path]
    said: str

    @property
    def finishes(self) -> list[Finish]:
        return [record.finish for run in self.runs for record in records(run) if record.finish is not None]

    @property
    def outcomes(self) -> list[str]:
        return [finish.outcome for finish in self.finishes]

    def scalar(self, name: str) -> list[float]:
        return [value for run in self.runs for value in read(run)[0].get((name, "model", None), {}).values()]


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ends")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INTERNIST_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.client.monitor.endings", str(directory)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    found = {}
    for line in done.stdout.splitlines():
        told = json.loads(line)
        name = told["program"]
        runs = sorted(path.parent for path in (directory / name).rglob("lock"))
        found[name] = End(told["status"], told["seconds"], runs, (directory / f"{name}.txt").read_text())
    return found


@pytest.mark.parametrize(
    ("program", "status", "outcome"),
    [
        ("returns", 0, "finished"),
        ("exits_with_0", 0, "finished"),
        ("exits_with_none", 0, "finished"),
        ("exits_with_1", 1, "failed"),
        ("exits_with_words", 1, "failed"),
        ("exits_with_143", 143, "killed"),
        ("calls_exit_with_1", 1, "failed"),
        ("calls_quit", 0, "finished"),
        ("raises_an_exit_with_2", 2, "failed"),
        ("raises_an_exit_without_a_status", 0, "finished"),
        ("raises_an_exit_with_a_variable", 1, "failed"),
        ("raises_an_exit_with_words", 1, "failed"),
        ("raises_an_exit_with_what_a_call_returns", 0, "finished"),
        ("catches_the_exit_it_raises", 0, "finished"),
        ("catches_its_exit", 0, "finished"),
        ("exits_in_a_thread", 0, "finished"),
        ("raises", 1, "failed"),
        ("raises_under_a_hook_of_its_own", 1, "failed"),
        ("raised_before_it_watched", 0, "finished"),
        ("is_interrupted", -signal.SIGINT, "killed"),
        ("is_left_by_a_with", 0, "finished"),
        ("leaves_the_function_that_trains", 0, "finished"),
        ("exits_in_the_function_that_trains", 1, "failed"),
        ("raises_in_the_function_that_trains", 1, "failed"),
        ("catches_the_exit_of_the_function_that_trains", 0, "finished"),
        ("gets_sigterm", -signal.SIGTERM, "killed"),
        ("gets_sighup", -signal.SIGHUP, "killed"),
        ("gets_sigterm_while_the_main_thread_never_returns", -signal.SIGTERM, "killed"),
        ("gets_sigterm_that_it_handled_before", 7, "failed"),
        ("gets_sigterm_that_it_handled_later", 0, "finished"),
        ("gets_sigterm_and_asks_the_earlier_handler_too", 0, "finished"),
        ("gets_sigterm_and_finishes_by_itself", 0, "killed"),
        ("forks_a_child_that_exits", 0, "finished"),
        ("forks_a_child_that_gets_sigterm", 0, "finished"),
        ("trains_in_a_process_that_raises", 1, "failed"),
    ],
)
def test_the_end_of_a_program_is_recorded_and_stays_what_it_was(ends, program, status, outcome):
    end = ends[program]

    assert (end.status, end.outcomes) == (status, [outcome])
    assert end.scalar("last") == [1.5]
    assert end.finishes[0].step == 1
    assert "internist:" not in end.said  # nothing went wrong


def test_every_run_of_a_killed_process_is_told(ends):
    end = ends["gets_sigterm_with_two_models"]

    assert (end.status, end.outcomes) == (-signal.SIGTERM, ["killed", "killed"])
    assert end.scalar("last") == [1.5, 1.5]


def test_a_killed_process_is_gone_in_time(ends):
    assert all(end.seconds < IN_TIME_S for end in ends.values() if end.seconds is not None)


def test_what_is_logged_after_a_forked_child_has_ended_still_belongs_to_the_run(ends):
    assert ends["forks_a_child_that_exits"].scalar("later") == [2.5]
    assert ends["forks_a_child_that_gets_sigterm"].scalar("later") == [2.5]


def test_a_handler_that_a_framework_put_over_ours_has_the_signal_alone(ends):
    assert ends["gets_sigterm_and_asks_the_earlier_handler_too"].scalar("graceful") == [1.0]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "finished"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "killed"),
        (SystemExit(), "finished"),
        (SystemExit(0), "finished"),
        (SystemExit(False), "finished"),
        (SystemExit(2), "failed"),
        (SystemExit("why"), "failed"),
        (SystemExit([1]), "failed"),
        (SystemExit(128 + signal.SIGTERM), "killed"),
    ],
)
def test_an_error_says_how_a_run_ended(error, outcome):
    assert outcome_of(error) == outcome
