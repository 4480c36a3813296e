import json
import math
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.charts import Line, Panel, draw
from benchmarks.quality_arms import arms, hidden_matrices, undecayed_muon
from benchmarks.quality_report import course, order_one_share
from benchmarks.quality_search import at_edge, band_share, best_rate, interval, next_rate
from benchmarks.quality_trials import Size, Trials

TINY = Size(32, 4, depth=1, heads=2, batch=2, context=16)
HELD = 1e-3
"""Share by which a norm that is held may be off: what a few Krylov rounds leave."""


def search(loss, start=1.0):
    grid = {}
    while (rate := next_rate(grid, start, coarse=4.0, fine=2.0)) is not None:
        grid[rate] = loss(rate)
    return grid


@given(st.floats(-9.0, 9.0))
def test_a_search_ends_at_the_best_power_of_two_wherever_it_lies(optimum):
    grid = search(lambda rate: abs(math.log2(rate) - optimum))

    assert abs(math.log2(best_rate(grid)) - optimum) <= 0.5 + 1e-9
    assert not at_edge(grid)
    assert {best_rate(grid) * 2, best_rate(grid) / 2} <= set(grid)


def test_a_search_goes_down_while_everything_diverges():
    grid = search(lambda rate: math.nan if rate > 2.0**-8 else -math.log(rate))

    assert best_rate(grid) == 2.0**-8
    assert not at_edge(grid)


def test_a_grid_of_one_rate_is_all_edge():
    assert at_edge({1.0: 0.5})


def test_an_interval_worked_by_hand():
    mean, half = interval([1.0, 2.0, 3.0])

    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3.0))


def test_one_value_has_a_mean_and_no_interval():
    mean, half = interval([2.5])

    assert mean == 2.5
    assert math.isnan(half)
    with pytest.raises(ValueError, match="got 0"):
        interval([])


def test_the_share_in_a_band_counts_its_ends_in_and_nan_out():
    assert band_share([0.5, 1.0, 2.0, 2.1, math.nan], 0.5, 2.0) == 3 / 5
    with pytest.raises(ValueError, match="none"):
        band_share([], 0.0, 1.0)


def test_results_survive_being_stopped_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "folder" / "state.jsonl"
    Trials(path).add({"lr": 0.1}, {"loss": 1.0})
    with path.open("a") as file:
        file.write('{"asked": {"lr": 0.2}, "lo')

    trials = Trials(path)
    assert trials.find({"lr": 0.1}) == {"asked": {"lr": 0.1}, "loss": 1.0}
    assert trials.find({"lr": 0.2}) is None
    trials.add({"lr": 0.2}, {"loss": 2.0})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0]


@pytest.mark.parametrize("arm", [*arms(1.0), undecayed_muon()], ids=lambda arm: arm.name)
def test_every_optimizer_steps_every_parameter_once(arm):
    model = TINY.model(0)
    optimizers = arm.optimizers(model, 0.01, 0.001)

    stepped = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, stepped)) == sorted(map(id, model.parameters()))
    rates = {
        id(p): group["lr"] for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
    }
    hidden = {id(weight) for weight in hidden_matrices(model).values()}
    assert all(rate == (0.01 if arm.kind == "AdamW" or one in hidden else 0.001) for one, rate in rates.items())


def test_sphere_holds_the_norms_it_is_given():
    model, arm = TINY.model(0), next(arm for arm in arms(2.0) if arm.kind == "MuonSphere")
    (optimizer,) = arm.optimizers(model, 0.05, 0.001)
    ids = torch.arange(32).view(2, 16)
    for _ in range(5):
        model(ids, ids + 1).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for weight in hidden_matrices(model).values():
        fan_out, fan_in = weight.shape
        norm = torch.linalg.svdvals(weight.detach())[0] * (fan_in / fan_out) ** 0.5
        assert norm.item() == pytest.approx(2.0, rel=HELD)


def test_a_course_says_what_kept_its_place_and_what_drifted():
    samples = [
        {"step": step, "rate": 0.1, "weight": {"still": 1.0, "growing": 1.0 + step / 100}, "update": {"still": 0.1}}
        for step in range(0, 1_000, 10)
    ]
    row = {"asked": {"steps": 1_000}, "watched": samples}

    weights = course(row, "weight")
    # early: steps 50 to 90, median 1.7, so that "growing" leaves the factor of two at 3.4, from step 250 on
    assert weights.kept == pytest.approx((90 + 15) / 180)
    assert weights.kept_last == 0.5
    assert (weights.lowest_last, weights.highest_last) == (1.0, pytest.approx(10.9))
    assert course(row, "update").early == pytest.approx(1.0)
    # and 2.5 from step 160 on
    assert order_one_share(row) == pytest.approx((100 + 16) / 200)


def test_a_chart_is_well_formed_and_holds_every_curve():
    lines = [Line([1, 10, 100], [0.1, math.nan, 5.0], "#123456"), Line([1], [2.0], "#654321")]
    panels = [Panel("a < b", lines, "x", "y", log_x=True, log_y=True, band=(0.4, 2.5)), Panel("c", lines, "x", "y")]

    tree = ElementTree.fromstring(draw(panels, columns=2, legend=[("one & all", lines[0])]))
    text = "".join(tree.itertext())
    assert "a < b" in text and "one & all" in text
    curves = [node for node in tree.iter() if node.tag.endswith("polyline") and node.get("stroke") == "#123456"]
    assert [len(node.get("points").split()) for node in curves] == [2, 2, 2]
    assert "nan" not in "".join(value for node in tree.iter() for value in node.attrib.values())
