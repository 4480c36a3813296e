import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internist.errors import SpoolError
from internist.schema.wire import (
    PIECE_BYTES,
    VERSION,
    CoverageEntry,
    Finish,
    Frame,
    Module,
    Note,
    Plan,
    Record,
    Route,
    RunStart,
    Series,
)
from internist.ship import records
from internist.ship.reader import SpoolReader
from internist.ship.segments import rank_directories, read_start, segment_numbers, segment_path
from internist.ship.spool import Spool, is_being_written

PATIENCE_S = 30.0
START = RunStart(
    version=VERSION, run="r", attempt="a", rank=0, world_size=1, project="p", name="n", every=10, started_at_ms=1
)
SERIES = (Series(0, "loss", "model", ""), Series(1, "weight.rms", "parameter", "w"))
PLAN = Plan(0, (0, 1))


def frame(step: int, size: int = 8) -> Frame:
    return Frame(plan=0, step=step, measured_at_ms=step, values=bytes(size))


def spool_of(root: Path, sizes: list[int]) -> Spool:
    spool = Spool(root, START)
    spool.append(series=SERIES, plan=PLAN)
    for step, size in enumerate(sizes):
        assert spool.append(frame=frame(step, size))
    return spool


def read_all(directory: Path, after: int = -1, max_bytes: int = 1 << 20) -> list[Record]:
    reader = SpoolReader(directory)
    found: list[Record] = []
    data, last = reader.read(after, max_bytes)
    while data:
        found += [records.decode(body) for body in records.bodies(data)]
        assert found[-1].sequence == last
        data, last = reader.read(last, max_bytes)
    return found


def steps(found: list[Record]) -> list[int]:
    return [record.frame.step for record in found if record.frame is not None]


def sizes(directory: Path) -> list[int]:
    """Bytes of every record of a spool, header included."""
    data = b"".join(segment_path(directory, number).read_bytes() for number in segment_numbers(directory))
    return [len(body) + records.HEADER.size for body in records.bodies(data)]


def boundaries(data: bytes) -> list[int]:
    ends, at = [0], 0
    while (end := records.sound_end(data, at)) is not None:
        ends.append(end)
        at = end
    return ends


def test_a_spool_says_everything_in_order_and_numbers_it_without_gaps(tmp_path):
    spool = Spool(tmp_path, START)
    coverage = (CoverageEntry("module", "m", "measured"),)
    note, finish = Note("t", "x", "info", 3, 4), Finish(9, 10)

    assert spool.append(series=SERIES)
    assert spool.append(plan=PLAN)
    assert spool.append(coverage=coverage)
    assert spool.append(frame=frame(0))
    assert spool.append(note=note)
    assert spool.append(finish=finish)
    found = read_all(spool.directory)
    assert found == [
        Record(0, start=START),
        Record(1, series=SERIES),
        Record(2, plan=PLAN),
        Record(3, coverage=coverage),
        Record(4, frame=frame(0)),
        Record(5, note=note),
        Record(6, finish=finish),
    ]
    assert (spool.last_sequence, spool.dropped) == (6, 0)


def test_many_series_are_declared_in_records_that_pass_everywhere(tmp_path):
    spool = Spool(tmp_path, START)
    series = tuple(Series(number, "weight.rms", "parameter", f"w{number}") for number in range(2500))

    assert spool.append(series=series)
    declared = [record.series for record in read_all(spool.directory) if record.series]
    assert PIECE_BYTES // 2 < max(sizes(spool.directory)) <= PIECE_BYTES
    assert sum(declared, ()) == series


