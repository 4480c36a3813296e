"""What is bad of a request costs itself: its neighbours are stored and judged, and no record stops a run."""

import random

import msgspec
import numpy as np
import pytest

from internist.schema.wire import CoverageEntry, Facts, Finish, Frame, Module, Note, Outline, Plan, Route, Series
from tests.server.sending import EPOCH_MS, Sender, framed, module_series, spool, start_of

TWO = [module_series(0, "activation.rms_max", "blocks.0"), module_series(1, "activation.abs_max", "blocks.0")]
SEED = 20_260_101


def refused(sender, *records):
    answer = sender.post(records)
    assert answer.status_code == 200, answer.text
    return [one["reason"] for one in answer.json()["refused"]]


def judged_step(sender):
    return sender.get("/verdicts")["step"]


def test_a_series_twice_in_a_plan_costs_its_second_value_and_nothing_else(api):
    sender = Sender(api)

    plan = sender.record(plan=Plan(0, (0, 1, 0)))
    reasons = refused(sender, sender.record(series=tuple(TWO)), plan, sender.frame(0, [1, 2, 30]))

    assert reasons == ["plan 0 names a series twice (0); its first value is kept"]
    assert sender.points("activation.rms_max") == {0: 1.0}
    assert sender.points("activation.abs_max") == {0: 2.0}
    assert judged_step(sender) == 0


def test_a_series_under_two_numbers_costs_its_second_value_and_nothing_else(api):
    """What a client sends that declares the norm of every clipping by itself."""
    sender = Sender(api)
    norm = [Series(number, "gradient.norm_before_clip", "model", "") for number in (0, 1)]

    reasons = refused(sender, *sender.declare([*norm, Series(2, "loss", "model", "")]))
    sender.send([sender.frame(step, [9.0, 4.0, 2.5]) for step in (0, 10)])

    assert reasons == ["plan 0 names a series twice (1); its first value is kept"]
    assert list(sender.points("gradient.norm_before_clip").values()) == [9.0, 9.0]
    assert sender.points("loss") == {0: 2.5, 10: 2.5}
    assert judged_step(sender) == 10


def test_a_nan_beside_a_doubled_series_is_judged(sqlite_api):
    sender = Sender(sqlite_api)
    refused(sender, *sender.declare([*TWO, Series(2, "activation.rms_max", "module", "blocks.0", facts=TWO[0].facts)]))

    sender.send([sender.frame(0, [1, 2, 1]), sender.frame(10, [1, np.nan, 1])])

    assert sender.get()["verdict"] == "violated"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Series(7, "loss\x00", "model", ""), "series 7: metric has a control character"),
        (Series(7, "l" * 600, "model", ""), "series 7: metric has 600 characters"),
        (Series(-1, "loss", "model", ""), "series -1: its number lies between"),
        (Series(0, "loss", "model", ""), "series 0: another series has its number"),
        (Series(7, "loss", "model", "", facts=Facts(axis="a" * 600)), "series 7: fact has 600 characters"),
    ],
)
def test_a_bad_series_is_refused_alone_and_its_neighbours_are_measured(api, bad, reason):
    sender = Sender(api)

    reasons = refused(
        sender, sender.record(series=(*TWO, bad)), sender.record(plan=Plan(0, (0, 1))), sender.frame(0, [1, 2])
    )

    assert [reason in one for one in reasons] == [True]
    assert sender.points("activation.abs_max") == {0: 2.0}


def test_a_series_of_a_kind_that_is_not_known_costs_itself_and_its_column(sqlite_api):
    sender = Sender(sqlite_api)
    series = msgspec.to_builtins(TWO)
    series[0]["kind"] = "expert"
    records = framed(msgspec.msgpack.encode({"sequence": 0, "series": series}))
    sender.sequence = 1

    reply = sender.post([], content=records + spool([sender.record(plan=Plan(0, (0, 1))), sender.frame(0, [1, 2])]))

    assert "1 of 2 lines of `series` cannot be read: Invalid enum value 'expert'" in reply.text
    assert sender.points("activation.abs_max") == {0: 2.0}
    assert [one["metric"] for one in sender.get("/series")["series"]] == ["activation.abs_max"]


def test_a_start_with_a_line_that_is_not_known_is_taken_without_it(sqlite_api):
    start = msgspec.to_builtins(start_of(modules=(Module("a", "Linear", "linear"), Module("b", "Linear", "linear"))))
    start["modules"][0]["role"] = "expert"
    start["config"] = {"lr": 0.1, "nested": {"no": 1}}

    answer = sqlite_api.post("/api/v1/runs", json=start)

    assert answer.status_code == 200, answer.text
    assert sqlite_api.get("/api/v1/runs/run1").json()["config"] == {"lr": 0.1}
    assert [one["name"] for one in sqlite_api.get("/api/v1/runs/run1/coverage").json()["modules"]] == ["b"]


def test_a_config_entry_with_an_endless_name_is_left_out(sqlite_api):
    assert Sender(sqlite_api, start_of(config={"k" * 600: 1, "lr": 0.1})).get()["config"] == {"lr": 0.1}


def test_one_subject_twice_in_coverage_is_stored_once(api):
    sender = Sender(api)
    entries = (CoverageEntry("module", "m", "silent"), CoverageEntry("module", "m", "measured"))

    sender.send([sender.record(coverage=entries)])

    assert [one["state"] for one in sender.get("/coverage")["entries"]] == ["measured"]


