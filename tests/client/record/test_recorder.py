"""The recorder: a step is one frame, every series once, lengths that do not fit cost their part alone."""

import logging
import struct

import pytest
import torch

from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.wire import Facts


class Kept:
    """A sink that keeps what it is given."""

    dropped = 0

    def __init__(self):
        self.series, self.plans, self.frames = {}, {}, []

    def append(self, *, series=None, plan=None, frame=None):
        self.series.update((each.number, each) for each in series or ())
        if plan is not None:
            self.plans[plan.number] = plan
        if frame is not None:
            self.frames.append(frame)
        return True

    def points(self, step):
        found = {}
        for frame in self.frames:
            if frame.step == step:
                numbers = self.plans[frame.plan].series
                values = struct.unpack(f"<{len(numbers)}f", frame.values)
                found.update((self.series[n].metric, v) for n, v in zip(numbers, values, strict=True))
        return found


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def recorder(kept):
    return Recorder(kept, SeriesBook(lambda metric: metric != "unwanted"))


def series(recorder, metric, subject="a"):
    return recorder.book.series(metric, "parameter", subject, Facts)


def test_a_step_is_one_frame_with_the_scalars_logged_for_it(recorder, kept):
    recorder.add([series(recorder, "x"), series(recorder, "y")], torch.tensor([1.0, 2.0]))
    recorder.close_step(5)
    recorder.log(5, "loss", 3.0)
    assert recorder.drain() is not None  # it is held for what may still be logged
    assert kept.frames == []

    recorder.step_under_way = 6
    recorder.drain()

    assert len(kept.frames) == 1
    assert kept.points(5) == {"x": 1.0, "y": 2.0, "loss": 3.0}


def test_a_scalar_that_comes_after_its_step_was_written_travels_alone(recorder, kept):
    recorder.add([series(recorder, "x")], torch.tensor([1.0]))
    recorder.close_step(1)
    recorder.drain(everything=True)
    recorder.log(1, "late", 2.0)
    recorder.drain(everything=True)

    assert [frame.step for frame in kept.frames] == [1, 1]
    assert kept.points(1) == {"x": 1.0, "late": 2.0}


def test_of_a_scalar_logged_twice_the_last_value_counts(recorder, kept):
    recorder.log(0, "loss", torch.tensor(1.0))
    recorder.log(0, "loss", 2.0)
    recorder.drain(everything=True)

    assert kept.points(0) == {"loss": 2.0}


@pytest.mark.parametrize("counts", [None, [1, 1], [1]])
@pytest.mark.parametrize("values", [1, 3])
def test_a_length_that_does_not_fit_costs_its_part_and_is_said_once(recorder, kept, caplog, values, counts):
    layout = [series(recorder, "x"), series(recorder, "y")]
    with caplog.at_level(logging.WARNING, logger="internist"):
        for step in range(3):
            recorder.add(layout, torch.zeros(values), counts)
            recorder.add([series(recorder, "z")], torch.tensor([7.0]))
            recorder.close_step(step)
            recorder.drain(everything=True)

    assert [kept.points(step) for step in range(3)] == [{"z": 7.0}] * 3
    assert recorder.dropped == 3
    assert [f"{values} values" in record.getMessage() for record in caplog.records] == [True]


def test_a_series_added_twice_in_a_step_stands_in_the_frame_once_with_its_first_value(recorder, kept):
    recorder.add([series(recorder, "x"), series(recorder, "y")], torch.tensor([1.0, 2.0]))
    recorder.add([series(recorder, "x")], torch.tensor([9.0]))
    recorder.add_host(series(recorder, "y"), 8.0)
    recorder.close_step(0)
    recorder.drain(everything=True)

    assert all(len(set(plan.series)) == len(plan.series) for plan in kept.plans.values())
    assert kept.points(0) == {"x": 1.0, "y": 2.0}


def test_a_logged_scalar_never_shares_a_series_with_a_measured_metric(recorder, kept):
    measured = recorder.book.series("gradient.global_norm", "model", "model", Facts)
    recorder.add([measured], torch.tensor([1.0]))
    recorder.close_step(0)
    recorder.log(0, "gradient.global_norm", 5.0)
    recorder.drain(everything=True)

    assert kept.points(0) == {"gradient.global_norm": 1.0, "logged/gradient.global_norm": 5.0}


def test_what_was_not_measured_is_absent_and_what_is_not_finite_is_not(recorder, kept):
    layout = [series(recorder, name) for name in "abcd"]
    values = torch.tensor([1.0, -torch.inf, torch.nan, 4.0])
    recorder.add(layout, values, measured=torch.tensor([True, True, True, False]))
    recorder.add([series(recorder, "unwanted"), series(recorder, "e")], torch.tensor([5.0, 6.0]))
    recorder.close_step(0)
    recorder.drain(everything=True)

    found = kept.points(0)
    assert found.pop("c") != found.get("c")
    assert found == {"a": 1.0, "b": -float("inf"), "e": 6.0}