def test_the_layout_names_run_attempt_and_rank(tmp_path):
    spool = spool_of(tmp_path, [1])

    assert spool.directory == tmp_path / "r" / "a" / "rank-00000"
    assert [path.name for path in spool.directory.glob("*.spool")] == ["000001.spool"]
    for place in (tmp_path, tmp_path / "r", tmp_path / "r" / "a", spool.directory):
        assert rank_directories(place) == [spool.directory]
    assert read_start(spool.directory) == START


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=30), st.integers(1, 2000), st.integers(-1, 40))
def test_slices_of_any_size_from_any_number_are_the_bytes_of_the_file(tmp_path_factory, sizes, max_bytes, after):
    spool = spool_of(tmp_path_factory.mktemp("spool"), sizes)
    whole = segment_path(spool.directory, 1).read_bytes()
    ends = boundaries(whole)

    reader, slices = SpoolReader(spool.directory), []
    data, last = reader.read(after, max_bytes)
    while data:
        assert len(data) <= max_bytes or len(boundaries(data)) == 2
        slices.append(data)
        data, last = reader.read(last, max_bytes)
    assert b"".join(slices) == whole[ends[min(after + 1, len(ends) - 1)] :]
    assert last == max(after, spool.last_sequence)


def test_a_reader_may_go_back_and_forth(tmp_path):
    spool = spool_of(tmp_path, [8] * 20)
    reader = SpoolReader(spool.directory)

    assert reader.read(-1, 1 << 20)[1] == 22
    data, last = reader.read(10, 1 << 20)
    assert (records.glance(next(records.bodies(data))).sequence, last) == (11, 22)
    assert reader.read(22, 1 << 20) == (b"", 22)
    spool.append(frame=frame(99))
    assert reader.read(22, 1 << 20)[1] == 23
    assert reader.read(1000, 1 << 20) == (b"", 1000)


def test_a_tail_torn_at_any_byte_costs_only_the_torn_record_and_numbering_goes_on(tmp_path):
    spool = spool_of(tmp_path / "whole", [5, 0, 40])
    spool.close()
    whole = segment_path(spool.directory, 1).read_bytes()
    ends = boundaries(whole)
    complete = read_all(spool.directory)

    for cut in range(ends[1], len(whole)):
        torn = tmp_path / f"cut-{cut}"
        path = segment_path(torn / "r" / "a" / "rank-00000", 1)
        path.parent.mkdir(parents=True)
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends[1:])
        assert read_all(path.parent) == complete[:kept]
        again = Spool(torn, START)
        again.append(frame=frame(77))
        again.close()
        assert path.read_bytes() == whole[: ends[kept]]
        found = read_all(path.parent)
        assert [record.sequence for record in found] == list(range(kept + 2))
        assert found[kept:] == [Record(kept, start=START), Record(kept + 1, frame=frame(77))]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_byte_costs_only_the_record_it_is_in(tmp_path_factory, data):
    spool = spool_of(tmp_path_factory.mktemp("spool"), data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=8)))
    path = segment_path(spool.directory, 1)
    whole = bytearray(path.read_bytes())
    ends = boundaries(bytes(whole))
    complete = read_all(spool.directory)
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)

    hurt = sum(end <= at for end in ends[1:])
    assert read_all(spool.directory, max_bytes=data.draw(st.integers(1, 500))) == complete[:hurt] + complete[hurt + 1 :]


def test_damage_is_counted_once_and_a_damaged_tail_is_waited_for(tmp_path):
    spool = spool_of(tmp_path, [8, 8, 8])
    path = segment_path(spool.directory, 1)
    whole = bytearray(path.read_bytes())
    whole[boundaries(bytes(whole))[4] + 20] ^= 1
    path.write_bytes(whole + b"\x10\x00\x00\x00torn")
    reader = SpoolReader(spool.directory)

    last, count = -1, 0
    while True:
        data, last = reader.read(last, 1 << 20)
        if not data:
            break
        count += len(list(records.bodies(data)))
    assert (last, count, reader.corrupt) == (5, 5, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=150), st.integers(16_000, 60_000), st.integers(-1, 100))
