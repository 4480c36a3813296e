"""The bench of faults: what it runs, what its rivals say, and one sick run through the real client and server."""

import json
from dataclasses import replace

from benchmarks.faults.alarms import loss_alarms, norm_alarms
from benchmarks.faults.bench import main
from benchmarks.faults.clinic import clinic
from benchmarks.faults.injections import KINDS
from benchmarks.faults.report import judge_fault
from benchmarks.faults.running import judge_again, run
from benchmarks.faults.trials import Fault, Trial, all_trials, faults, healthy, short_trials

CALM = [1.0, 1.1] * 50


def test_every_fault_has_its_twin_and_every_name_is_one_run():
    trials = all_trials()
    names = [trial.name for trial in trials]

    assert len(names) == len(set(names))
    assert {trial.twin.name for trial in faults()} <= set(names)
    assert {trial.name for trial in short_trials()} <= set(names)
    assert {trial.fault.kind for trial in faults() if trial.fault is not None} == set(KINDS)


def test_the_halves_share_neither_an_architecture_nor_a_seed():
    for part in ("architecture", "seed"):
        tuned, held_out = ({getattr(t, part) for t in all_trials() if t.is_held_out == half} for half in (False, True))
        assert tuned & held_out == set()
    assert len([trial for trial in healthy() if trial.is_held_out]) == len(healthy()) / 2 == 20


def test_the_loss_alarm_wants_three_in_a_row():
    assert loss_alarms([*CALM, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0, 9.0]) == [105]
    assert loss_alarms([*CALM, float("nan"), float("nan"), float("nan")]) == [102]


def test_the_gradient_norm_alarm_says_a_rise_once():
    assert norm_alarms([*CALM, 5.0, 6.0, 6.0, 1.0, float("inf")]) == [101, 104]


def test_a_weight_that_becomes_nan_is_caught_at_once_and_again_from_its_spool(tmp_path):
    well = Trial("mlp", "adamw", "constant", "plain", 7, steps=120)
    fault = Fault("nan_weight", "layers.2", 110, 111)
    sick = replace(well, fault=fault)

    with clinic(tmp_path) as server:
        twin, found = (run(trial, server, tmp_path / "spool", polls_from=100) for trial in (well, sick))

    with clinic(tmp_path / "other") as server:
        again = judge_again(found, server, tmp_path / "spool", polls_from=100)

    told = judge_fault(found, twin)
    assert twin["alerts"] == []
    assert told["opened"] == fault.first
    assert told["loss_alarm"] == fault.first + 2
    assert again == found
    assert told["firing"] == 1


def test_what_is_kept_is_not_run_again(tmp_path, capsys):
    chosen = short_trials()[:2]
    for trial in chosen:
        found = {
            "name": trial.name,
            "held_out": False,
            "alerts": [],
            "notifications": [],
            "polls": 1,
            "loss_alarms": [],
        }
        found |= {"norm_alarms": [], "judged_from": 300, "bad_polls": {"count": 0, "cards": {}, "worst": {}}}
        fault = trial.fault and {"kind": trial.fault.kind, "place": trial.fault.place, "first": trial.fault.first}
        (tmp_path / f"{trial.name}.json").write_text(json.dumps(found | {"trial": {"fault": fault}}))

    main(["--short", "--folder", str(tmp_path), "--only", f"{chosen[0].name}*"])

    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["planned"], report["made"]) == (2, 2)
    assert report["halves"]["tuned"]["faults"]["caught"] == 0
    assert "2 of 2 runs" in capsys.readouterr().out