def test_a_skipped_step_has_no_updates(recorder, kept):
    recorder.add_flag(torch.tensor(1.0))
    recorder.add([series(recorder, "update.rms"), series(recorder, "gradient.rms")], torch.tensor([1.0, 2.0]))
    recorder.close_step(0)
    recorder.drain(everything=True)

    assert kept.frames[0].skipped
    assert kept.points(0) == {"gradient.rms": 2.0}


def test_one_identity_is_one_series_whoever_asks():
    book = SeriesBook(lambda _: True)
    first = book.series("x", "module", "a", lambda: Facts(order=1))

    assert book.series("x", "module", "a", lambda: Facts(order=2)) is first
    assert book.series("x", "module", "a", Facts, bound="lower") is not first
    assert book.series("x", "module", "a", Facts, index=0) is not first
    assert len({each.number for each in book}) == len(book) == 3


PARTS = {
    "block.stream": (4.0, (2.0 * 1 + 3.0 * 3 + 7.0 * 4) / 8),
    "activation.rms_max": (4.0, 7.0),
    "activation.nonfinite": (4.0, 2.0 + 3.0 + 7.0),
    "output.log_z": (4.0, (2.0 * 1 + 3.0 * 3 + 7.0 * 4) / 8),
}
"""By metric: the one value of a step before, and what the parts 2, 3 and 7, of 1, 3 and 4 entries, are as one."""


@pytest.mark.parametrize("metric", PARTS)
def test_parts_of_a_value_become_one_by_the_rule_of_their_metric(recorder, kept, metric):
    single, merged = PARTS[metric]
    own, other = series(recorder, metric), series(recorder, "x")
    recorder.add([own], torch.tensor([single]), in_parts=True)
    recorder.close_step(1)
    recorder.add([own, other, own], torch.tensor([2.0, 9.0, 3.0]), [1, 1, 3], in_parts=True)
    recorder.add([own], torch.tensor([7.0]), [4])
    recorder.close_step(2)
    recorder.drain(everything=True)

    assert kept.points(1) == {metric: single}
    assert kept.points(2) == {metric: pytest.approx(merged), "x": 9.0}


def test_a_part_that_is_no_number_makes_the_value_none_and_one_not_measured_is_none_of_it(recorder, kept):
    own = series(recorder, "activation.rms_max")
    recorder.add([own, own], torch.tensor([2.0, float("nan")]), in_parts=True)
    recorder.close_step(1)
    recorder.add([own, own], torch.tensor([2.0, 9.0]), measured=torch.tensor([True, False]), in_parts=True)
    recorder.close_step(2)
    recorder.drain(everything=True)

    assert torch.isnan(torch.tensor(kept.points(1)["activation.rms_max"]))
    assert kept.points(2) == {"activation.rms_max": 2.0}


def test_a_value_may_be_a_second_series_too(recorder, kept):
    first, second = series(recorder, "x"), series(recorder, "y")
    recorder.add([series(recorder, "z")], torch.tensor([1.0]))
    recorder.add([first, None], torch.tensor([5.0, 6.0]), also=[(1, second, 1)])
    recorder.close_step(1)
    recorder.add([first, None], torch.tensor([5.0, 6.0]), measured=torch.tensor([True, False]), also=[(1, second, 1)])
    recorder.close_step(2)
    recorder.drain(everything=True)

    assert kept.points(1) == {"x": 5.0, "y": 6.0, "z": 1.0}
    assert kept.points(2) == {"x": 5.0}


def test_what_is_worked_out_of_a_frame_travels_with_it_and_a_fault_there_costs_that_alone(recorder, kept, caplog):
    own, more = series(recorder, "x"), series(recorder, "y")

    def doubled(among, values, counts):
        return [
            (more, 2 * value, count) for each, value, count in zip(among, values, counts, strict=True) if each is own
        ]

    def broken(among, values, counts):
        raise ZeroDivisionError("no depth")

    for step, derive in ((1, doubled), (2, broken), (3, broken)):
        recorder.add([None, own], torch.tensor([7.0, 5.0]))
        recorder.close_step(step, [derive])
    with caplog.at_level(logging.WARNING, "internist"):
        recorder.drain(everything=True)

    assert kept.points(1) == {"x": 5.0, "y": 10.0}
    assert kept.points(2) == kept.points(3) == {"x": 5.0}
    assert [record.message for record in caplog.records if "no depth" in record.message] == [caplog.records[0].message]
    assert len(caplog.records) == 1
