"""What is told of how long steps take, and how much of that is waiting."""

import threading
import time

import pytest

from internist.observe.round_times import RoundTimes

LENGTH_S = 0.2
OWN_S = 0.05


def test_rounds_that_were_not_sampled_tell_how_long_a_step_takes():
    times = RoundTimes()
    times.round_ended(5.0, OWN_S, is_sampled=True, is_whole=True)
    for length in (0.1, 0.3):
        times.round_ended(length, 0.0, is_sampled=False, is_whole=True)
    times.round_ended(9.0, 0.0, is_sampled=False, is_whole=False)  # an evaluation lies in it

    told = dict(times.take(on_device=False))
    assert told["monitor.step_ms"] == pytest.approx(200.0)
    assert dict(times.take(on_device=False)) == {}


def test_where_every_round_is_sampled_the_last_tells_without_the_monitor_s_own_time():
    times = RoundTimes()
    times.round_ended(LENGTH_S, OWN_S, is_sampled=True, is_whole=True)

    assert dict(times.take(on_device=True)) == {"monitor.step_ms": pytest.approx(150.0)}


def test_a_thread_that_waits_is_told_from_one_that_works():
    times = RoundTimes()
    began = time.perf_counter()
    threading.Event().wait(LENGTH_S)
    waited = time.perf_counter() - began
    times.round_ended(waited, 0.0, is_sampled=False, is_whole=True)
    assert dict(times.take(on_device=False))["monitor.waited_ms"] >= 0.8 * LENGTH_S * 1e3

    until = time.thread_time() + LENGTH_S
    while time.thread_time() < until:
        pass
    times.round_ended(LENGTH_S, 0.0, is_sampled=False, is_whole=True)
    assert dict(times.take(on_device=False))["monitor.waited_ms"] == 0.0
