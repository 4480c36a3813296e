import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from internist.schema.wire import CoverageEntry, Module, Series
from internist_server.store.numbers import numbers
from internist_server.store.thinning import bucket_starts, strongest, thin
from tests.server.sending import Sender, module_series, start_of
from tests.server.sick_runs import EVERY, faulty_block, frames, small_model

LONG = range(0, 1500, EVERY)


@pytest.fixture
def sick(api):
    """A run whose block 1 moved 30 times too far at steps 1000 to 1100."""
    sender = Sender(api)
    sender.send(sender.declare(small_model()))
    sender.send(frames(sender, LONG, faulty_block(1, first=1000, last=1100)))
    return sender


def test_a_window_holds_the_steps_asked_for(sick):
    assert list(sick.points("update.own", from_step=100, to_step=130)) == [100, 110, 120, 130]
    assert list(sick.points("update.own", after=1470)) == [1480, 1490]


def test_a_one_step_spike_is_never_thinned_away(api):
    sender = Sender(api)
    sender.send(sender.declare([module_series(0, "activation.rms_max", "a")]))
    sender.send([sender.frame(step, [99.0 if step == 777 else 1.0]) for step in range(1000)])

    for pixels in (1, 7, 50):
        window = sender.get("/points", metric="activation.rms_max", pixels=pixels)["windows"][0]
        assert window["thinned"]
        assert len(window["steps"]) <= pixels
        assert max(window["high"]) == 99.0
        assert window["steps"][-1] == 999


def test_points_carry_their_band(sick):
    window = sick.get("/points", metric="update.own", subject=r"blocks\.1", from_step=1000)["windows"][0]

    band = window["band"]
    assert band["basis"] == "baseline"
    assert band["centre"][0] == pytest.approx(0.01, rel=0.05)
    assert set(band["warn_high"]) == set(band["warn_low"]) == {None}
    assert band["critical_high"][0] >= 3.9 * band["centre"][0]
    assert band["critical_low"][0] <= band["centre"][0] / 3.9
    assert window["values"][0] > band["critical_high"][0]
    asked = {"metric": "update.own", "subject": r"blocks\.1", "from_step": 1000, "bands": "false"}
    assert sick.get("/points", **asked)["windows"][0] == window | {"band": None}


def test_another_run_s_series_are_not_told_of(sick):
    other = Sender(sick.api, start_of(run="run2", attempt="run2-a"))
    other.send(other.declare(small_model()[:1]))
    theirs = sick.get("/series", limit=1)["series"][0]["id"]

    answer = sick.api.get(f"/api/v1/runs/{other.run}/points", params={"series": theirs})

    assert answer.status_code == 422 and f"has no series {theirs}" in answer.text


def test_the_band_that_is_drawn_is_the_one_that_was_judged_and_is_sent(sick):
    alert = sick.api.get("/api/v1/alerts", params={"run": sick.run, "condition": "update"}).json()["alerts"][-1]
    window = sick.get("/points", series=[alert["series"]])["windows"][0]
    drawn = {
        step: (low, high)
        for step, low, high in zip(
            window["steps"], window["band"]["critical_low"], window["band"]["critical_high"], strict=True
        )
    }
    values = dict(zip(window["steps"], window["values"], strict=True))

    assert drawn[alert["closed_step"]] == (alert["band_low"], alert["band_high"])
    out = [
        step for step in values if drawn[step][1] is not None and not drawn[step][0] <= values[step] <= drawn[step][1]
    ]
    assert (out[0], out[-1]) == (1000, 1100)


def test_the_board_shows_the_band_that_is_drawn(sick):
    board = sick.get("/verdicts")
    judged = [one for one in board["members"] if one["basis"] == "baseline"]
    drawn = {
        one["series"]["id"]: (one["band"]["critical_low"][-1], one["band"]["critical_high"][-1])
        for one in sick.get("/points", series=[one["series"] for one in judged])["windows"]
    }

    assert judged and {one["series"]: (one["band_low"], one["band_high"]) for one in judged} == drawn


