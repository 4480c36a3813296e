"""What is too large for a proxy on the way: it is cut, what can never pass is dropped alone, and the rest arrives."""

import json
import urllib.request
from dataclasses import replace

import pytest

from internist.errors import BodyTooLarge, ServerError
from internist.schema.wire import (
    PIECE_BYTES,
    VERSION,
    CoverageEntry,
    Frame,
    Module,
    Note,
    Plan,
    Route,
    RunStart,
    Series,
)
from internist.ship.connection import Connection
from internist.ship.delivery import Delivery
from internist.ship.reader import SpoolReader
from internist.ship.segments import read_start
from internist.ship.sender import Sender
from internist.ship.slice_size import SMALLEST, SliceSize
from internist.ship.spool import Spool
from internist.ship.sync import sync
from tests.client.ship.small_proxy import KINDS, SmallProxy
from tests.client.ship.small_server import SmallServer, json_answer
from tests.server.processes import server_process

PATIENCE_S = 180.0
EXPERTS = [f"blocks.{block}.experts.{expert}" for block in range(27) for expert in range(64)]
WIDTH = 10_000
STEPS = 4
PLAIN = RunStart(
    version=VERSION, run="r", attempt="a", rank=0, world_size=1, project="p", name="n", every=10, started_at_ms=1
)


def mixture(run: str) -> RunStart:
    """The start of a mixture of 27 x 64 experts: 1.9 MB."""
    modules = [Module(f"{expert}.{part}", "Linear", "linear") for expert in EXPERTS for part in ("up", "gate", "down")]
    routes = [
        Route(f"{one.name}.weight", "Muon", "muon", "hidden", (1024, 4096), "hidden", "original", "jordan", lr=0.02)
        for one in modules
    ]
    return replace(PLAIN, run=run, modules=tuple(modules), routing=tuple(routes), config={"lr": 0.1})


def record_mixture(spool: Spool) -> None:
    """A few steps of a run with a wide plan, and what goes with it."""
    series = [Series(number, "activation.rms_max", "module", f"m.{number}") for number in range(WIDTH)]
    spool.append(series=tuple(series), plan=Plan(0, tuple(range(WIDTH)), (1 << 20,) * WIDTH))
    spool.append(coverage=tuple(CoverageEntry("module", name, "measured") for name in EXPERTS))
    for step in range(STEPS):
        spool.append(frame=Frame(0, step, 1_790_000_000_000 + step, b"\0\0\x80\x3f" * WIDTH))
    spool.append(note=Note("t", "x", "info", 1, 1))


def ship(spool: Spool, start: RunStart, address: str) -> bool:
    """Ship a spool to its end; whether the server has everything."""
    sender = Sender(
        spool,
        start,
        Connection(address),
        drain=lambda: None,
        progress=lambda: (STEPS - 1, 0),
        on_directives=lambda _: None,
    )
    sender.start()
    try:
        return sender.close(PATIENCE_S)
    finally:
        spool.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    directory = tmp_path_factory.mktemp("server")
    with server_process(str(directory / "internist.db"), directory, "--no-board") as server:
        yield server.address


def get(address: str, path: str):
    with urllib.request.urlopen(f"{address}/api/v1{path}") as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize(
    ("kind", "limit"), [("413 html", 1 << 20), ("413 html", 128 << 10), ("reset at once", 64 << 10)]
)
def test_a_mixture_of_experts_passes_a_proxy_to_a_real_server_whole(tmp_path, real, caplog, kind, limit):
    run = f"{kind.replace(' ', '-')}-{limit}"
    start = mixture(run)
    spool = Spool(tmp_path, start)
    record_mixture(spool)

    with SmallProxy(real, limit=limit, kind=kind) as proxy:
        assert ship(spool, start, proxy.address)

    assert (spool.dropped, [record.getMessage() for record in caplog.records]) == (0, [])
    shown = get(real, f"/runs/{run}")
    assert (shown["last_step"], shown["series"], shown["config"]) == (STEPS - 1, WIDTH, {"lr": 0.1})
    assert len(get(real, f"/runs/{run}/coverage")["modules"]) == len(start.modules)
    assert len(get(real, f"/runs/{run}/routing")["routes"]) == len(start.routing)
    assert len(get(real, f"/runs/{run}/coverage")["entries"]) == len(EXPERTS)
    window = get(real, f"/runs/{run}/points?metric=activation.rms_max&subject=m.9999")["windows"][0]
    assert window["steps"] == list(range(STEPS))


