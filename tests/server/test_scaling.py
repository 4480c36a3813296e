"""The scaling check over the API: families are found, reports made of what runs recorded, nonsense refused in words."""

import math

import pytest
from starlette.testclient import TestClient

from internist.schema.scaling import FEWEST_SIZES
from internist.schema.wire import Plan
from internist_server.app import create_app
from internist_server.settings import Settings
from tests.server.families import WIDTHS, declare, hidden_too_fast, mup, send_family, send_run
from tests.server.sending import Sender, start_of

TOLERANCE = 0.05
"""Values carry 1 % of noise over a factor of four in width."""
PATH = "/api/v1/scaling"
_STREAM = ("activation.rms", "block")


def report_of(api, *runs, **query):
    answer = api.get(PATH, params={"runs": list(runs), **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["report"]


def exponent(report, label, axis="width"):
    return next(one for one in report["exponents"] if one["label"] == label and one["axis"] == axis)


def test_a_correct_family_passes_and_has_no_diagnosis(api):
    runs = send_family(api)

    report = report_of(api, *runs)

    assert (report["verdict"], report["diagnoses"], report["excluded"]) == ("PASS", [], [])
    assert [(member["run"], member["width"]) for member in report["family"]] == list(zip(runs, WIDTHS, strict=True))
    assert exponent(report, "logits at init")["exponent"] == pytest.approx(-0.5, abs=TOLERANCE)


def test_an_unscaled_hidden_rate_is_named_first(api):
    report = report_of(api, *send_family(api, law=hidden_too_fast))

    hidden = exponent(report, "hidden matrices")
    assert (report["verdict"], hidden["verdict"]) == ("FAIL", "FAIL")
    assert hidden["exponent"] == pytest.approx(1.0, abs=TOLERANCE)
    assert hidden["sizes"] == list(WIDTHS) and hidden["members"] == ["w128", "w256", "w512"]
    assert "the hidden learning rate is not divided by the width ratio" in report["diagnoses"][0]["sentence"]


def test_depth_has_exponents_of_its_own(sqlite_api):
    runs = [send_run(sqlite_api, f"d{depth}", width=128, depth=depth).run for depth in (2, 4, 8)]

    report = report_of(sqlite_api, *runs)

    assert report["verdict"] == "PASS"
    assert {one["axis"] for one in report["exponents"]} == {"depth"}
    share = exponent(report, "first block's contribution at init", axis="depth")
    assert (share["expected"], share["exponent"]) == (-1.0, pytest.approx(-1.0, abs=TOLERANCE))


def test_growth_that_begins_late_is_found_from_whole_runs(sqlite_api):
    def grows_late(series, r_n, r_L, step):
        is_grown = series.metric == "weight.operator_norm" or (series.metric, series.facts.role) == _STREAM
        return mup(series, r_n, r_L, step) * (r_n**0.5 if is_grown and step > 600 else 1)

    steps = [*range(12), *range(20, 1001, 20)]
    report = report_of(sqlite_api, *send_family(sqlite_api, law=grows_late, steps=steps))

    late = exponent(report, "late growth of hidden weights")
    assert (late["verdict"], late["exponent"]) == ("FAIL", pytest.approx(0.5, abs=TOLERANCE))
    assert exponent(report, "hidden weights at init")["verdict"] == "PASS"
    assert "late in the run" in report["diagnoses"][0]["sentence"]


def test_without_runs_the_families_are_listed_and_the_only_one_is_reported(api):
    runs = send_family(api)
    send_run(api, "alone", width=96, vocabulary=32)

    answer = api.get(PATH).json()

    (family,) = answer["families"]
    assert [member["run"] for member in family["runs"]] == runs
    assert (family["widths"], family["depths"], family["checkable"]) == (list(WIDTHS), [2], True)
    assert answer["family"] == family["id"] and answer["report"]["verdict"] == "PASS"
    assert api.get(family["url"]).json()["report"] == answer["report"]


def test_families_are_parted_by_project_and_by_what_was_swept_and_not_by_what_follows_the_size(sqlite_api):
    for rate in (1e-3, 3e-3):
        send_family(sqlite_api, prefix=f"r{rate}-", config={"lr": rate, "path": f"/runs/{rate}"})
    send_family(sqlite_api, prefix="other-", project="elsewhere")

    answer = sqlite_api.get(PATH).json()

    assert {(f["project"], len(f["runs"])) for f in answer["families"]} == {("tests", 3), ("elsewhere", 3)}
    assert {"lr 0.001", "lr 0.003"} <= {part for f in answer["families"] for part in f["name"].split(" · ")}
    assert answer["report"] is None and answer["family"] is None
    assert len(sqlite_api.get(PATH, params={"project": "elsewhere"}).json()["families"]) == 1


def test_seeds_are_members_of_one_family(sqlite_api):
    for seed in (0, 1):
        send_family(sqlite_api, prefix=f"s{seed}-", seed=seed, config={"data_seed": seed})

    (family,) = sqlite_api.get(PATH).json()["families"]

    assert [(m["width"], m["seed"]) for m in family["runs"]] == [(w, s) for w in WIDTHS for s in (0, 1)]


def test_a_family_keeps_its_id_when_a_run_joins_and_its_report_follows(sqlite_api):
    send_family(sqlite_api)
    before = sqlite_api.get(PATH).json()

    send_run(sqlite_api, "w1024", width=1024)
    after = sqlite_api.get(PATH, params={"family": before["family"]}).json()

    assert [member["width"] for member in after["report"]["family"]] == [*WIDTHS, 1024]


def test_a_run_that_goes_on_is_read_again(sqlite_api):
    runs = send_family(sqlite_api, widths=WIDTHS[:2])
    third = send_run(sqlite_api, "w512", width=512, steps=(0,))
    before = exponent(report_of(sqlite_api, *runs, third.run), "hidden matrices, first rounds")["values"]

    third.send([third.frame(1, [81.0] * len(declare(512, 2)[0]))])
    after = exponent(report_of(sqlite_api, *runs, third.run), "hidden matrices, first rounds")["values"]

    assert (before[2], after[2]) == (pytest.approx(1, rel=0.1), pytest.approx(3, rel=0.1))  # of 1 and sqrt(81)


def test_runs_may_be_named_by_a_name_that_only_one_has(sqlite_api):
    runs = send_family(sqlite_api)
    for width, run in zip(WIDTHS, runs, strict=True):
        assert run == f"w{width}"
    send_run(sqlite_api, "id-a", width=1024, display="big one")

    report = report_of(sqlite_api, *runs, "big one")
    send_run(sqlite_api, "id-b", width=1024, display="big one", seed=1)
    refused = sqlite_api.get(PATH, params={"runs": [*runs, "big one"]})

    assert report["family"][-1]["run"] == "id-a"
    assert refused.status_code == 422
    assert "2 runs are called 'big one'" in refused.json()["detail"] and "id-b" in refused.json()["detail"]


def test_members_of_one_name_are_told_apart(sqlite_api):
    runs = [send_run(sqlite_api, f"id-{w}", width=w, display="same").run for w in WIDTHS]

    names = [member["name"] for member in report_of(sqlite_api, *runs)["family"]]

    assert names == [f"same {run[:8]}" for run in runs]


@pytest.mark.parametrize("widths", [(128,), (128, 256)])
def test_fewer_than_three_sizes_are_refused_and_it_is_said_how_many_are_missing(api, widths):
    answer = api.get(PATH, params={"runs": send_family(api, widths=widths)})

    assert answer.status_code == 422
    missing = FEWEST_SIZES - len(widths)
    assert f"{missing} more width{'s' if missing > 1 else ''}" in answer.json()["detail"]


def test_a_family_that_is_too_small_is_listed_with_what_is_missing(sqlite_api):
    send_family(sqlite_api, widths=WIDTHS[:2])

    answer = sqlite_api.get(PATH).json()

    assert [family["checkable"] for family in answer["families"]] == [False]
    assert "1 more width" in answer["families"][0]["reason"] and answer["report"] is None


def test_sizes_that_differ_in_another_thing_are_refused_and_the_fact_is_named(api):
    runs = send_family(api, widths=WIDTHS[:2])
    runs.append(send_run(api, "w512", width=512, vocabulary=96).run)

    answer = api.get(PATH, params={"runs": runs})

    assert answer.status_code == 422
    assert "vocabulary" in answer.json()["detail"] and "96" in answer.json()["detail"]


def test_an_unknown_run_is_not_found_and_the_nearest_is_offered(api):
    runs = send_family(api)

    answer = api.get(PATH, params={"runs": [*runs[:2], "w51"]})

    assert answer.status_code == 404
    assert answer.json()["detail"] == "there is no run 'w51' on this server; did you mean 'w512'?"


def test_a_run_with_nan_is_left_out_by_name(api):
    runs = send_family(api)
    lost = send_run(api, "lost", width=1024, spoil=lambda one, step: one.metric == "activation.rms" and step > 3).run

    report = report_of(api, *runs, lost)

    (left_out,) = report["excluded"]
    assert (left_out["run"], left_out["name"]) == (lost, "lost")
    assert "NaN" in left_out["reason"]
    assert report["verdict"] == "PASS" and len(report["family"]) == len(WIDTHS)


def test_only_the_newest_attempt_counts_and_what_it_continues(sqlite_api):
    runs = send_family(sqlite_api, widths=WIDTHS[:2])
    send_run(sqlite_api, "w512", width=512, spoil=lambda _one, step: step >= 6)
    resumed = {"attempt": "w512-b", "parent": "w512-a", "start_step": 6, "started_at_ms": 1_800_000_000_000}
    send_run(sqlite_api, "w512", width=512, steps=range(6, 12), **resumed)

    report = report_of(sqlite_api, *runs, "w512")

    assert (report["excluded"], report["verdict"]) == ([], "PASS")
    assert len(exponent(report, "logits at init")["values"]) == len(WIDTHS)


def test_a_run_that_has_measured_nothing_yet_is_left_out(sqlite_api):
    runs = send_family(sqlite_api)
    Sender(sqlite_api, start_of("young", name="young"))

    report = report_of(sqlite_api, *runs, "young")

    assert [(one["name"], one["reason"]) for one in report["excluded"]] == [
        ("young", "nothing that the check uses has been measured yet")
    ]
    assert sqlite_api.get(PATH).json()["excluded"] == []


def test_a_finished_run_that_was_measured_rarely_is_read_where_it_was_measured(sqlite_api):
    """Matrices are measured every few hundred steps: the late window must not step over them."""

    def grows(series, r_n, r_L, step):
        return mup(series, r_n, r_L, step) * (2.0 if series.metric == "weight.operator_norm" and step > 100 else 1.0)

    runs = []
    for width in WIDTHS:
        sender = send_run(sqlite_api, f"w{width}", width=width, steps=(0, 1, 2), law=grows)
        light, heavy = plans_of(sender)
        frames = [sender.frame(s, [1.0] * light, plan=1) for s in range(10, 2000, 10) if s != 1910]
        sender.send([*frames, sender.frame(1910, [2.0] * heavy, plan=2), sender.finish(2000)])
        runs.append(sender.run)

    late = exponent(report_of(sqlite_api, *runs), "late growth of hidden weights")

    assert all(value == pytest.approx(2.0, rel=0.1) for value in late["values"]) and len(late["values"]) == 3


def plans_of(sender):
    """Declare a plan without and a plan with the matrices; how many series each has."""
    series, _, _ = declare(sender.start.config["width"], 2)
    light = [one.number for one in series if one.metric == "activation.rms"]
    heavy = [one.number for one in series if one.metric == "weight.operator_norm"]
    sender.send([sender.record(plan=Plan(1, tuple(light))), sender.record(plan=Plan(2, tuple(heavy)))])
    return len(light), len(heavy)


def test_runs_and_a_family_at_once_and_an_unknown_family_are_refused(sqlite_api):
    runs = send_family(sqlite_api)

    both = sqlite_api.get(PATH, params={"runs": runs, "family": "x"})
    unknown = sqlite_api.get(PATH, params={"family": "x"})

    assert (both.status_code, unknown.status_code) == (422, 404)
    assert "not both" in both.json()["detail"] and "'x'" in unknown.json()["detail"]


def test_too_many_runs_are_refused(sqlite_api):
    assert sqlite_api.get(PATH, params={"runs": ["r"] * 600}).status_code == 422


def test_an_interval_that_is_not_known_is_text_in_json(sqlite_api):
    report = report_of(sqlite_api, *send_family(sqlite_api))

    numbers = [one[key] for one in report["exponents"] for key in ("low95", "high95", "curvature", "exponent")]
    assert all(x is None or x in ("nan", "inf", "-inf") or math.isfinite(x) for x in numbers)


def test_the_check_asks_for_the_token(sqlite_url):
    with TestClient(
        create_app(Settings(database_url=sqlite_url, token="s3cret"), board=False), base_url="http://localhost"
    ) as client:
        assert client.get(PATH).status_code == 401
        allowed = client.get(PATH, headers={"Authorization": "Bearer s3cret"})

    assert allowed.status_code == 200 and allowed.json()["families"] == []