def test_a_target_band_is_exact(api):
    sender = Sender(api)
    sender.send(sender.declare([module_series(0, "attention.max_logit", "blocks.0.attn", index=3, role="attention")]))
    sender.send([sender.frame(step, [12.0]) for step in (0, 10)])

    window = sender.get("/points", metric="attention.max_logit", index=3)["windows"][0]

    assert (window["band"]["basis"], window["band"]["warn_high"]) == ("target", [100.0, 100.0])
    assert window["band"]["critical_high"] == [1000.0, 1000.0]
    assert window["band"]["warn_low"] == [None, None]


def test_points_are_chosen_by_id_in_the_order_asked_for(sick):
    ids = [one["id"] for one in sick.get("/series", metric="update.own")["series"]]

    page = sick.get("/points", series=[ids[2], ids[0]])

    assert [one["series"]["subject"] for one in page["windows"]] == ["blocks.2.fc", "blocks.0.fc"]
    assert (page["first_step"], page["last_step"]) == (0, 1490)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("points", "name the series"),
        ("points?series=999999", "no series 999999"),
        ("points?metric=update.own&subject=(", "no regular expression"),
        ("points?metric=update.own&pixels=0", "greater than or equal to 1"),
        ("points?metric=update.own&from_step=-1", "greater than or equal to 0"),
        ("heatmap?collapse=rows", "blocks"),
        ("series?kind=thing", "kind"),
        ("series?subject=" + "a" * 300, "at most 200"),
        ("heatmap?subject=(", "no regular expression"),
    ],
)
def test_a_question_that_makes_no_sense_is_422(sqlite_api, path, reason):
    sender = Sender(sqlite_api)

    answer = sqlite_api.get(f"/api/v1/runs/{sender.run}/{path}")

    assert answer.status_code == 422
    assert reason in answer.json()["detail"]


@pytest.mark.parametrize("path", ["", "/verdicts", "/series", "/points?metric=a", "/heatmap", "/coverage", "/stream"])
def test_an_unknown_run_is_404_everywhere(sqlite_api, path):
    answer = sqlite_api.get(f"/api/v1/runs/nowhere{path}")

    assert (answer.status_code, answer.json()["error"]) == (404, "run_not_found")


def test_the_heat_map_shows_blocks_in_forward_order_and_how_far_they_were(sick):
    heatmap = sick.get("/heatmap", metric="update.own", from_step=900)

    assert [row["subject"] for row in heatmap["rows"]] == ["blocks.0", "blocks.1", "blocks.2"]
    assert heatmap["basis"] == "baseline"
    worst = max(heatmap["rows"][1]["ratios"])
    assert worst == pytest.approx(np.log2(30), abs=0.3)
    assert heatmap["rows"][1]["values"][heatmap["rows"][1]["ratios"].index(worst)] == pytest.approx(0.3, rel=0.2)
    assert max(map(abs, heatmap["rows"][0]["ratios"])) < 1


def test_thinning_a_heat_map_keeps_what_is_largest(sick):
    full = sick.get("/heatmap", metric="update.own")["rows"][1]["ratios"]
    thin_map = sick.get("/heatmap", metric="update.own", pixels=5)

    assert len(thin_map["steps"]) <= 5
    assert max(thin_map["rows"][1]["ratios"]) == max(one for one in full if one is not None)


def test_a_heat_map_opens_blocks_into_modules(api):
    sender = Sender(api)
    heads = [module_series(n, "attention.max_logit", "blocks.0.attn", index=n, role="attention") for n in range(4)]
    heads.append(module_series(4, "attention.max_logit", "blocks.0.cross", index=0, role="attention"))
    sender.send([*sender.declare(heads), sender.frame(0, [1, 2, 300, 4, 5]), sender.frame(10, [1, 2, 3, np.inf, 5])])

    blocks = sender.get("/heatmap", metric="attention.max_logit")["rows"]
    modules = sender.get("/heatmap", metric="attention.max_logit", collapse="modules")["rows"]

    assert [(row["subject"], row["values"], len(row["series"])) for row in blocks] == [("blocks.0", [300.0, "inf"], 5)]
    assert [row["subject"] for row in modules] == ["blocks.0.attn", "blocks.0.cross"]
    assert blocks[0]["ratios"][1] == "inf"