@pytest.mark.parametrize("limit", [128 << 10, 32 << 10])
@pytest.mark.parametrize("kind", KINDS)
def test_however_a_proxy_refuses_large_bodies_every_record_arrives(tmp_path, caplog, kind, limit):
    start = mixture("r")
    spool = Spool(tmp_path, start)
    record_mixture(spool)

    with SmallServer() as server, SmallProxy(server.address, limit=limit, kind=kind) as proxy:
        assert ship(spool, start, proxy.address)

    assert (spool.dropped, [record.getMessage() for record in caplog.records]) == (0, [])
    assert sorted(server.stored["r", "a", 0]) == list(range(spool.last_sequence + 1))
    assert len(proxy.refused) <= 24  # two of each size until the limit is known, and the start


def test_every_record_of_a_large_run_is_small_enough_to_pass_anywhere(tmp_path):
    start = mixture("r")
    spool = Spool(tmp_path, start)
    record_mixture(spool)
    spool.close()

    largest, reader, last = 0, SpoolReader(spool.directory), -1
    while (slice_ := reader.read(last, 1))[0]:
        largest, last = max(largest, len(slice_[0])), slice_[1]
    assert PIECE_BYTES * 0.9 < largest <= PIECE_BYTES
    assert read_start(spool.directory) == start


def test_what_a_dead_job_left_passes_a_proxy_too(tmp_path):
    start = mixture("r")
    spool = Spool(tmp_path, start)
    record_mixture(spool)
    spool.close()

    with SmallServer() as server, SmallProxy(server.address, limit=64 << 10, kind="413 html") as proxy:
        report = sync(tmp_path, server=proxy.address)
    assert (report.stored, report.refused) == (spool.last_sequence + 1, {})


def delivery_of(spool: Spool, address: str) -> Delivery:
    return Delivery(SpoolReader(spool.directory), PLAIN, Connection(address))


def deliver(delivery: Delivery) -> None:
    delivery.begin()
    while (slice_ := delivery.read())[0]:
        delivery.send(*slice_)


@pytest.mark.parametrize("kind", ["413 html", "413 json"])
def test_a_record_that_can_never_pass_is_dropped_alone_counted_and_said_once(tmp_path, caplog, kind):
    spool = Spool(tmp_path, PLAIN)
    for step in range(200):
        spool.append(frame=Frame(0, step, 1, bytes(300_000 if step in (50, 120) else 1_000)))

    with SmallServer() as server, SmallProxy(server.address, limit=128 << 10, kind=kind) as proxy:
        assert ship(spool, PLAIN, proxy.address)

    assert server.steps() == [step for step in range(200) if step not in (50, 120)]
    assert spool.dropped == 2
    assert [record.getMessage().partition("takes no body")[0] for record in caplog.records] == [
        f"run r: the server refused records: {proxy.address} "
    ]


def test_a_record_on_which_the_connection_always_breaks_is_given_up_after_three_tries(tmp_path):
    spool = Spool(tmp_path, PLAIN)
    for step in range(20):
        spool.append(frame=Frame(0, step, 1, bytes(300_000 if step == 10 else 1_000)))

    with SmallServer() as server, SmallProxy(server.address, limit=128 << 10, kind="reset at once") as proxy:
        assert ship(spool, PLAIN, proxy.address) is False or spool.dropped == 1
        delivery = delivery_of(spool, proxy.address)
        for _ in range(2):
            with pytest.raises(ServerError):
                deliver(delivery)
        deliver(delivery)

    assert sorted(set(server.steps())) == [step for step in range(20) if step != 10]
    assert delivery.dropped == 1


