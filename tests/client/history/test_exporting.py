"""Runs read back from a server, and exported: other tools read what was written."""

import csv
import json
import math
import random

import pytest

import internist
from internist.errors import ConfigurationError
from internist.history.curves import Curve, History
from internist.history.exporting import export
from internist.history.importing import import_runs, read_source
from internist.schema.metrics import combine_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
STEPS = 12_000
"""More points of one series than one answer holds."""
SINGLE = 1e-6
"""Values travel as float32, some of them squared."""


@pytest.fixture(scope="module")
def history() -> History:
    draw = random.Random(0)
    losses = [draw.random() for _ in range(STEPS)]
    losses[7] = math.nan
    curves = [
        Curve("loss", steps=range(STEPS), times_ms=[1_700_000_000_000 + i for i in range(STEPS)], values=losses),
        Curve("activation.rms", "module", "blocks.0", steps=[0, 10], times_ms=[1, 2], values=[0.5, math.inf]),
        Curve("attention.max_logit", "module", "blocks.0.attn", 1, steps=[0], times_ms=[1], values=[-3.0]),
        Curve("val/acc \"%\"", steps=[3], times_ms=[5], values=[0.25]),
    ]  # fmt: skip
    return History("abc", "tiny", "shop", {"lr": 0.1}, curves, source="tests")


@pytest.fixture(scope="module")
def stored(history, server):
    """The same run, as a server holds it."""
    (imported,), report = import_runs([history], server=server)
    assert not report.refused
    with internist.read(server) as opened:
        yield opened.run(imported.run)


def same(found, expected):
    by_tag = {curve.tag: curve for curve in found}
    assert set(by_tag) == {curve.tag for curve in expected}
    for curve in expected:
        assert list(by_tag[curve.tag].steps) == list(curve.steps)
        assert list(by_tag[curve.tag].values) == pytest.approx(list(curve.values), rel=SINGLE, nan_ok=True)


def test_every_point_comes_back_from_a_server(stored, history):
    assert combine_of("activation.rms") == "mean_square"  # travels squared
    same(stored.curves(), history.curves)
    (loss,) = stored.curves(metric="loss", first=6, last=8)
    assert list(loss.steps) == [6, 7, 8] and math.isnan(loss.values[1])
    assert dict(stored.history(metric="loss").config) == {"lr": 0.1}


@pytest.mark.parametrize("format", ["jsonl", "tensorboard"])
def test_what_is_exported_is_imported_as_it_was(history, tmp_path, format):
    path = tmp_path / "out"

    assert export([history], path, format=format) == STEPS + 4
    (again,) = read_source(format, path)
    same(again.curves, history.curves)


def test_csv_has_a_row_a_point(history, tmp_path):
    export([history], tmp_path / "out.csv", format="csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))

    assert len(rows) == STEPS + 4
    assert [float(row["value"]) for row in rows if row["subject"] == "blocks.0"] == [0.5, math.inf]
    assert rows[7]["value"] == "nan"


def test_openmetrics_is_read_by_a_parser_of_it(history, tmp_path):
    from prometheus_client.openmetrics import parser

    export([history], tmp_path / "out.txt", format="openmetrics")
    families = {one.name: one for one in parser.text_string_to_metric_families((tmp_path / "out.txt").read_text())}

    assert len(families["internist_loss"].samples) == STEPS
    (logit,) = families["internist_attention_max_logit"].samples
    assert logit.value == -3.0
    assert logit.labels == {
        "run": "abc", "metric": "attention.max_logit", "kind": "module", "subject": "blocks.0.attn", "index": "1"
    }  # fmt: skip
    (accuracy,) = families["internist_val_acc____"].samples
    assert accuracy.labels["metric"] == 'val/acc "%"'


def test_parquet_and_frames_hold_the_same_points(stored, history, tmp_path):
    from pyarrow import parquet

    export([history], tmp_path / "out.parquet", format="parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == STEPS + 4
    assert table.column("value").to_pylist()[-1] == 0.25
    frame = stored.frame(metric="activation.rms", library="arrow")
    assert frame.select(["subject", "step", "value"]).to_pylist() == [
        {"subject": "blocks.0", "step": 0, "value": pytest.approx(0.5, rel=SINGLE)},
        {"subject": "blocks.0", "step": 10, "value": math.inf},
    ]
    with pytest.raises(ConfigurationError, match="library='spark': expected one of pandas, polars, arrow"):
        stored.frame(metric="loss", library="spark")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_is_that_of_the_library_that_is_asked_for(stored, library):
    frame = stored.frame(metric=["loss"], first=0, last=9, library=library)

    assert type(frame).__module__.partition(".")[0] == library
    assert list(frame["step"]) == list(range(10))


def test_an_unknown_format_is_named(history, tmp_path):
    with pytest.raises(ConfigurationError, match="format='xls': expected one of parquet"):
        export([history], tmp_path / "out", format="xls")


def test_lines_of_json_are_json(history, tmp_path):
    export([history], tmp_path / "out", format="jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]

    assert lines[7]["value"] == "nan"
    assert lines[-1]["tag"] == 'val/acc "%"'
