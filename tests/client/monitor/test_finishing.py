"""Finishing releases everything, says everything, and never raises: whatever happens inside, from wherever it comes."""

import gc
import logging
import signal
import threading
import time
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import internist
from internist.monitor.finishing import Finishing
from internist.monitor.watching import _monitors
from tests.client.points import read, records


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERNIST_MODE", "offline")
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path))
    yield
    while _monitors.current is not None:
        internist.finish()


def watched(steps=1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer)
    train(model, optimizer, steps)
    return model, optimizer, monitor


def train(model, optimizer, steps=1):
    for _ in range(steps):
        model(torch.ones(1, 3)).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def finish_of(monitor):
    return [record.finish for record in records(monitor.directory) if record.finish is not None]


class Parts:
    """A finishing whose stages are named in the order in which they ran."""

    def __init__(self, *broken):
        self.done = []
        stages = [(name, lambda *_, name=name: self.act(name)) for name in ("first", "second")]
        self.finishing = Finishing(stages, lambda: self.act("release"), lambda: self.act("drop"))
        self.broken = broken
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def act(self, name):
        self.entered.set()
        assert self.gate.wait(10)
        self.done.append(name)
        if name in self.broken:
            raise KeyboardInterrupt if name == "interrupt" else OSError("no space")


@pytest.mark.parametrize("last", [0, 1])
def test_monitors_finished_in_either_order_leave_nothing_of_theirs_alive(last):
    pairs = [watched(), watched()]
    monitors = [monitor for _, _, monitor in pairs]
    train(*pairs[0][:2])
    alive = [weakref.ref(thing) for model, _, monitor in pairs for thing in (model, model[0].weight, monitor)]

    monitors[1 - last].finish()
    monitors[last].finish()
    del pairs, monitors
    gc.collect()

    assert [ref() for ref in alive] == [None] * len(alive)


def test_a_finished_monitor_that_is_kept_holds_no_model():
    model, optimizer, monitor = watched()
    alive = weakref.ref(model)
    monitor.finish()
    del model, optimizer
    gc.collect()

    assert alive() is None
    assert {entry.state for entry in monitor.coverage() if entry.family == "activation"} == {"measured"}
    assert monitor.directory is not None


@pytest.mark.parametrize("moment", ["between steps", "in a forward", "in a round", "in a step", "while frozen"])
def test_a_finished_monitor_holds_no_tensor_of_the_users(moment):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9) for part in model]
    monitor = internist.watch(model, optimizers, every=1)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    loss = model(torch.ones(1, 3)).sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    handle = None
    if moment == "in a forward":
        handle = model[0].register_forward_hook(lambda *_: monitor.finish())
        model(torch.ones(1, 3))
    if moment == "in a step":
        handle = optimizers[0].register_step_pre_hook(lambda *_: monitor.finish())
    if moment in ("in a round", "in a step"):
        optimizers[0].step()
    if moment == "while frozen":
        model.requires_grad_(False)
    monitor.finish()
    if handle is not None:
        handle.remove()
    kept = {id(thing) for thing in reachable(monitor)}

    assert monitor.is_released
    assert [name for name, p in model.named_parameters() if id(p) in kept or id(p.grad) in kept] == []
    assert not {id(loss), id(norm), id(model), *map(id, optimizers)} & kept
    assert len(finish_of(monitor)) == 1


def reachable(start):
    """All objects that an object keeps alive, as far as they are not what the whole process shares."""
    shared = (type, types.ModuleType, types.FrameType)
    found, waiting = {}, [start]
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or isinstance(thing, shared):
            continue
        found[id(thing)] = thing
        if isinstance(thing, types.FunctionType):  # its globals are a module's
            waiting += [cell.cell_contents for cell in thing.__closure__ or ()] + list(thing.__defaults__ or ())
        else:
            waiting += gc.get_referents(thing)
    return list(found.values())


def test_a_run_ends_with_its_model():
    model, optimizer, monitor = watched(2)
    internist.log(last=1.5)
    ended = threading.Event()
    monitor._finishing._drop, drop = lambda: (drop(), ended.set()), monitor._finishing._drop

    del model, optimizer
    gc.collect()

    assert ended.wait(10)
    assert monitor.is_finished and monitor.is_released
    assert _monitors.current is None
    assert [(finish.outcome, finish.step) for finish in finish_of(monitor)] == [("finished", 1)]
    assert read(monitor.directory)[0]["last", "model", None] == {1: 1.5}
    assert {entry.state for entry in monitor.coverage() if entry.family == "activation"} == {"measured"}


def test_every_stage_runs_whatever_the_others_do(caplog):
    parts = Parts("release", "first", "second", "drop")
    parts.broken = ("release", "first")

    with caplog.at_level(logging.WARNING):
        parts.finishing.finish("finished", 1.0)

    assert parts.done == ["release", "first", "second", "drop"]
    assert caplog.text.count("finishing its taps failed: OSError: no space") == 1
    assert caplog.text.count("finishing first failed: OSError: no space") == 1


def test_a_second_call_does_nothing():
    parts = Parts()
    parts.finishing.finish("finished", 1.0)
    parts.finishing.finish("failed", 1.0)

    assert parts.done == ["release", "first", "second", "drop"]


