"""Programs that end in every way there is, each in a forked copy of one process: starting Python takes the time.

    python -m tests.client.monitor.endings DIRECTORY

For each program it prints a JSON object: its name, its status as `subprocess` gives it, and for killed ones the seconds
from the signal to the end.
"""

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import nn

import internist
from internist.observe.clock import _LIVE

PROGRAMS: dict[str, Callable[[], None]] = {}
READY, TELL = os.pipe()
KEPT: list[nn.Module] = []
"""Models that live as long as their program: a run ends with its model."""


def program(function: Callable[[], None]) -> Callable[[], None]:
    PROGRAMS[function.__name__] = function
    return function


def train() -> internist.Monitor:
    """A watched model that the program keeps, two steps, and a scalar that nothing has flushed yet."""
    model, monitor = trained()
    KEPT.append(model)
    return monitor


def trained() -> tuple[nn.Module, internist.Monitor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, mode="offline")
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    internist.log(last=1.5)
    return model, monitor


class LastWords:
    """Holds its program up, once it goes, until a run's end is written down."""

    def __init__(self, monitor: internist.Monitor) -> None:
        self.monitor = monitor

    def __del__(self) -> None:
        self.monitor._finishing._done.wait(10)


def wait_for_signal() -> None:
    os.write(TELL, b".")
    while True:
        signal.pause()


@program
def returns() -> None:
    train()


@program
def exits_with_0() -> None:
    train()
    sys.exit(0)


@program
def exits_with_none() -> None:
    train()
    sys.exit()


@program
def exits_with_1() -> None:
    train()
    sys.exit(1)


@program
def exits_with_words() -> None:
    train()
    sys.exit("no data")


@program
def exits_with_143() -> None:
    train()
    sys.exit(143)


@program
def calls_exit_with_1() -> None:
    train()
    exit(1)


@program
def calls_quit() -> None:
    train()
    quit()


def as_module(*lines: str) -> None:
    """Run the lines of a script after it has trained, as its module's own."""
    exec(compile("\n".join(["train()", *lines]), "script.py", "exec"), globals())


@program
def raises_an_exit_with_2() -> None:
    as_module("raise SystemExit(2)")


@program
def raises_an_exit_without_a_status() -> None:
    as_module("raise SystemExit")


@program
def raises_an_exit_with_a_variable() -> None:
    as_module("import os", "status = len(os.sep)", "if status:", "    raise SystemExit(status)")


@program
def raises_an_exit_with_words() -> None:
    as_module("why = 'no data'", "raise SystemExit(f'ended: {why}')")


@program
def raises_an_exit_with_what_a_call_returns() -> None:
    as_module("def main(): return 0", "raise SystemExit(main())")


@program
def catches_the_exit_it_raises() -> None:
    with contextlib.suppress(SystemExit):
        as_module("raise SystemExit(2)")


@program
def catches_its_exit() -> None:
    train()
    with contextlib.suppress(SystemExit):
        sys.exit(3)


@program
def exits_in_a_thread() -> None:
    train()
    thread = threading.Thread(target=lambda: sys.exit(3))
    thread.start()
    thread.join()


@program
def raises() -> None:
    train()
    raise ZeroDivisionError


@program
def raises_under_a_hook_of_its_own() -> None:
    train()
    sys.excepthook = lambda *_: None
    raise ZeroDivisionError


@program
def raised_before_it_watched() -> None:
    sys.last_value = ZeroDivisionError()
    train()


@program
def is_interrupted() -> None:
    train()
    raise KeyboardInterrupt


@program
def is_left_by_a_with() -> None:
    with train():
        sys.exit(0)


@program
def leaves_the_function_that_trains() -> None:
    trained()


@program
def exits_in_the_function_that_trains() -> None:
    model, monitor = trained()
    later = LastWords(monitor)  # variables go in the order in which they came
    sys.exit(int(model is not later))


@program
def raises_in_the_function_that_trains() -> None:
    kept = trained()
    raise ZeroDivisionError(kept)


@program
def catches_the_exit_of_the_function_that_trains() -> None:
    with contextlib.suppress(SystemExit):
        exits_in_the_function_that_trains()


@program
def gets_sigterm() -> None:
    train()
    wait_for_signal()


@program
def gets_sighup() -> None:
    train()
    wait_for_signal()


@program
def gets_sigterm_with_two_models() -> None:
    first, _ = train(), train()
    assert not first.is_finished
    wait_for_signal()


@program
def gets_sigterm_while_the_main_thread_never_returns() -> None:
    train()
    lock = ctypes.CDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    os.write(TELL, b".")
    lock(mutex)


@program
def gets_sigterm_that_it_handled_before() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    train()
    wait_for_signal()


@program
def gets_sigterm_that_it_handled_later() -> None:
    train()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wait_for_signal()


@program
def gets_sigterm_and_asks_the_earlier_handler_too() -> None:
    train()
    earlier, told = signal.getsignal(signal.SIGTERM), []

    def handler(number: int, frame: object) -> None:
        earlier(number, frame)  # type: ignore[operator, arg-type]
        told.append(number)

    signal.signal(signal.SIGTERM, handler)
    os.write(TELL, b".")
    while not told:
        signal.pause()
    internist.log(graceful=1.0)


@program
def gets_sigterm_and_finishes_by_itself() -> None:
    monitor = train()

    def handler(*_: object) -> None:
        monitor.finish("killed")
        monitor.finish()
        sys.exit(0)

    signal.signal(signal.SIGTERM, handler)
    wait_for_signal()


@program
def forks_a_child_that_exits() -> None:
    train()
    child = os.fork()
    if child == 0:
        internist.finish()
        assert not _LIVE  # nothing of ours counts steps in it
        sys.exit(1)
    os.waitpid(child, 0)
    internist.log(later=2.5)


@program
def forks_a_child_that_gets_sigterm() -> None:
    train()
    child = os.fork()
    if child == 0:
        wait_for_signal()
    os.read(READY, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    internist.log(later=2.5)


def train_and_raise() -> None:
    train()
    raise ZeroDivisionError


@program
def trains_in_a_process_that_raises() -> None:
    process = multiprocessing.get_context("fork").Process(target=train_and_raise)
    process.start()
    process.join()
    sys.exit(process.exitcode)


def main(directory: str) -> None:
    """Run every program; a copy that runs one returns from here, and ends as any program does."""
    import torch._dynamo  # noqa: F401 - once, and not in every copy

    gc.collect()
    gc.freeze()  # or every copy walks through all of torch when it ends
    for name, run in PROGRAMS.items():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.environ["INTERNIST_DIR"] = f"{directory}/{name}"
            said = os.open(f"{directory}/{name}.txt", os.O_CREAT | os.O_WRONLY)
            os.dup2(said, sys.stderr.fileno())
            os.close(said)
            run()
            return
        began = None
        if name.startswith("gets_"):
            os.read(READY, 1)
            began = time.monotonic()
            os.kill(child, signal.SIGHUP if "sighup" in name else signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = None if began is None else time.monotonic() - began
        print(json.dumps({"program": name, "status": status, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1])
