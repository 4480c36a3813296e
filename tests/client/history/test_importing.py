"""Runs of other tools, from files that these tools wrote themselves."""

import json
import math

import pytest

from internist.errors import ConfigurationError
from internist.history.curves import Curve
from internist.history.importing import import_runs, read_source
from internist.history.reading import read
from tests.client.history.conftest import RECORDED

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb"),
]


def values_of(history):
    return {curve.tag: dict(zip(curve.steps, curve.values, strict=True)) for curve in history.curves}


def test_event_files_of_tensorboard_are_runs_by_directory(tensorboard_files):
    first, second = read_source("tensorboard", tensorboard_files)

    assert (first.name, first.project, second.name) == ("first", "shop", "second")
    assert values_of(first)["loss"] == pytest.approx({step: 2.0 - step / 10 for step in range(6)})
    assert math.isnan(values_of(second)["loss"][5])
    assert values_of(second)["val/acc"] == pytest.approx({step: step / 10 for step in range(6)})
    assert first.curves[0].times_ms[1] == 1_700_000_001_000


def test_offline_runs_of_wandb_have_their_config_and_their_steps(wandb_directory):
    (history,) = read_source("wandb", wandb_directory)

    assert (history.name, history.project, history.outcome) == ("tiny", "shop", "finished")
    assert history.config == {"lr": 1e-3, "opt.name": "adamw"}
    values = values_of(history)
    assert math.isnan(values["loss"].pop(4))
    assert values["loss"] == {0: 2.0, 1: 1.9, 2: 1.8, 3: 1.7, 10: 1.0}
    assert values["nested/a"] == {step: float(step) for step in range(5)}
    assert values["filler_1499"] == {11: 0.5}


def test_a_torn_file_of_wandb_gives_what_is_whole_and_a_damaged_one_is_named(wandb_directory, tmp_path):
    data = next(wandb_directory.rglob("run-*.wandb")).read_bytes()
    torn, damaged = tmp_path / "run-torn.wandb", tmp_path / "run-damaged.wandb"
    torn.write_bytes(data[: len(data) // 2])
    damaged.write_bytes(data[:40] + b"\xff" + data[41:])

    (history,) = read_source("wandb", torn)
    assert history.outcome == "killed"
    assert history.curves
    with pytest.raises(ConfigurationError, match="is damaged at byte 7"):
        read_source("wandb", damaged)


@pytest.mark.parametrize("store", ["files", "database"])
def test_stores_of_mlflow_are_read_without_it(mlflow_database, store):
    histories = read_source("mlflow", RECORDED / "mlruns" if store == "files" else mlflow_database)
    by_name = {history.name: history for history in histories}

    assert {name: history.outcome for name, history in by_name.items()} == {"tiny": "finished", "broken": "failed"}
    assert by_name["tiny"].project == "shop"
    assert by_name["tiny"].config == {"lr": "0.001", "opt/name": "adamw"}
    assert values_of(by_name["tiny"])["loss"] == pytest.approx({0: 2.0, 1: 1.9, 2: 1.8, 3: 1.7})
    assert math.isnan(values_of(by_name["broken"])["loss"][4])
    assert values_of(by_name["broken"])["acc"][2] == math.inf


def test_lines_of_json_are_named_by_the_caller_and_bad_ones_by_their_place(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "nll": 2.0, "time": 1.5}\n\n{"step": 2, "nll": "NaN", "note": "x", "ok": true}\n')

    (history,) = read_source("jsonl", path, names={"nll": "loss"})
    assert history.curves[0].metric == "loss"
    assert history.curves[0].steps == [1, 2] and math.isnan(history.curves[0].values[1])
    assert len(history.curves) == 1
    path.write_text('{"step": 1, "loss": 1}\n{"loss": 2}\n')
    with pytest.raises(ConfigurationError, match=r"log.jsonl:2: expected a whole number under one of step"):
        read_source("jsonl", path)


@pytest.mark.parametrize(
    ("tag", "curve"),
    [
        ("train/loss", Curve("loss")),
        ("activation.rms/blocks.0", Curve("activation.rms", "module", "blocks.0")),
        ("attention.max_logit/blocks.0.attn[3]", Curve("attention.max_logit", "module", "blocks.0.attn", 3)),
        ("lr", Curve("learning_rate", "group", "0")),
        ("activation.rms", Curve("activation.rms")),
        ("loss/of/mine", Curve("loss/of/mine")),
    ],
)
def test_names_of_the_catalogue_are_understood_and_others_kept(tmp_path, tag, curve):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 0, tag: 1.0}))

    (found,) = read_source("jsonl", path)[0].curves
    assert (found.metric, found.kind, found.subject, found.index) == (
        curve.metric, curve.kind, curve.subject, curve.index,
    )  # fmt: skip


@pytest.mark.parametrize("source", ["tensorboard", "wandb", "mlflow"])
def test_a_directory_without_runs_is_named_with_what_was_expected(tmp_path, source):
    with pytest.raises(ConfigurationError, match=f"{tmp_path} holds no .*(tfevents|wandb|meta.yaml)"):
        read_source(source, tmp_path)


def test_what_is_imported_is_judged_and_a_second_import_adds_nothing(server, tensorboard_files):
    histories = read_source("tensorboard", tensorboard_files)

    imported, report = import_runs(histories, server=server, project="shop")
    assert report.stored and not report.refused
    _, again = import_runs(histories, server=server, project="shop")
    assert again.stored == 0
    with read(server) as opened:
        first, second = (opened.run(one.run) for one in imported)
        assert (first.view.state, first.view.last_step, first.view.project) == ("finished", 5, "shop")
        assert first.view.verdict == "not measured"
        assert second.view.verdict == "violated"
        assert [(one.metric, one.condition) for one in second.verdicts().members if one.state == "violated"] == [
            ("loss", "numeric")
        ]
        assert opened.run("first").id == first.id
        with pytest.raises(ConfigurationError, match="no run 'third', by id or by name"):
            opened.run("third")
