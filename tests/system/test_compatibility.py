"""Old clients on this server, and this client on old servers: from what each released version said on the wire."""

import json
import struct

import httpx
import msgspec
import pytest

import internist
from internist.schema import alerts, views, windows, wire
from internist.ship import records
from tests.dashboard.serving import served
from tests.system.recording import ANSWERS, POINTS, RECORDED, SPOOL, TYPES, declared, send

VERSIONS = sorted(path.name for path in RECORDED.iterdir())


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with (
        served(tmp_path_factory.mktemp("compatibility")) as address,
        httpx.Client(base_url=f"{address}/api/v1/", timeout=60) as api,
    ):
        yield api


def test_this_version_is_recorded():
    assert internist.__version__ in VERSIONS, "record it before it is released: python -m tests.system.recording"


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_of_an_old_client_are_stored_whole_and_judged(api, version):
    spool = (RECORDED / version / SPOOL).read_bytes()
    known = json.loads((RECORDED / version / POINTS).read_text())
    start = next(body for body in records.bodies(spool))
    attempt = msgspec.msgpack.decode(start, type=wire.Record).start.attempt

    reply = send(api, spool, run="recorded", attempt=attempt)

    assert reply["refused"] == [] and reply["duplicates"] == 0
    page = api.get("runs/recorded/points", params={"metric": "loss"}).json()
    (loss,) = page["windows"]
    assert dict(zip(map(str, loss["steps"]), loss["values"], strict=True)) == {
        step: "nan" if value != value else pytest.approx(value) for step, value in known["loss"].items()
    }
    assert api.get("runs/recorded/series", params={"limit": 1}).json()["total"] == known["series"]
    assert api.get("runs/recorded").json()["verdict"] == "violated"
    again = send(api, spool, run="recorded", attempt=attempt)
    assert again["stored"] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_of_an_old_server_are_understood(version):
    answers = json.loads((RECORDED / version / ANSWERS).read_text())

    for kind, answer in answers.items():
        type_ = next(found for room in (views, windows, alerts, wire) if (found := getattr(room, kind, None)))
        decoded = msgspec.convert(answer, type_)
        assert decoded == msgspec.convert({**answer, "of_a_later_version": 1}, type_)
    assert msgspec.convert(answers["Run"], views.Run).loss == "nan"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_said_now_is_understood_by_an_old_decoder(version):
    """A client of this version on an old server, and an old client on a server of this one: what the old one must be
    told is still told, and what it may be told is still of the type that it takes. What is new it leaves aside."""
    theirs, ours = json.loads((RECORDED / version / TYPES).read_text()), declared()

    missing = [
        f"{name}.{field}"
        for name, fields in theirs.items()
        for field, told in fields.items()
        if told["required"] and field not in ours.get(name, {})
    ]
    changed = [
        f"{name}.{field}: {told['type']} is {ours[name][field]['type']} now"
        for name, fields in theirs.items()
        for field, told in fields.items()
        if field in ours.get(name, {}) and ours[name][field]["type"] != told["type"]
    ]
    assert (missing, changed) == ([], [])


def test_a_newer_major_version_is_refused(api):
    spool = (RECORDED / VERSIONS[0] / SPOOL).read_bytes()
    (length,) = struct.unpack_from("<I", spool)
    start = msgspec.msgpack.decode(spool[8 : 8 + length])["start"]

    answer = api.post("runs", json={**start, "version": wire.VERSION + 1})

    assert answer.status_code == 409


def test_the_client_tells_its_version_on_the_wire():
    spool = (RECORDED / internist.__version__ / SPOOL).read_bytes()
    start = msgspec.msgpack.decode(next(iter(records.bodies(spool))), type=wire.Record).start

    assert start.client.startswith(f"internist {internist.__version__}, torch ")
