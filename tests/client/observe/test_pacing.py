"""The pace of a run: device times that come late, modules in turns, and what is told of all that."""

import logging
from itertools import pairwise

import pytest
import torch
from torch import nn

import internist
from internist.model.outline import outline
from internist.observe.pacing import Pacing
from internist.observe.sampling import MOST_TURNS, NOTHING, Due, Sampling
from internist.observe.stopwatch import Part, Spent, Stopwatch
from internist.observe.turns import Turns
from internist.schema.wire import Directive
from tests.client.points import read

ALL = Due(True, True, -1)


class Device:
    """A stream of work whose clock a test winds, and which comes to its marks when the test says so."""

    def __init__(self):
        self.now_ms = 0.0
        self.is_idle = False
        self.marks = 0
        self.is_capturing = False

    def mark(self):
        if self.is_capturing:
            return None
        self.marks += 1
        return Mark(self)


class Mark:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at_ms = self.device.now_ms

    def query(self):
        return self.device.is_idle

    def elapsed_time(self, end):
        return end.at_ms - self.at_ms


def work(device, stopwatch, milliseconds):
    with stopwatch.light:
        device.now_ms += milliseconds


def test_device_times_are_read_when_they_have_come_and_not_waited_for():
    device = Device()
    stopwatch = Stopwatch(device.mark)
    stopwatch.begin_round(ALL, on_device=True)
    work(device, stopwatch, 3)
    device.now_ms += 20  # the user's
    work(device, stopwatch, 4)
    stopwatch.end_round(ALL)
    stopwatch.begin_round(NOTHING, on_device=True)
    device.now_ms += 20
    stopwatch.end_round(NOTHING)

    assert list(stopwatch.timed()) == []
    device.is_idle = True
    sampled, bare = stopwatch.timed()
    assert (sampled.sample, sampled.device.total, sampled.length_s) == (ALL, pytest.approx(0.007), pytest.approx(0.027))
    assert (bare.sample, bare.device.total, bare.length_s) == (NOTHING, 0, pytest.approx(0.020))


def test_a_piece_within_another_is_counted_for_its_own_part_alone():
    device = Device()
    stopwatch = Stopwatch(device.mark)
    stopwatch.begin_round(ALL, on_device=True)
    with stopwatch.light:
        device.now_ms += 1
        with stopwatch.heavy:
            device.now_ms += 10
            stopwatch.add(Part.LIGHT, 5.0)  # within a piece: it counts this itself
        device.now_ms += 2
        with stopwatch.matrices:
            device.now_ms += 20
    device.now_ms += 100
    stopwatch.add(Part.LIGHT, 7.0)
    host, _, _ = stopwatch.end_round(ALL)
    device.is_idle = True
    (one,) = stopwatch.timed()

    assert one.device == pytest.approx(Spent(0.003, 0.010, 0.020))
    assert host == one.host and 7.0 <= host.light < 8.0 and 0 < host.heavy < 1.0


def test_rounds_behind_the_one_that_follows_a_sample_leave_no_marks():
    device = Device()
    stopwatch = Stopwatch(device.mark)
    for sample in (ALL, NOTHING):
        stopwatch.begin_round(sample, on_device=True)
        stopwatch.end_round(sample)
    before = device.marks
    for _ in range(3):
        stopwatch.begin_round(NOTHING, on_device=True)
        work(device, stopwatch, 1)
        stopwatch.end_round(NOTHING)

    assert device.marks == before


def test_a_round_that_was_interrupted_tells_what_the_work_took_and_not_how_long_a_round_is():
    device = Device()
    stopwatch = Stopwatch(device.mark)
    stopwatch.begin_round(ALL, on_device=True)
    work(device, stopwatch, 3)
    stopwatch.interrupt()
    device.now_ms += 60_000  # an evaluation
    *_, is_whole = stopwatch.end_round(ALL)
    stopwatch.begin_round(NOTHING, on_device=True)
    device.now_ms += 20
    *_, next_is_whole = stopwatch.end_round(NOTHING)
    device.is_idle = True

    assert (is_whole, next_is_whole) == (False, True)
    assert [(each.device.total, each.length_s) for each in stopwatch.timed()] == [
        (pytest.approx(0.003), None),
        (0, pytest.approx(0.020)),
    ]


