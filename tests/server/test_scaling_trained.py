"""From the hooks to the sentence: real small models of three widths, trained under `watch`, told from each other."""

import httpx
import pytest

from tests.dashboard.serving import served
from tests.server.scaled_runs import train

WIDTHS, SEEDS = (128, 256, 512), (0, 1, 2)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The reports on a family in the standard parametrisation and on one in muP, and the list of families."""
    with served(tmp_path_factory.mktemp("trained")) as address:
        reports = {}
        for is_mup in (False, True):
            runs = [
                train(address, width, mup=is_mup, seed=seed, directory=tmp_path_factory.mktemp("spool"))
                for width in WIDTHS
                for seed in SEEDS
            ]
            reports[is_mup] = get(address, runs=runs)["report"]
        yield reports, get(address)


def get(address, **query):
    answer = httpx.get(f"{address}/api/v1/scaling", params=query, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def early(report, label):
    return next(one for one in report["exponents"] if one["label"] == label)


def test_every_run_is_read_with_its_width_its_seed_and_its_optimizer(answers):
    reports, _ = answers

    for report in reports.values():
        assert [(m["width"], m["seed"]) for m in report["family"]] == [(w, s) for w in WIDTHS for s in SEEDS]
        assert {(m["depth"], m["optimizer"]) for m in report["family"]} == {(2, "adamw")}
        assert report["excluded"] == []


def test_the_standard_parametrisation_is_diagnosed_hidden_rate_first(answers):
    report = answers[0][False]

    first = report["diagnoses"][0]
    assert report["verdict"] == "FAIL"
    assert first["causes"][0]["sentence"] == "the hidden learning rate is not divided by the width ratio"
    assert "under AdamW" in first["sentence"] and first["causes"][0]["evidence"]
    assert early(report, "hidden matrices")["exponent"] > 0.5
    assert any(
        "head" in cause["id"] or "head" in cause["sentence"] for d in report["diagnoses"] for cause in d["causes"]
    )


def test_mup_is_not_accused(answers):
    report = answers[0][True]

    assert report["verdict"] != "FAIL" and report["diagnoses"] == []
    assert early(report, "hidden matrices")["verdict"] == "PASS"
    assert abs(early(report, "logits' change")["exponent"]) < 0.1


def test_the_two_are_two_families_although_nobody_declared_a_parametrisation(answers):
    families = answers[1]["families"]

    assert [len(family["runs"]) for family in families] == [9, 9]
    assert {family["name"].rpartition(" · ")[2] for family in families} == {"mup False", "mup True"}
