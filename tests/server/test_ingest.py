import base64
import json
import struct
import zlib

import msgspec
import numpy as np
import pytest

from internist.schema.wire import MAX_RECORD_BYTES, SPOOL_CONTENT_TYPE, Frame, Note, Plan, Record, Series
from tests.server.sending import EPOCH_MS, Sender, framed, module_series, spool, start_of

TWO = [module_series(0, "activation.rms_max", "blocks.0"), module_series(1, "activation.abs_max", "blocks.0")]


def frames_path(sender):
    return f"/api/v1/runs/{sender.run}/frames"


def sent_around(sender, bad):
    """Post a good frame, the bad bytes, and another good frame; the reply."""
    sender.send(sender.declare(TWO))
    before, after = sender.frame(0, [1, 2]), sender.frame(10, [3, 4])
    content = spool([before]) + (bad if isinstance(bad, bytes) else spool([bad])) + spool([after])
    answer = sender.post([], content=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_was_sent_is_read_back(api):
    sender = Sender(api)
    records = sender.declare(TWO) + [sender.frame(step, [1.5, step]) for step in range(0, 100, 10)]

    reply = sender.send(records)

    assert (reply["acknowledged"], reply["stored"], reply["duplicates"]) == (len(records) - 1, len(records), 0)
    assert sender.points("activation.abs_max") == {step: float(step) for step in range(0, 100, 10)}
    assert sender.get()["last_step"] == 90


def test_records_sent_twice_are_stored_once(api):
    sender = Sender(api)
    records = [*sender.declare(TWO), sender.frame(0, [1, 2]), sender.frame(10, [3, 4])]
    sender.send(records)

    reply = sender.send([*records, sender.frame(20, [5, 6])])

    assert (reply["stored"], reply["duplicates"]) == (1, len(records))
    assert sender.points("activation.abs_max") == {0: 2.0, 10: 4.0, 20: 6.0}


def test_a_start_tells_where_to_resume(api):
    sender = Sender(api)
    assert sender.post_start().json()["acknowledged"] == -1
    sender.send([*sender.declare(TWO), sender.frame(0, [1, 2])])

    again = sender.post_start().json()

    assert (again["acknowledged"], again["number"], again["url"]) == (2, 1, "/runs/run1")


def test_a_start_may_be_json(sqlite_api):
    body = msgspec.json.encode(start_of())

    answer = sqlite_api.post("/api/v1/runs", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 200


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
def test_the_same_records_travel_as_json_and_msgpack(api, content_type):
    sender = Sender(api)
    request = sender.request([*sender.declare(TWO), sender.frame(0, [1, 2])])
    encode = msgspec.json.encode if content_type.endswith("json") else msgspec.msgpack.encode

    answer = api.post(frames_path(sender), content=encode(request), headers={"Content-Type": content_type})

    assert answer.json()["stored"] == 3
    assert sender.points("activation.abs_max") == {0: 2.0}


def test_a_spool_slice_that_begins_with_a_start_registers_itself(api):
    sender = Sender(api, register=False)
    records = [sender.record(start=sender.start), *sender.declare(TWO), sender.frame(0, [1, 2])]

    answer = api.post(frames_path(sender), content=spool(records), headers={"Content-Type": SPOOL_CONTENT_TYPE})

    assert answer.json()["stored"] == 4
    assert sender.points("activation.rms_max") == {0: 1.0}


def test_unknown_fields_are_ignored(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send(sender.declare(TWO))
    body = {"sequence": 2, "frame": {**msgspec.to_builtins(Frame(0, 0, EPOCH_MS, b"")), "colour": "red"}, "more": 1}
    body["frame"]["values"] = struct.pack("<2f", 1, 2)

    answer = sender.post([], content=framed(msgspec.msgpack.encode(body)))

    assert answer.json()["stored"] == 1


def test_an_unknown_metric_is_stored_and_not_judged(api):
    sender = Sender(api)
    sender.send(sender.declare([Series(0, "my.score", "model", "")]))

    sender.send([sender.frame(step, [step]) for step in range(0, 200, 10)])

    assert sender.points("my.score")[190] == 190.0
    assert all(member["metric"] != "my.score" for member in sender.get("/verdicts")["members"] if member["basis"])


def test_a_torn_tail_is_refused_and_what_precedes_it_kept(api):
    sender = Sender(api)
    sender.send(sender.declare(TWO))
    whole, torn = spool([sender.frame(0, [1, 2])]), spool([sender.frame(10, [3, 4])])

    for cut in (3, 8, len(torn) - 1):
        reply = sender.post([], content=whole + torn[:cut]).json()
        assert [one["reason"].split(":")[0] for one in reply["refused"]] == ["torn"]
        assert reply["acknowledged"] == 2

    assert sender.points("activation.rms_max") == {0: 1.0}
    assert sender.post([], content=torn).json()["stored"] == 1


def test_a_record_with_a_wrong_checksum_is_refused_alone(api):
    sender = Sender(api)
    body = msgspec.msgpack.encode(Record(9))

    reply = sent_around(sender, struct.pack("<II", len(body), zlib.crc32(body) ^ 1) + body)

    assert "checksum" in reply["refused"][0]["reason"]
    assert sender.points("activation.rms_max") == {0: 1.0, 10: 3.0}


def test_a_record_that_is_no_msgpack_is_refused_alone(sqlite_api):
    sender = Sender(sqlite_api)

    reply = sent_around(sender, framed(b"\xc1\xc1\xc1"))

    assert "cannot be read" in reply["refused"][0]["reason"]
    assert reply["stored"] == 2


def test_an_oversized_record_is_refused_with_the_limit(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send(sender.declare(TWO))
    good = spool([sender.frame(0, [1, 2])])

    reply = sender.post([], content=good + struct.pack("<II", MAX_RECORD_BYTES + 1, 0) + b"some of it").json()

    assert str(MAX_RECORD_BYTES) in reply["refused"][0]["reason"]
    assert reply["stored"] == 1


def test_a_body_over_the_limit_is_413(sqlite_url, serve):
    api = serve(sqlite_url, max_request_bytes=4096)
    sender = Sender(api)

    answer = sender.post([], content=b"x" * 5000)

    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
    assert "4096" in answer.json()["detail"]


def test_a_body_of_unknown_length_stops_at_the_limit(sqlite_url, serve):
    api = serve(sqlite_url, max_request_bytes=4096)
    sender = Sender(api)

    answer = sender.post([], content=(b"x" * 1000 for _ in range(10)))

    assert answer.status_code == 413


def test_a_newer_version_is_409(sqlite_api):
    sender = Sender(sqlite_api)
    newer = msgspec.msgpack.encode(sender.request([], version=2))

    answers = [
        sqlite_api.post(frames_path(sender), content=newer, headers={"Content-Type": "application/msgpack"}),
        Sender(sqlite_api, start_of("run2", version=2), register=False).post_start(),
        sender.post([sender.record(start=start_of(version=7))]),
    ]

    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [(409, "newer_version")] * 3
    assert "update the server" in answers[0].json()["detail"]


def test_a_frame_of_an_unknown_plan_is_refused_alone(api):
    sender = Sender(api)
    sender.send(sender.declare(TWO))

    reply = sender.post([sender.frame(0, [1, 2], plan=5), sender.frame(0, [1, 2])]).json()

    assert reply["refused"] == [{"sequence": 2, "reason": "it follows plan 5, which was not sent"}]
    assert (reply["stored"], reply["acknowledged"]) == (1, 3)


def test_a_plan_is_refused_the_series_that_was_not_declared(api):
    sender = Sender(api)
    sender.send(sender.declare(TWO))

    reply = sender.post([sender.record(plan=Plan(1, (0, 9)))]).json()

    told = "plan 1 names series 9, which was not declared; its values are left out"
    assert [one["reason"] for one in reply["refused"]] == [told]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan(1, ()), "names no series"),
        (Plan(1, (0, 0)), "names a series twice"),
        (Plan(1, (0, 1), (5,)), "1 counts for 2 series"),
        (Plan(1, (0, 1), (5, 0)), "count that is not between 1"),
        (Plan(-1, (0,)), "number lies between"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(sqlite_api, plan, reason):
    sender = Sender(sqlite_api)
    sender.send(sender.declare(TWO))

    assert reason in sender.post([sender.record(plan=plan)]).json()["refused"][0]["reason"]


def test_a_plan_may_be_declared_again_as_it_is(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send(sender.declare(TWO))

    sender.send([sender.record(series=tuple(TWO)), sender.record(plan=Plan(0, (0, 1)))])

    assert sender.get("/series")["total"] == 2


def test_a_frame_whose_values_do_not_fit_its_plan_is_refused_alone(api):
    sender = Sender(api)

    reply = sent_around(sender, Record(50, frame=Frame(0, 5, EPOCH_MS, b"\0" * 12)))

    assert reply["refused"][0]["reason"] == "it has 12 bytes of values; plan 0 has 2 series, 8 bytes"
    assert sender.points("activation.rms_max") == {0: 1.0, 10: 3.0}


@pytest.mark.parametrize(
    ("metric", "subject", "reason"),
    [
        ("", "blocks.0", "metric is empty"),
        ("  ", "blocks.0", "metric is empty"),
        ("nan", "blocks.0", "no name"),
        ("NaN", "blocks.0", "no name"),
        ("-inf", "blocks.0", "no name"),
        ("loss\n", "blocks.0", "control character"),
        ("loss", "blocks\x00", "control character"),
        ("l" * 513, "blocks.0", "at most 512"),
        ("loss", "b" * 513, "at most 512"),
    ],
)
def test_a_name_that_is_none_is_refused_with_its_reason(sqlite_api, metric, subject, reason):
    sender = Sender(sqlite_api)

    reply = sent_around(sender, Record(50, series=(Series(7, metric, "module", subject),)))

    assert reason in reply["refused"][0]["reason"]
    assert sender.get("/series")["total"] == 2


def test_a_number_for_a_name_is_refused_with_its_sequence(sqlite_api):
    sender = Sender(sqlite_api)
    series = {"number": 7, "metric": float("nan"), "kind": "module", "subject": "blocks.0"}

    reply = sent_around(sender, framed(msgspec.msgpack.encode({"sequence": 50, "series": [series]})))

    assert reply["refused"][0]["sequence"] == 50
    assert "Expected `str`, got `float`" in reply["refused"][0]["reason"]


@pytest.mark.parametrize(
    "record",
    [
        Record(50),
        Record(50, plan=Plan(1, (0,)), note=Note("a", "b", "info", 0, EPOCH_MS)),
        Record(-1, plan=Plan(1, (0,))),
        Record(50, frame=Frame(0, -1, EPOCH_MS, b"\0" * 8)),
        Record(50, frame=Frame(0, 1 << 60, EPOCH_MS, b"\0" * 8)),
        Record(50, frame=Frame(0, 5, -1, b"\0" * 8)),
        Record(50, frame=Frame(-3, 5, EPOCH_MS, b"\0" * 8)),
        Record(50, frame=Frame(1 << 62, 5, EPOCH_MS, b"\0" * 8)),
        Record(50, series=(Series(-7, "loss", "model", ""),)),
        Record(50, note=Note("", "text", "info", 0, EPOCH_MS)),
    ],
)
def test_a_record_that_makes_no_sense_is_refused_alone(api, record):
    sender = Sender(api)

    reply = sent_around(sender, record)

    assert len(reply["refused"]) == 1
    assert reply["stored"] == 2


def test_more_series_than_the_limit_are_refused(sqlite_url, serve):
    sender = Sender(serve(sqlite_url, max_series_per_run=2))
    sender.send(sender.declare(TWO))

    reply = sender.post([sender.record(series=(Series(7, "loss", "model", ""),))]).json()

    assert reply["refused"][0]["reason"] == "the run would have 3 series; at most 2"
    sender.send([sender.record(series=tuple(TWO))])


def test_a_gap_in_the_sequence_is_accepted_and_may_be_filled_later(api):
    sender = Sender(api)
    sender.send(sender.declare(TWO))
    first, lost, third = (sender.frame(step, [step, step]) for step in (0, 10, 20))

    assert sender.send([first, third])["acknowledged"] == third.sequence
    assert sender.send([lost])["stored"] == 1
    assert sender.send([lost])["duplicates"] == 1

    assert sender.points("activation.rms_max") == {0: 0.0, 10: 10.0, 20: 20.0}


def test_nan_and_infinities_survive_storage_and_json(api):
    sender = Sender(api)
    sender.send(sender.declare(TWO))
    values = [1.0, np.nan, np.inf, -np.inf]

    sender.send([sender.frame(step, [value, 0]) for step, value in enumerate(values)])

    assert sender.points("activation.rms_max") == {0: 1.0, 1: "nan", 2: "inf", 3: "-inf"}
    window = sender.get("/points", metric="activation.rms_max", pixels=1)["windows"][0]
    assert (window["low"], window["high"], window["nonfinite"]) == ([1.0], [1.0], [3])


def test_a_squared_metric_is_read_as_its_root(api):
    sender = Sender(api)
    sender.send(
        sender.declare([module_series(0, "activation.rms", "a"), Series(1, "gradient.global_norm", "model", "")])
    )

    sender.send([sender.frame(0, [9.0, 16.0])])

    assert sender.points("activation.rms") == {0: 3.0}
    assert sender.points("gradient.global_norm") == {0: 4.0}


def test_scalars_logged_apart_and_a_sampled_frame_are_one_step(api):
    sender = Sender(api)
    sender.send(sender.declare(TWO) + sender.declare([Series(2, "loss", "model", "")]))

    sender.send([sender.frame(0, [2.5], plan=1)])
    sender.send([sender.frame(0, [1, 2])])

    assert sender.get()["loss"] == 2.5
    assert (sender.points("loss"), sender.points("activation.rms_max")) == ({0: 2.5}, {0: 1.0})


def test_a_request_for_an_unknown_run_or_attempt_is_404(sqlite_api):
    known, unknown = Sender(sqlite_api), Sender(sqlite_api, start_of("nowhere"), register=False)
    stranger = Sender(sqlite_api, start_of(attempt="other"), register=False)
    other_rank = Sender(sqlite_api, start_of(rank=3, world_size=9), register=False)

    answers = [sender.post([]) for sender in (unknown, stranger, other_rank)]

    assert [answer.json()["error"] for answer in answers] == ["run_not_found", "attempt_not_found", "attempt_not_found"]
    assert known.post([]).status_code == 200


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b'{"version": 1}', 422),
        ("application/json", b'{"version": NaN, "attempt": "a", "rank": 0, "records": []}', 400),
        ("application/json", b'{"x": ' + b"[" * 100_000, 400),
        ("application/msgpack", b"\xc1", 400),
        ("application/msgpack", b"\x93\x01\x02\x03", 422),
        ("application/msgpack", b"\xdf\xff\xff\xff\xff", 400),
        ("text/plain", b"hello", 415),
        ("", b"hello", 415),
    ],
)
def test_an_envelope_that_cannot_be_read_is_4xx_with_a_reason(sqlite_api, content_type, content, status):
    sender = Sender(sqlite_api)

    answer = sqlite_api.post(frames_path(sender), content=content, headers={"Content-Type": content_type})

    assert answer.status_code == status
    assert answer.json()["detail"]


def test_a_compressed_body_is_415(sqlite_api):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    answer = sqlite_api.post("/api/v1/runs", content=b"", headers=headers)

    assert answer.status_code == 415


def test_a_spool_slice_of_nobody_is_422(sqlite_api):
    sender = Sender(sqlite_api)

    answer = sqlite_api.post(frames_path(sender), content=b"", headers={"Content-Type": SPOOL_CONTENT_TYPE})

    assert "`attempt` and `rank`" in answer.json()["detail"]


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "../etc"},
        {"run": ""},
        {"attempt": "a b"},
        {"parent": "\n"},
        {"rank": 1},
        {"rank": -1},
        {"world_size": 0},
        {"world_size": 1 << 40},
        {"every": 0},
        {"name": ""},
        {"project": "nan"},
        {"name": "n" * 600},
        {"start_step": -1},
        {"started_at_ms": -1},
        {"mesh": {"dp": -1}},
        {"version": 0},
    ],
)
def test_a_start_that_cannot_be_is_422_and_stores_nothing(sqlite_api, changes):
    start = start_of(**changes)

    answer = Sender(sqlite_api, start, register=False).post_start()

    assert answer.status_code == 422, answer.text
    assert sqlite_api.get("/api/v1/runs").json() == []