@pytest.mark.parametrize("way", ["evaluation", "pause"])
def test_an_evaluation_and_a_pause_interrupt_the_round_under_way(tmp_path, way):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path)
    stopwatch = monitor._observer._pacing.work
    if way == "evaluation":
        with torch.no_grad():
            model.eval()(torch.ones(1, 2))
    else:
        with monitor.pause("checkpoint"):
            pass

    *_, is_whole = stopwatch.end_round(NOTHING)
    model.train()(torch.ones(1, 2)).sum().backward()
    *_, next_is_whole = stopwatch.end_round(NOTHING)
    monitor.finish()

    assert (is_whole, next_is_whole) == (False, True)


def test_nothing_is_marked_while_a_graph_is_captured():
    device = Device()
    stopwatch = Stopwatch(device.mark)
    device.is_capturing = True
    stopwatch.begin_round(ALL, on_device=True)
    work(device, stopwatch, 1)
    stopwatch.end_round(ALL)
    device.is_capturing, device.is_idle = False, True

    assert list(stopwatch.timed()) == []


def test_the_pace_says_what_is_in_force_and_why(caplog):
    pacing = Pacing(Sampling(), modules=10)
    with caplog.at_level(logging.INFO, logger="internist"):
        for step in range(200):
            sample = pacing.decide(step)
            pacing.begin_round(sample)
            if sample.light:
                pacing.work.add(Part.LIGHT, 0.1)
            pacing.round_ended(sample)

    said, values = pacing.in_words(), dict(pacing.values(100_000))
    assert "measured share" in said and "as asked for, it would take" in said and "1.0% is allowed" in said
    assert values["monitor.light_every"] == 10 << pacing.powers[0]
    assert values["monitor.asked_share"] > 0.01
    assert "keeps within max_overhead=0.01" in caplog.text


def test_a_rank_follows_the_slowest_and_says_so():
    pacing = Pacing(Sampling(max_overhead=0.0), modules=10)
    pacing.take_directives([Directive(-1, "the slowest rank's sampling", (2, 0, 3, 0))])

    assert pacing.powers == (0, 0, 0, 0)
    assert dict(pacing.values(100_000))["monitor.light_every"] == 40
    assert pacing.in_words().endswith("as rarely as the slowest rank")


class Blocks(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(depth)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_blocks_and_the_head_never_wait_and_all_others_wait_alike():
    plan = outline(Blocks(8))
    turns = Turns(plan)
    waiting = [turns.waiting(Due(True, turn=turn, turns=8)) for turn in range(1 << MOST_TURNS)]
    rotating = {m.order for m in plan.modules if m.role not in ("root", "block", "head")}

    assert rotating and set().union(*waiting) == rotating
    assert all(sum(order not in each for each in waiting) == 1 for order in rotating)
    assert turns.waiting(ALL) == frozenset()


def test_modules_that_wait_are_not_measured_and_have_their_turn_later(tmp_path):
    torch.manual_seed(0)
    model = Blocks(20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, mode="offline", directory=tmp_path, max_overhead=0)
    monitor._observer.take_directives([Directive(-1, "the slowest rank's sampling", (0, 6, 6, 2))])
    for _ in range(9):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    states = {entry.state for entry in monitor.coverage() if entry.family in ("activation", "update")}
    monitor.finish()
    points, _, _ = read(monitor.directory)

    every = set(range(9))
    assert set(points["activation.rms", "blocks.3", None]) == set(points["activation.rms", "head", None]) == every
    assert set(points["gradient.global_norm", "model", None]) == every
    for metric, subject in (("activation.rms", "blocks.3.0"), ("update.rms", "blocks.3.0.weight")):
        steps = sorted(points[metric, subject, None])
        assert steps[0] == 0 and len(steps) == 3 + (steps[1] == 0)
        assert {b - a for a, b in pairwise(steps[1:])} <= {4}
    assert set(points["monitor.turns", "model", None].values()) == {4.0}
    assert states == {"measured"}