def test_of_two_calls_at_once_one_waits_for_the_other():
    parts = Parts()
    parts.gate.clear()
    first = threading.Thread(target=parts.finishing.record, args=("killed", 10.0))
    first.start()
    assert parts.entered.wait(10)
    seen = []
    second = threading.Thread(target=lambda: (parts.finishing.finish("finished", 10.0), seen.extend(parts.done)))
    second.start()
    assert not seen

    parts.gate.set()
    first.join(10)
    second.join(10)

    assert seen[:2] == ["first", "second"]
    parts.finishing.release()
    assert parts.done == ["first", "second", "release", "drop"]


def test_an_impatient_user_waits_no_longer_and_loses_nothing():
    class Impatient(Parts):
        def act(self, name):
            super().act(name)
            if name == "first":
                raise KeyboardInterrupt

    parts = Impatient()
    with pytest.raises(KeyboardInterrupt):
        parts.finishing.finish("finished", 10.0)

    assert parts.done == ["release", "first", "second", "drop"]


@pytest.mark.parametrize("ends_elsewhere", [False, True])
def test_a_signal_handler_may_finish_while_a_lock_of_ours_is_held(ends_elsewhere):
    model, optimizer, monitor = watched()
    logs = monitor._recorder._logs
    lock = logs._lock
    signalled = threading.Event()

    def handler(*_):
        if ends_elsewhere:
            threading.Thread(target=monitor.finish, args=("killed",), daemon=True).start()
            while not monitor.is_finished:
                time.sleep(0.01)
        monitor.finish("killed")
        signalled.set()

    class Interrupting(dict):
        """The recorder's scalars: a signal arrives while it holds its lock to change them."""

        def __setitem__(self, *item):
            signal.raise_signal(signal.SIGUSR1)
            super().__setitem__(*item)

    earlier = signal.signal(signal.SIGUSR1, handler)
    try:
        began = time.monotonic()
        logs._steps = Interrupting()
        internist.log(name=1.0)
        took = time.monotonic() - began
    finally:
        signal.signal(signal.SIGUSR1, earlier)

    assert signalled.is_set()
    assert took < internist.monitor.monitor.FINISH_TIMEOUT_S
    assert lock.acquire(timeout=10)
    lock.release()
    monitor.finish()
    assert [finish.outcome for finish in finish_of(monitor)] == ["killed"]
    del model, optimizer
    internist.log(more=1.0)  # nothing is interrupted; what is left in the model goes
    assert monitor.is_released


def test_finishing_inside_a_forward_takes_the_taps_away_at_once(caplog):
    model, optimizer, monitor = watched(0)
    left = []

    def finish_here(*_):
        monitor.finish()
        left.extend(each for each in model.modules() if each._compiled_call_impl is not None)

    model[0].register_forward_hook(finish_here)
    with caplog.at_level(logging.WARNING):
        train(model, optimizer)

    assert monitor.is_finished and monitor.is_released
    assert left == []
    assert "internist" not in caplog.text
    assert [finish.outcome for finish in finish_of(monitor)] == ["finished"]


def test_finishing_from_another_thread_is_finishing():
    _, _, monitor = watched()
    thread = threading.Thread(target=monitor.finish)
    thread.start()
    thread.join(20)

    assert [finish.outcome for finish in finish_of(monitor)] == ["finished"]


ODD = {
    "a tensor without values": torch.ones((), device="meta"),
    "a complex tensor": torch.tensor(1j),
    "an empty tensor": torch.ones(0),
    "a sparse vector": torch.ones(3).to_sparse(),
    "text": "high",
    "a dict": {"train": 1.0},
    "nothing": None,
    "an array": np.ones(3),
    "a class": float,
}
FINE = {
    "a bool tensor": (torch.tensor(True), 1.0),
    "a NumPy float": (np.float32(2.5), 2.5),
    "a NumPy int": (np.int64(3), 3.0),
    "a NumPy bool": (np.bool_(True), 1.0),
    "a huge int": (10**400, float("inf")),
    "a huge negative int": (-(10**400), float("-inf")),
    "one that wants a gradient": (torch.tensor(2.0, requires_grad=True), 2.0),
}


def test_odd_values_are_left_out_and_said_once_each(caplog):
    class Stubborn:
        def __float__(self):
            raise ZeroDivisionError

    model, optimizer, monitor = watched(0)
    odd = {**ODD, "a stubborn object": Stubborn()}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            internist.log({**odd, **{name: value for name, (value, _) in FINE.items()}, 3: 1.0})
            internist.log(3.0)
            internist.log(step="soon", x=1.0)
            train(model, optimizer)
    monitor.finish()

    points = read(monitor.directory)[0]
    assert {name: points[name, "model", None][0] for name in FINE} == {name: value for name, (_, value) in FINE.items()}
    assert [name for name in odd if (name, "model", None) in points] == []
    assert [name for name in odd if caplog.text.count(f"log({name!r})") != 1] == []
    assert caplog.text.count("log(float): expected a mapping") == 1
    assert caplog.text.count("log(step='soon')") == 1


def test_odd_steps_and_alerts_are_taken_as_far_as_they_can_be(caplog):
    class Unprintable:
        def __str__(self):
            raise ZeroDivisionError

    model = nn.Linear(2, 2)
    monitor = internist.watch(model)
    with caplog.at_level(logging.WARNING):
        for n in (np.int64(5), "soon", torch.tensor(9), None):
            model(torch.ones(1, 2)).sum().backward()
            monitor.step(n)
        internist.alert(Unprintable())
        internist.alert("a", level=["loud"])
        internist.alert("b", text=3)
    monitor.finish()

    assert [r.note.title for r in records(monitor.directory) if r.note] == ["a", "b"]
    assert finish_of(monitor)[0].step == 10
    assert caplog.text.count("step('soon'): expected a whole number") == 1