def test_a_heat_map_of_what_matches_has_the_first_rows_of_it_and_says_how_many_there_are(sick):
    whole = sick.get("/heatmap", metric="update.own", collapse="modules")
    found = sick.get("/heatmap", metric="update.own", subject=r"blocks\.[12]", limit=1)
    opened = sick.get("/heatmap", metric="update.own", opened="blocks.1")

    matching = [row for row in whole["rows"] if row["subject"].startswith(("blocks.1", "blocks.2"))]
    assert (found["rows"], found["total"]) == (matching[:1], len(matching))
    assert [row["subject"].count(".") for row in opened["rows"]] == [1, 2, 1]
    assert opened["rows"][1] == matching[0]


def test_a_run_without_points_has_empty_views(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send(sender.declare(small_model()))

    assert sender.get("/heatmap")["steps"] == []
    assert sender.get("/points", metric="update.own")["windows"][0]["steps"] == []
    assert sender.get("/series", limit=1)["series"][0]["last_step"] is None
    assert sender.get("/verdicts")["state"] == "not measured"
    assert sender.get()["verdict"] == "not measured"


def test_series_are_found_by_metric_subject_and_kind(sick):
    assert sick.get("/series", subject="blocks.2", metric="update.own")["total"] == 1
    assert sick.get("/series", kind="group")["series"][0]["metric"] == "learning_rate"
    page = sick.get("/series", limit=2, offset=3)
    assert (len(page["series"]), page["total"]) == (2, 13)
    assert page["series"][0]["last_step"] == 1490


def test_of_more_series_than_are_asked_for_the_largest_of_each_subject_may_be_preferred(sqlite_api):
    sender = Sender(sqlite_api)
    heads = [
        module_series(4 * layer + head, "attention.max_logit", f"blocks.{layer}.attn", index=head, role="attention")
        for layer in range(2)
        for head in range(4)
    ]
    sender.send([*sender.declare(heads), sender.frame(0, [1, 9, 3, 8, 5, np.nan, 7, 6])])

    page = sender.get("/series", metric="attention.max_logit", limit=4, prefer="largest")
    all_of_them = sender.get("/series", metric="attention.max_logit", limit=8, prefer="largest")

    assert [(one["subject"], one["index"]) for one in page["series"]] == [
        ("blocks.0.attn", 1), ("blocks.0.attn", 3), ("blocks.1.attn", 1), ("blocks.1.attn", 2),
    ]  # fmt: skip
    assert page["total"] == 8 and len(all_of_them["series"]) == 8


def test_a_resumed_run_keeps_both_histories_and_shows_the_newest(api):
    sender = Sender(api)
    sender.send(sender.declare(small_model()[:1]))
    sender.send([sender.frame(step, [1.0]) for step in range(0, 100, 10)])
    resumed = Sender(
        api, start_of(attempt="run1-b", parent="run1-a", start_step=50, started_at_ms=sender.start.started_at_ms + 1)
    )
    resumed.send(resumed.declare(small_model()[:1]))
    resumed.send([resumed.frame(step, [2.0]) for step in range(50, 80, 10)])

    shown, old = sender.points("update.own"), sender.points("update.own", attempt="run1-a")

    assert shown == {step: 1.0 if step < 50 else 2.0 for step in range(0, 80, 10)}
    assert old == dict.fromkeys(range(0, 100, 10), 1.0)
    assert [one["id"] for one in sender.get()["attempts"]] == ["run1-a", "run1-b"]


def test_a_resumed_run_is_judged_by_its_parents_baselines(api):
    sender = Sender(api)
    sender.send(sender.declare(small_model()))
    sender.send(frames(sender, LONG))
    resumed = Sender(
        api, start_of(attempt="run1-b", parent="run1-a", start_step=1500, started_at_ms=sender.start.started_at_ms + 1)
    )
    resumed.send(resumed.declare(small_model()))

    resumed.send(frames(resumed, [1500, 1510, 1520], faulty_block(1, first=0, last=9999, feature=False)))

    worst = resumed.get("/verdicts")["members"][0]
    assert (worst["state"], worst["subject"], worst["basis"]) == ("violated", "blocks.1.fc", "baseline")


def test_coverage_says_what_is_measured_in_the_order_of_the_outline(api):
    modules = (Module("b", "Linear", "linear"), Module("a", "Linear", "linear"))
    sender = Sender(api, start_of(modules=modules))
    entries = [
        CoverageEntry("module", "a", "silent", "never called"),
        CoverageEntry("module", "b", "measured"),
        CoverageEntry("parameter", "b.weight", "excluded"),
    ]
    sender.send([sender.record(coverage=tuple(entries))])
    sender.send([sender.record(coverage=(CoverageEntry("module", "a", "frozen", "no gradient wanted"),))])

    coverage = sender.get("/coverage")

    assert [(one["subject"], one["state"]) for one in coverage["entries"]] == [
        ("b", "measured"),
        ("b.weight", "excluded"),
        ("a", "frozen"),
    ]
    assert (coverage["share"], coverage["counts"]) == (1.0, {"measured": 1, "excluded": 1, "frozen": 1})
    assert [one["name"] for one in coverage["modules"]] == ["b", "a"]


def test_runs_are_found_by_project_and_part_of_their_name(api):
    for number, name in enumerate(["alpha_1", "beta", "alphaX1"]):
        Sender(api, start_of(f"run{number}", name=name, project="p" if number else "q"))

    def names(**params):
        return sorted(one["name"] for one in api.get("/api/v1/runs", params=params).json())

    assert names(name="alpha") == ["alphaX1", "alpha_1"]
    assert names(name="a_1") == ["alpha_1"]
    assert names(project="p") == ["alphaX1", "beta"]
    assert names(name="run1") == ["beta"]
    assert len(names(limit=2)) == 2


def test_the_runs_table_knows_loss_rate_and_speed(api):
    sender = Sender(api)
    series = [
        Series(0, "loss", "model", ""),
        Series(1, "learning_rate", "group", "g"),
        Series(2, "monitor.overhead_ms", "model", ""),
    ]
    sender.send(sender.declare(series))
    sender.send([sender.frame(step, [3.0, 0.001, 5.0]) for step in range(0, 50, 10)])
    sender.send([sender.frame(50, [np.nan, 0.001, 5.0])])

    run = sender.get()

    assert (run["loss"], run["steps_per_second"]) == ("nan", 10.0)
    assert run["learning_rate"] == pytest.approx(0.001)
    assert run["overhead"] == pytest.approx(0.005)
    assert (run["verdict"], run["violated"]) == ("violated", 1)


steps_and_values = st.integers(1, 300).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(0, 10_000), min_size=size, max_size=size, unique=True).map(sorted),
        arrays.arrays(np.float32, size, elements=st.floats(width=32)),
        st.integers(1, 50),
    )
)


@given(steps_and_values)
def test_thinning_keeps_every_extreme_and_counts_every_point_that_is_not_finite(case):
    steps, values, pixels = np.array(case[0], dtype=np.int64), case[1], case[2]

    thinned = thin(steps, values, pixels)

    finite = values[np.isfinite(values)]
    assert len(thinned.picks) <= max(pixels, 0) or len(steps) <= pixels
    assert thinned.nonfinite.sum() == len(values) - len(finite)
    if len(finite):
        assert np.nanmin(thinned.low) == finite.min()
        assert np.nanmax(thinned.high) == finite.max()
    else:
        assert np.isnan(thinned.low).all()


@given(arrays.arrays(np.float32, (37, 3), elements=st.floats(0, 1e6, width=32)), st.integers(1, 40))
def test_the_strongest_of_each_bucket_is_its_maximum(magnitudes, pixels):
    starts = bucket_starts(np.arange(37), pixels)

    picks = strongest(magnitudes, starts)

    np.testing.assert_array_equal(magnitudes[picks, np.arange(3)], np.maximum.reduceat(magnitudes, starts))


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_numbers_of_json_are_the_float32_they_stand_for(values):
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.array([float(one) for one in numbers(values)], dtype=np.float32), values)
