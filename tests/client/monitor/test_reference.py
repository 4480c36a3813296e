import msgspec
import pytest
import torch
from torch import nn

import internist
from internist.errors import ConfigurationError
from internist.monitor.reference import cut, read_file
from internist.schema.reference import Curve, Trajectory
from internist.schema.wire import PIECE_BYTES
from internist.ship.segments import read_start
from tests.client.points import records


def trajectory(curves=1):
    generator = torch.Generator().manual_seed(0)
    bins = tuple(range(40))
    made = []
    for number in range(curves):
        low, middle, high = (tuple(torch.rand(40, generator=generator).tolist()) for _ in range(3))
        made.append(Curve("activation.rms", f"mlp.fc{number}", 0.5, bins, low, middle, high))
    return Trajectory(1, "run", "proxy", 64, 2, 16.0, "mup", 400, tuple(made))


@pytest.fixture
def watched(tmp_path):
    def watch(**options):
        model = nn.Linear(2, 2)
        monitor = internist.watch(model, mode="offline", directory=tmp_path / "spool", **options)
        monitor.finish()
        return monitor

    return watch


def test_a_run_says_by_name_which_one_it_is_to_be_held_to(watched):
    start = records(watched(reference="proxy").directory)[0].start

    assert start.reference == "proxy" and start.trajectory == ()


def test_a_reference_from_a_file_travels_in_records_that_pass_anywhere_and_comes_out_as_it_was(watched, tmp_path):
    path, whole = tmp_path / "proxy.json", trajectory(curves=60)
    path.write_bytes(msgspec.json.encode(whole))

    monitor = watched(reference=path)
    start = read_start(monitor.directory)

    assert read_file(path) == whole
    assert start.reference == "proxy" and start.trajectory == cut(whole) and len(start.trajectory) > 1
    assert all(len(msgspec.msgpack.encode(record)) <= PIECE_BYTES for record in records(monitor.directory))


def test_a_name_that_is_no_file_is_a_name_and_a_newer_file_is_refused(tmp_path):
    path = tmp_path / "newer.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(trajectory()) | {"version": 99}))

    assert read_file("some-run") is None
    with pytest.raises(ConfigurationError, match="version 99, and this client knows up to 1"):
        read_file(path)