def test_over_the_budget_only_the_oldest_are_lost_and_counted(tmp_path_factory, sizes, budget, acknowledged):
    spool = Spool(tmp_path_factory.mktemp("spool"), START, budget=budget)
    spool.append(series=SERIES, plan=PLAN)
    spool.acknowledge(acknowledged)
    known = spool.acknowledged
    numbers = {}
    for step, size in enumerate(sizes):
        assert spool.append(frame=frame(step, size))
        numbers[step] = spool.last_sequence

    on_disk = sum(path.stat().st_size for path in spool.directory.glob("*.spool"))
    kept = steps(read_all(spool.directory))
    lost = set(range(len(sizes))) - set(kept)
    assert on_disk == spool.size <= budget
    assert kept == list(range(len(lost), len(sizes)))
    assert spool.dropped == sum(numbers[step] > known for step in lost)
    assert not lost or on_disk >= budget * 3 // 4


def test_every_segment_can_be_understood_by_itself(tmp_path):
    spool = Spool(tmp_path, START, budget=16_000)
    spool.append(series=SERIES, plan=PLAN)
    for step in range(200):
        spool.append(frame=frame(step, 100))

    found = read_all(spool.directory)
    heads = [index for index, record in enumerate(found) if record.start]
    assert len(heads) == len(segment_numbers(spool.directory)) > 3
    for index in heads:
        assert [found[index].start, found[index + 1].series, found[index + 2].plan] == [START, SERIES, PLAN]
    assert [record.sequence for record in found] == list(range(found[0].sequence, spool.last_sequence + 1))


def test_a_reader_overtaken_by_the_budget_goes_on_with_the_oldest_segment_left(tmp_path):
    spool = Spool(tmp_path, START, budget=16_000)
    reader = SpoolReader(spool.directory)
    _, last = reader.read(-1, 100)
    for step in range(500):
        spool.append(frame=frame(step, 100))

    found, data = [], b"x"
    while data:
        data, last = reader.read(last, 1 << 20)
        found += [records.decode(body) for body in records.bodies(data)]
    kept = steps(read_all(spool.directory))
    assert steps(found) == kept == list(range(kept[0], 500))


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path):
    spool = spool_of(tmp_path, [8])
    assert is_being_written(spool.directory)

    with pytest.raises(SpoolError, match=r"rank-00000 has a writer already.*INTERNIST_ATTEMPT"):
        Spool(tmp_path, START)
    spool.close()
    assert not is_being_written(spool.directory)
    Spool(tmp_path, START).close()


def test_a_closed_spool_refuses_quietly(tmp_path):
    spool = spool_of(tmp_path, [8])
    spool.close()
    spool.close()

    assert not spool.append(frame=frame(1))