def test_the_limit_that_was_learned_is_kept(tmp_path):
    spool = Spool(tmp_path, PLAIN)
    for step in range(2000):
        spool.append(frame=Frame(0, step, 1, bytes(1_000)))

    with SmallServer() as server, SmallProxy(server.address, limit=100_000, kind="413 html") as proxy:
        deliver(delivery_of(spool, proxy.address))

    assert server.steps() == list(range(2000))
    assert len(proxy.refused) == 4  # 1 MiB, 512, 256 and 128 KiB


def test_a_limit_that_only_cuts_connections_is_learned_too(tmp_path):
    spool = Spool(tmp_path, PLAIN)
    for step in range(4000):
        spool.append(frame=Frame(0, step, 1, bytes(1_000)))

    with SmallServer() as server, SmallProxy(server.address, limit=100_000, kind="closed after reading") as proxy:
        deliver(delivery_of(spool, proxy.address))

    assert server.steps() == list(range(4000))
    assert len(proxy.refused) == 2 * 5  # each size twice, and 128 KiB once more after 64 had passed


def test_a_server_that_was_down_gets_large_slices_again(tmp_path):
    spool = Spool(tmp_path, PLAIN)
    for step in range(6000):
        spool.append(frame=Frame(0, step, 1, bytes(1_000)))

    with SmallServer() as server:
        bad = iter(range(4))
        server.misbehave = lambda request: (
            (502, "text/html", b"<html>") if request.path.endswith("/frames") and next(bad, None) is not None else None
        )
        deliver(delivery_of(spool, server.address))

    sizes = [len(request.body) for request in server.requests if request.path.endswith("/frames")]
    assert server.steps() == list(range(6000))
    assert min(sizes[4:8]) < 100_000
    assert max(sizes[8:]) > 900_000


def test_a_server_that_refuses_even_the_smallest_record_is_not_taken_for_a_small_one(tmp_path):
    spool = Spool(tmp_path, PLAIN)
    spool.append(frame=Frame(0, 0, 1, bytes(100)))

    with SmallServer() as server:
        server.misbehave = lambda request: (
            json_answer({"detail": "too large"}, 413) if request.path.endswith("/frames") else None
        )
        delivery = delivery_of(spool, server.address)
        with pytest.raises(BodyTooLarge):
            deliver(delivery)
    assert (delivery.dropped, delivery.acknowledged) == (0, -1)


def test_records_that_a_server_cannot_read_are_given_up_although_it_acknowledges_nothing(tmp_path):
    """An older server refuses what it does not know, and does not count it."""
    spool = Spool(tmp_path, PLAIN)
    spool.append(note=Note("t", "x", "info", 1, 1))

    with SmallServer() as server:
        deliver(delivery_of(spool, server.address))
        spool.append(note=Note("new", "x", "info", 1, 1))
        server.misbehave = lambda request: (
            json_answer(
                {"acknowledged": 1, "stored": 0, "duplicates": 0, "refused": [{"sequence": 2, "reason": "new"}]}
            )
            if b"new" in request.body
            else None
        )
        delivery = delivery_of(spool, server.address)
        deliver(delivery)
    assert (delivery.acknowledged, delivery.dropped, list(delivery.refused)) == (2, 1, ["new"])


def test_a_size_that_is_refused_is_halved_for_good_and_never_below_the_smallest():
    size = SliceSize(1 << 20)
    size.too_large(1 << 20)
    size.passed(1 << 19)
    assert size.bytes == 1 << 19

    for _ in range(20):
        size.too_large(size.bytes)
    assert size.bytes == SMALLEST


def test_a_size_that_fails_comes_back_unless_it_fails_again_where_smaller_ones_pass():
    size = SliceSize(1 << 20)
    assert size.failed(1 << 20)
    size.passed(1 << 19)
    assert size.bytes == 1 << 20
    assert size.failed(1 << 20)
    size.passed(1 << 19)

    assert size.bytes == 1 << 19
    assert not size.failed(PIECE_BYTES)