def test_a_bad_coverage_entry_is_left_out(sqlite_api):
    sender = Sender(sqlite_api)
    good, bad = CoverageEntry("module", "m", "silent"), CoverageEntry("module", "n" * 600, "silent")

    assert refused(sender, sender.record(coverage=(bad, good))) == ["subject has 600 characters; at most 512"]
    assert [one["subject"] for one in sender.get("/coverage")["entries"]] == ["m"]


def test_a_plan_declared_anew_under_a_used_number_is_another_plan(api):
    """A process that goes on with an attempt numbers its plans from 0 again."""
    sender = Sender(api)
    sender.send([*sender.declare(TWO), sender.frame(0, [1, 2])])
    again = sender.record(plan=Plan(0, (1, 0)))

    sender.send([again, sender.frame(10, [3, 4])])
    sender.send([sender.frame(20, [5, 6])])

    assert sender.points("activation.rms_max") == {0: 1.0, 10: 4.0, 20: 6.0}
    assert judged_step(sender) == 20


def test_a_record_that_cannot_be_read_is_acknowledged_so_that_it_is_not_sent_for_ever(sqlite_api):
    sender = Sender(sqlite_api)
    body = framed(msgspec.msgpack.encode({"sequence": 0, "finish": {"step": 1, "outcome": "something new"}}))

    reply = sender.post([], content=body).json()

    assert (reply["acknowledged"], [one["sequence"] for one in reply["refused"]]) == (0, [0])


def test_more_series_than_the_limit_cost_only_those_beyond_it(sqlite_url, serve):
    sender = Sender(serve(sqlite_url, max_series_per_run=2))
    three = (*TWO, Series(2, "loss", "model", ""))

    reasons = refused(sender, sender.record(series=three), sender.record(plan=Plan(0, (0, 1, 2))))
    sender.send([sender.frame(0, [1, 2, 3])])

    assert reasons == [
        "the run would have 3 series; at most 2",
        "plan 0 names series 2, which was not declared; its values are left out",
    ]
    assert sender.points("activation.abs_max") == {0: 2.0}


def test_a_start_of_a_slice_that_cannot_be_costs_itself_where_the_rank_is_known(sqlite_api):
    sender = Sender(sqlite_api)

    reasons = refused(sender, sender.record(start=start_of(every=0)), *sender.declare(TWO), sender.frame(0, [1, 2]))

    assert reasons == ["`every` is at least 1, got 0"]
    assert judged_step(sender) == 0


def _mutated(value, numbers):
    """A copy of plain data with one entry somewhere replaced by something else."""
    odd = [None, -1, 0, 1 << 40, (1 << 63) - 1, -(1 << 63), 1e308, "", "\x00", "nan", "x" * 700, b"", [], {}, True]
    if isinstance(value, dict) and value and numbers.random() < 0.9:
        key = numbers.choice(sorted(value))
        return {**value, key: _mutated(value[key], numbers)}
    if isinstance(value, list | tuple) and value and numbers.random() < 0.8:
        place = numbers.randrange(len(value))
        return [*value[:place], _mutated(value[place], numbers), *value[place + 1 :]]
    return numbers.choice(odd)


def test_no_mutated_record_keeps_good_ones_from_being_stored_and_judged(sqlite_api):
    """Two hundred times one record of each kind with one entry replaced, between good frames."""
    numbers = random.Random(SEED)
    sender = Sender(sqlite_api)
    sender.send([*sender.declare(TWO), sender.frame(0, [1, 1])])
    kinds = [
        {"series": tuple(TWO)},
        {"plan": Plan(1, (0, 1), (1, 1))},
        {"frame": Frame(0, 5, EPOCH_MS, b"\0" * 8)},
        {"coverage": (CoverageEntry("module", "m", "measured"),)},
        {"note": Note("t", "x", "info", 1, EPOCH_MS)},
        {"finish": Finish(1, EPOCH_MS)},
        {"outline": Outline({"lr": 0.1}, (Module("m", "Linear", "linear"),), (Route("w", "Adam", "adam", "0"),))},
        {"start": sender.start},
    ]

    for turn in range(200):
        plain = msgspec.msgpack.decode(msgspec.msgpack.encode(numbers.choice(kinds)))
        mutated = {kind: _mutated(content, numbers) for kind, content in plain.items()}
        bad = framed(msgspec.msgpack.encode({"sequence": sender.sequence, **mutated}))
        sender.sequence += 1
        step = 10 * (turn + 1)
        reply = sender.post([], content=bad + spool([sender.frame(step, [1, step])]))
        newer = reply.status_code == 409 and "newer" in reply.text
        assert newer or reply.status_code == 200, reply.text
        if newer:
            sender.send([sender.frame(step, [1, step])])
        assert sender.points("activation.abs_max", from_step=step)[step] == step
        assert judged_step(sender) >= step
    assert judged_step(sender) == 2000


def test_a_config_is_kept_up_to_a_quarter_of_a_mebibyte(sqlite_api):
    kept = Sender(sqlite_api, start_of(config={f"k{n:03}": "x" * 4_000 for n in range(100)})).get()["config"]

    assert len(kept) == 65
    assert set(kept) == {f"k{n:03}" for n in range(65)}
