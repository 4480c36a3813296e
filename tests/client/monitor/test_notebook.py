"""In a notebook: a cell that runs again ends what it began before, and errors of cells are no errors of runs."""

import atexit
import sys
from textwrap import dedent

import pytest
from IPython.core.interactiveshell import InteractiveShell

import internist
from internist.monitor.ending import Ending
from internist.monitor.notebook import is_interactive, shell
from internist.monitor.watching import _monitors
from tests.client.points import records

MAKE = """
    import torch, internist
    from torch import nn
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
"""
TRAIN = """
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    internist.log(last=1.5)
"""


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """A real IPython shell without history, and a function that executes a cell in it."""
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    hooks = sys.excepthook, sys.displayhook
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(history_load_length=0)
    made.history_manager.enabled = False

    def execute(cell):
        result = made.run_cell(dedent(cell), store_history=True)
        return result.error_in_exec or result.error_before_exec

    yield execute, made.user_ns
    while _monitors.current is not None:
        internist.finish()
    atexit.unregister(made.atexit_operations)
    InteractiveShell.clear_instance()
    sys.excepthook, sys.displayhook = hooks
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)


def outcomes(monitor):
    return [record.finish.outcome for record in records(monitor.directory) if record.finish is not None]


def test_a_cell_that_is_executed_again_finishes_its_earlier_monitor(notebook):
    execute, names = notebook
    assert execute(MAKE) is None
    assert execute(TRAIN) is None
    first = names["monitor"]
    assert not first.is_finished

    assert execute(MAKE) is None
    second = names["monitor"]

    assert (first.is_finished, outcomes(first)) == (True, ["finished"])
    assert second is not first
    assert not second.is_finished


def test_a_model_that_no_variable_holds_any_more_is_finished_by_the_next(notebook):
    execute, names = notebook
    execute(MAKE)
    first = names["monitor"]

    execute(MAKE.replace("lr=0.1", "lr=0.2"))

    assert first.is_finished
    assert not names["monitor"].is_finished


def test_a_function_that_watches_ends_its_earlier_monitor_when_its_cell_runs_again(notebook):
    execute, names = notebook
    execute(
        "def make():\n" + "\n".join(f"    {line}" for line in dedent(MAKE).splitlines()) + "\n    return model, monitor"
    )
    execute("kept = [make()]")
    execute("kept = kept + [make()]")
    execute("kept = kept + [make()]")

    assert [monitor.is_finished for _, monitor in names["kept"]] == [False, True, False]


def test_two_models_of_a_notebook_are_both_watched(notebook):
    execute, names = notebook
    execute(MAKE)
    first = names["monitor"]
    execute(MAKE.replace("model", "other").replace("optimizer", "its_optimizer").replace("monitor", "its"))

    assert not first.is_finished
    assert not names["its"].is_finished


def test_watching_the_same_model_again_keeps_its_monitor(notebook):
    execute, names = notebook
    execute(MAKE)
    first = names["monitor"]
    execute("monitor = internist.watch(model, optimizer)")
    execute("monitor = internist.watch(model, optimizer)")

    assert names["monitor"] is first
    assert not first.is_finished


def test_a_cell_that_fails_does_not_fail_the_run(notebook, capsys):
    execute, _ = notebook
    ended = []
    execute(MAKE)
    assert isinstance(execute("1 / 0"), ZeroDivisionError)
    assert isinstance(sys.last_value, ZeroDivisionError)
    ending = Ending(lambda outcome, _: ended.append(outcome), lambda _: None, lambda: None)
    ending._process = _monitors._ending._process

    ending._at_exit()
    capsys.readouterr()

    assert ended == ["finished"]
    assert is_interactive()


def test_nothing_of_the_interpreter_is_replaced_in_a_notebook(notebook):
    execute, _ = notebook
    before = sys.excepthook, sys.exit
    execute(MAKE)

    assert (sys.excepthook, sys.exit) == before


def test_a_program_is_no_notebook():
    assert shell() is None