def test_a_config_is_kept_as_far_as_json_can(api):
    config = {"clip": float("inf"), "seed": 1 << 70 >> 7, "text": "x" * 10_000, "odd": "a\x00b", "lr": 0.1, "on": True}
    sender = Sender(api, start_of(config=config))

    kept = sender.get()["config"]

    assert (kept["clip"], kept["lr"], kept["on"], kept["odd"]) == ("inf", 0.1, True, "a b")
    assert len(kept["text"]) == 8192


def test_ranks_that_disagree_on_the_world_size_are_409(sqlite_api):
    Sender(sqlite_api, start_of(world_size=2))

    answer = Sender(sqlite_api, start_of(world_size=3, rank=1), register=False).post_start()

    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")


def test_base64_that_is_none_is_refused_alone(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send(sender.declare(TWO))
    good = {"plan": 0, "step": 0, "measured_at_ms": 0, "values": base64.b64encode(b"\0" * 8).decode()}
    records = [{"sequence": 2, "frame": {**good, "values": "%%%"}}, {"sequence": 3, "frame": good}]
    body = {"version": 1, "attempt": sender.start.attempt, "rank": 0, "records": records}

    answer = sqlite_api.post(
        frames_path(sender), content=json.dumps(body), headers={"Content-Type": "application/json"}
    )

    assert [one["sequence"] for one in answer.json()["refused"]] == [2]
    assert answer.json()["stored"] == 1