def test_a_directory_that_cannot_be_used_is_refused_with_its_name_and_the_reason(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(SpoolError, match=r"cannot keep a spool in .*file/r/a/rank-00000: Not a directory"):
        Spool(tmp_path / "file", START)
    with pytest.raises(OSError, match=r"/proc/r/a/rank-00000: "):
        Spool(Path("/proc"), START)


def test_what_msgpack_cannot_say_is_counted_and_costs_nothing_else(tmp_path, caplog):
    spool = spool_of(tmp_path, [8])

    assert not spool.append(note=Note("t", "\ud800", "info", 1, 1))
    assert not spool.append(note=Note("t", "x", "info", 1 << 70, 1))
    assert not spool.append(frame=frame(1, 17 << 20))
    assert spool.append(frame=frame(2))
    assert spool.dropped == 3
    assert len(caplog.records) == 1
    assert steps(read_all(spool.directory)) == [0, 2]


def test_a_series_that_cannot_be_expressed_is_lost_alone_and_holds_nothing_up(tmp_path, caplog):
    spool = Spool(tmp_path, START)
    odd = (Series(2, "loss", "model", "\ud800"), Series(1 << 70, "loss", "model", ""))

    spool.append(series=(*SERIES, *odd), plan=PLAN)
    spool.append(plan=Plan(1, (1 << 70,)))
    assert spool.append(frame=frame(0))
    found = read_all(spool.directory)
    assert [record.series for record in found if record.series] == [SERIES]
    assert (steps(found), spool.dropped, len(caplog.records)) == ([0], 3, 1)


def test_a_wide_plan_is_written_in_parts_that_hold_its_values_in_order(tmp_path):
    width = 20_000
    counts = tuple(1 + number % 3 for number in range(width))
    values = b"".join(number.to_bytes(4, "little") for number in range(width))
    spool = Spool(tmp_path, START)
    spool.append(plan=Plan(0, tuple(range(width)), counts))
    spool.append(plan=Plan(1, (0,)))
    assert spool.append(frame=Frame(0, 7, 1, values)) and spool.append(frame=Frame(1, 7, 1, bytes(4)))

    plans = {record.plan.number: record.plan for record in read_all(spool.directory) if record.plan}
    *parts, last = [record.frame for record in read_all(spool.directory) if record.frame]
    told = {}
    for part in parts:
        plan = plans[part.plan]
        assert len(part.values) == 4 * len(plan.series) == 4 * len(plan.counts)
        told.update({number: part.values[4 * at : 4 * at + 4] for at, number in enumerate(plan.series)})
    assert b"".join(told[number] for number in range(width)) == values
    assert [part.continued for part in parts] == [True] * (len(parts) - 1) + [False]
    assert parts[-1].plan == 0  # measured series come first in a plan, so what ends the step is a measured frame
    assert plans[last.plan].series == (0,)
    assert (last.step, last.continued) == (7, False)
    assert max(sizes(spool.directory)) <= PIECE_BYTES


def test_a_process_that_goes_on_gives_its_plans_numbers_of_their_own(tmp_path):
    spool_of(tmp_path, [8]).close()
    again = Spool(tmp_path, START)
    again.append(series=SERIES, plan=Plan(0, (1, 0)))
    again.append(frame=frame(1))

    found = read_all(again.directory)
    assert [record.plan for record in found if record.plan] == [PLAN, Plan(1, (1, 0))]
    assert [record.frame.plan for record in found if record.frame] == [0, 1]


def test_a_large_start_is_bare_and_its_outline_follows_in_every_segment(tmp_path):
    modules = tuple(Module(f"layers.{number}.experts", "Linear", "linear") for number in range(2_000))
    routing = tuple(Route(f"{module.name}.weight", "Muon", "muon", "0") for module in modules)
    start = replace(START, modules=modules, routing=routing, config={"a": "x" * 9_000, "b": 2})
    spool = Spool(tmp_path, start, budget=2 << 20)
    for step in range(50):
        spool.append(frame=frame(step, 25_000))

    found = read_all(spool.directory)
    heads = [at for at, record in enumerate(found) if record.start]
    assert len(heads) > 1
    for at in heads:
        assert (found[at].start.modules, found[at].start.config) == ((), {})
        outlines = [record.outline for record in found[at + 1 :][:100] if record.outline]
        assert sum((outline.modules for outline in outlines), ())[: len(modules)] == modules
    assert max(sizes(spool.directory)) <= PIECE_BYTES
    read = read_start(spool.directory)
    assert replace(read, config={}) == replace(start, config={})
    assert read.config == {"a": "x" * 8_192, "b": 2}


def test_a_forked_child_does_not_write(tmp_path):
    spool = spool_of(tmp_path, [8])
    pid = os.fork()
    if pid == 0:
        os._exit(int(spool.append(frame=frame(1))))

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert spool.append(frame=frame(2))
    assert steps(read_all(spool.directory)) == [0, 2]


def test_a_spool_deleted_under_its_writer_is_begun_anew(tmp_path):
    spool = spool_of(tmp_path, [8, 8])
    reader = SpoolReader(spool.directory)
    last = reader.read(-1, 1 << 20)[1]
    spool.acknowledge(3)
    for path in spool.directory.iterdir():
        path.unlink()
    spool.directory.rmdir()

    assert spool.append(frame=frame(7))
    data, _ = reader.read(last, 1 << 20)
    found = [records.decode(body) for body in records.bodies(data)]
    assert found[:3] == [Record(5, start=START), Record(6, series=SERIES), Record(7, plan=PLAN)]
    assert steps(found) == [7]
    assert spool.dropped == 1


def test_two_readers_follow_while_two_threads_write(tmp_path):
    spool = Spool(tmp_path, START, budget=1 << 20)
    total, finished = 400, threading.Event()
    results: list[list[int]] = []

    def write(first: int) -> None:
        for step in range(first, first + total):
            spool.append(frame=frame(step, 200))

    def follow() -> None:
        reader, last, seen = SpoolReader(spool.directory), -1, []
        while True:
            over = finished.is_set()
            data, last = reader.read(last, 3000)
            seen += [records.glance(body).sequence for body in records.bodies(data)]
            if over and not data:
                break
        results.append(seen)

    readers = [threading.Thread(target=follow) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 10_000)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join(PATIENCE_S)
    finished.set()
    for thread in readers:
        thread.join(PATIENCE_S)
    assert len(segment_numbers(spool.directory)) > 1
    assert results == [list(range(spool.last_sequence + 1))] * 2


PRELUDE = """
import resource, sys
from pathlib import Path
from internist.schema.wire import *
from internist.ship.spool import Spool
START = RunStart(
    version=1, run="r", attempt="a", rank=0, world_size=1, project="p", name="n", every=10, started_at_ms=1
)
def frame(step, size):
    return Frame(plan=0, step=step, measured_at_ms=step, values=bytes(size))
root = Path(sys.argv[1])
"""


def run_python(script: str, root: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(root)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_appended_before_a_kill_is_read_after_it(tmp_path):
    script = """
spool, step = Spool(root, START), 0
while True:
    spool.append(frame=frame(step, 1000))
    step += 1
    if step % 50 == 0:
        print(step, flush=True)
"""
    command = [sys.executable, "-c", PRELUDE + script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        promised = [int(writer.stdout.readline()) for _ in range(5)][-1]
        writer.send_signal(signal.SIGKILL)
        writer.wait(PATIENCE_S)

    found = steps(read_all(tmp_path / "r" / "a" / "rank-00000"))
    assert found == list(range(len(found)))
    assert len(found) >= promised
    spool = Spool(tmp_path, START)
    assert spool.append(frame=frame(5))
    assert [record.sequence for record in read_all(spool.directory)] == list(range(len(found) + 3))


def test_a_full_disk_loses_and_counts_and_a_plan_is_written_once_there_is_room(tmp_path):
    script = """
spool = Spool(root, START)
assert spool.append(frame=frame(0, 3000))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
print(spool.append(plan=Plan(3, tuple(range(4000)))), spool.append(frame=frame(1, 3000)), spool.dropped)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(spool.append(frame=frame(2, 3000)), spool.dropped, spool.last_sequence)
"""
    out = run_python(script, tmp_path)

    assert out.split("\n")[:2] == ["False False 1", "True 1 3"]
    found = read_all(tmp_path / "r" / "a" / "rank-00000")
    assert [record.sequence for record in found] == [0, 1, 2, 3]
    assert steps(found) == [0, 2]
    assert found[2].plan == Plan(3, tuple(range(4000)))


def test_a_disk_that_is_full_from_the_start_is_refused(tmp_path):
    script = """
from internist.errors import SpoolError
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    Spool(root, START)
except SpoolError as error:
    print(error)
"""
    out = run_python(script, tmp_path)

    assert out.strip() == f"cannot keep a spool in {tmp_path}/r/a/rank-00000: File too large"
    assert segment_numbers(tmp_path / "r" / "a" / "rank-00000") == []


def test_memory_does_not_grow_with_the_number_of_records(tmp_path):
    script = """
from internist.ship.reader import SpoolReader
spool = Spool(root, START, budget=4 << 20)
reader, last = SpoolReader(spool.directory), -1
def work(count):
    global last
    for step in range(count):
        spool.append(frame=frame(step, 400))
        if step % 100 == 0:
            data, last = reader.read(last, 1 << 20)
work(20_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(100_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown_kib = int(run_python(script, tmp_path))

    assert grown_kib < 2048
