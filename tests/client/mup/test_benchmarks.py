import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import mup_depth, mup_peers, mup_stability, mup_transfer
from benchmarks.mup_fits import (
    DRAWS,
    MOST_RATES,
    Shift,
    geometric_mean,
    mean_losses,
    optimum,
    rates_wanted,
    shift,
    slope,
    transfer_verdict,
)
from benchmarks.mup_models import PLANNED, Arm, Shape
from benchmarks.mup_peers import BASE_WIDTH, Comparison, Race, ours_at
from benchmarks.mup_reports import write_section
from benchmarks.mup_trials import MupLaboratory, _orders
from benchmarks.quality_trials import NotMeasuredError, Trials

SMALL, BASE = Shape(32, 4), Shape(16, 2)
RATES = [2.0**power for power in range(-9, -2)]
ROUNDING = 1e-9
SAMPLING = 0.15
"""How far a bootstrap interval's width may be from the textbook's: of 2,000 draws of 15 residuals."""
FLOAT32 = 1e-5


def parabola(at, *, curvature=0.05, noise=0.0, seeds=3, rates=RATES, generator=None):
    generator = generator or np.random.default_rng(0)
    return {
        rate: [
            2.0 + 0.1 * s + curvature * (math.log2(rate) - at) ** 2 + noise * generator.normal() for s in range(seeds)
        ]
        for rate in rates
    }


def searched(loss):
    grid = {}
    while wanted := rates_wanted(grid, RATES):
        grid |= {rate: [loss(math.log2(rate))] for rate in wanted}
    return grid


@given(st.floats(-8.0, -4.0), st.floats(0.01, 0.2))
def test_the_minimum_of_a_parabola_is_found_between_rates_and_seeds_may_be_offset(at, curvature):
    best = optimum(parabola(at, curvature=curvature))

    assert best.at == pytest.approx(at, abs=1e-6)
    assert best.loss == pytest.approx(2.1)
    assert best.curvature == pytest.approx(curvature)
    assert best.interval == pytest.approx((at, at), abs=1e-5)


def test_the_bootstrap_interval_is_as_wide_as_that_of_least_squares():
    rates = [2.0 ** (half / 2) for half in range(-14, -9)]
    noise, curvature = 0.01, 0.05
    grid = parabola(-6.0, curvature=curvature, noise=noise, rates=rates)
    best = optimum(grid)

    x = np.repeat([-1.0, -0.5, 0.0, 0.5, 1.0], 3)
    y = np.array([loss for rate in rates for loss in grid[rate]])
    design = np.column_stack([x, x * x, np.tile(np.eye(3), (5, 1))])
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    error = math.sqrt(residuals @ residuals / (15 - 5) / (x @ x)) / (2 * best.curvature)
    low, high = best.interval
    assert len(best.draws) == DRAWS
    assert (high - low) / 2 == pytest.approx(1.645 * error, rel=SAMPLING)


def test_bootstrap_intervals_hold_the_true_minimum_about_as_often_as_they_say():
    generator = np.random.default_rng(1)
    rates = [2.0 ** (half / 2) for half in range(-14, -9)]
    held = 0
    for _ in range(100):
        low, high = optimum(parabola(-6.0, noise=0.01, rates=rates, generator=generator)).interval
        held += low <= -6.0 <= high

    assert 80 <= held <= 97


def test_a_run_that_diverged_counts_as_bad_and_not_as_missing():
    grid = parabola(-6.0, curvature=0.1)
    grid[2.0**-5] = [math.inf, 2.2, math.nan]

    assert mean_losses(grid)[2.0**-5] == math.inf
    assert math.isfinite(optimum(grid).at)
    with pytest.raises(ValueError, match="all diverged"):
        optimum({rate: [math.nan] for rate in RATES})


def test_a_best_rate_at_the_edge_is_no_optimum():
    with pytest.raises(ValueError, match="edge"):
        optimum(parabola(-3.0))


@given(st.floats(-12.0, 0.0))
def test_rates_are_tried_until_the_best_has_half_steps_on_both_sides(at):
    grid = searched(lambda x: 0.1 * (x - at) ** 2)

    best = min(grid, key=lambda rate: grid[rate][0])
    tried = {round(2 * math.log2(rate)) for rate in grid}
    assert {round(2 * math.log2(best)) + half for half in (-2, -1, 1, 2)} <= tried
    assert optimum(grid).at == pytest.approx(at, abs=1e-6)


def test_a_search_without_end_gives_up():
    assert len(searched(lambda x: -x)) == MOST_RATES


def test_a_shift_and_its_regret_worked_by_hand():
    moved = shift(optimum(parabola(-6.0, curvature=0.2)), optimum(parabola(-5.75, curvature=0.2)))

    assert moved.octaves == pytest.approx(0.25)
    assert moved.regret == pytest.approx(0.2 * 0.25**2)
    assert moved.is_transfer and not moved.is_failure


def test_the_regret_of_a_rate_far_off_is_what_was_measured_there():
    target = optimum(parabola(-8.0, curvature=0.2))

    assert shift(optimum(parabola(-4.0)), target).regret == pytest.approx(0.2 * 16)
    assert shift(optimum(parabola(-4.5)), target).regret == pytest.approx(0.2 * (9 + 16) / 2)


def made(low, high, *, regret=0.0):
    return Shift((low + high) / 2, low, high, regret, regret, regret)


STILL, MOVED = made(-0.2, 0.3), made(-1.9, -1.1)


@pytest.mark.parametrize(
    ("planned", "standard", "expected"),
    [
        ([STILL, STILL], MOVED, "PASS"),
        ([STILL], STILL, "INCONCLUSIVE"),
        ([STILL], made(-1.2, -0.9), "INCONCLUSIVE"),
        ([STILL, made(0.1, 0.6)], MOVED, "INCONCLUSIVE"),
        ([STILL, made(0.6, 0.9)], MOVED, "FAIL"),
        ([made(-0.1, 0.1, regret=0.03)], MOVED, "FAIL"),
        ([made(-math.inf, math.inf)], MOVED, "INCONCLUSIVE"),
    ],
)
def test_transfer_passes_only_where_the_standard_rule_moves_and_the_planned_one_does_not(planned, standard, expected):
    assert transfer_verdict(planned, standard) == expected


def test_an_exponent_is_that_of_the_power_law():
    values = {size: [3.0 * size**0.5, 5.0 * size**0.5] for size in (64, 128, 256, 512)}

    found = slope(values, "width")
    assert found.exponent == pytest.approx(0.5)
    assert found.verdict == "FAIL"
    assert slope(values, "depth", expected=0.5).verdict == "PASS"
    assert slope({64: [1.0], 128: [1.0]}, "width") is None
    assert slope({**values, 1024: [math.inf, 1.0]}, "width") is None
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


@pytest.mark.parametrize("optimizer", PLANNED)
def test_all_rules_are_the_same_at_the_base_and_differ_beyond_it(optimizer, tmp_path):
    laboratory = MupLaboratory(Trials(tmp_path / "state.jsonl"), lambda _: None)

    def losses(shape, rule):
        return laboratory.features(Arm(optimizer, rule), shape, BASE, lr=2.0**-6, seed=0)["losses"]

    assert losses(BASE, "SP") == pytest.approx(losses(BASE, "muP"), rel=FLOAT32)
    assert losses(BASE, "k = 1") == pytest.approx(losses(BASE, "muP"), rel=FLOAT32)
    ends = {losses(SMALL, rule)[-1] for rule in ("muP", "k = 1", "SP")}
    assert min(abs(a - b) for a in ends for b in ends if a != b) > 1e-3 and len(ends) == 3


def test_without_norms_a_model_has_none():
    model = Shape(32, 2, norms=False).model(0)

    assert not any(isinstance(module, torch.nn.LayerNorm) for module in model.modules())
    assert model.blocks[0].attn.heads == 2
    with pytest.raises(ValueError, match="multiple of the head width 16, got width 40"):
        Shape(40, 2).model(0)


def test_the_orders_of_a_branch_add_up_to_its_change():
    torch.manual_seed(0)
    branch = SMALL.model(0).blocks[0].mlp.double()
    old = {name: p.detach().clone() for name, p in branch.named_parameters()}
    x = torch.randn(3, 32, dtype=torch.float64)
    before = branch(x)
    with torch.no_grad():
        for p in branch.parameters():
            p.add_(0.01 * torch.randn_like(p))
    first, second = _orders(branch, old, x)

    assert torch.allclose(first + second, branch(x) - before)
    with torch.no_grad():
        for name, p in branch.named_parameters():
            p.copy_((p + 9 * old[name]) / 10)
    smaller_first, smaller_second = _orders(branch, old, x)
    assert (smaller_first.norm() / first.norm()).item() == pytest.approx(0.1, rel=0.1)
    assert (smaller_second.norm() / second.norm()).item() == pytest.approx(0.01, rel=0.1)


def test_a_study_that_was_stopped_goes_on_where_it_was(tmp_path):
    path, said = tmp_path / "state.jsonl", []
    arm = Arm("AdamW", "muP")
    first = MupLaboratory(Trials(path), said.append).final_loss(arm, BASE, BASE, steps=3, lr=0.01, seed=0)
    assert len(said) == 1

    again = MupLaboratory(Trials(path), said.append)
    assert again.final_loss(arm, BASE, BASE, steps=3, lr=0.01, seed=0) == first
    assert len(said) == 1
    again.final_loss(arm, BASE, BASE, steps=3, lr=0.01, seed=1)
    assert len(said) == 2 and len(path.read_text().splitlines()) == 2
    with pytest.raises(NotMeasuredError, match=r"width 16, depth 2, lr 0\.02, seed 0"):
        MupLaboratory(Trials(path), said.append, only_read=True).final_loss(arm, BASE, BASE, steps=3, lr=0.02, seed=0)


def test_results_of_a_rule_that_has_changed_are_made_anew(tmp_path):
    path, said = tmp_path / "state.jsonl", []
    arm = Arm("AdamW", "SP")
    MupLaboratory(Trials(path), said.append).final_loss(arm, BASE, BASE, steps=3, lr=0.01, seed=0)
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "probe": row["probe"] + 0.1}) + "\n")

    MupLaboratory(Trials(path), said.append).final_loss(arm, BASE, BASE, steps=3, lr=0.01, seed=0)
    assert len(said) == 2


def test_a_run_that_diverges_has_an_infinite_loss(tmp_path):
    laboratory = MupLaboratory(Trials(tmp_path / "state.jsonl"), lambda _: None)
    shape = Shape(16, 2, norms=False)

    assert laboratory.final_loss(Arm("AdamW", "SP"), shape, shape, steps=20, lr=1e6, seed=0) == math.inf


@pytest.mark.parametrize("proof", [mup_stability, mup_transfer, mup_depth])
def test_a_proof_without_results_says_what_is_not_measured(proof, tmp_path, capsys):
    state = str(tmp_path / "none.jsonl")

    assert proof.main(["--quick", "--only-report", "--state", state]) == 0
    assert "Not measured from here on: muP, AdamW" in capsys.readouterr().out


def test_a_section_is_written_between_its_own_marks(tmp_path):
    page = tmp_path / "mup.md"
    page.write_text("a\n<!-- proof one: begin -->\nold\n<!-- proof one: end -->\nb\n")
    write_section(page, "one", "new")

    assert page.read_text() == "a\n<!-- proof one: begin -->\n\nnew\n\n<!-- proof one: end -->\nb\n"
    with pytest.raises(ValueError, match="proof two"):
        write_section(page, "two", "new")


def test_our_numbers_for_the_peer_comparison_are_the_published_ratios():
    wide, base = ours_at("adamw", 4 * BASE_WIDTH), ours_at("adamw", BASE_WIDTH)

    assert wide["wide.weight"].lr / base["wide.weight"].lr == pytest.approx(1 / 4)
    assert wide["wide.weight"].std / base["wide.weight"].std == pytest.approx(1 / 2)
    assert wide["embed.weight"].lr == base["embed.weight"].lr
    assert wide["head.weight"].multiplier == pytest.approx(1 / 4)
    assert ours_at("sgd", 4 * BASE_WIDTH)["embed.weight"].lr == pytest.approx(4 * base["embed.weight"].lr)


def test_a_ratio_or_a_race_that_differs_does_not_agree():
    assert Comparison("sgd", 128, "head.weight", "lr", 2.0, 2.0).agrees
    assert not Comparison("sgd", 128, "head.weight", "lr", 2.0, 2.001).agrees
    assert Race("sgd", 128, (5.0, 4.0), (5.0, 4.0)).agrees
    assert not Race("sgd", 128, (5.0, 4.0), (5.0, 4.1)).agrees
    assert not Race("sgd", 128, (5.0, 5.0), (5.0, 5.0)).agrees


def test_the_peer_comparison_says_what_to_install_or_passes(capsys):
    status = mup_peers.main(["--quick"])

    said = capsys.readouterr()
    if find_spec("mup") is None:
        assert status == 2
        assert "pip install --no-deps mup" in said.err
    else:
        assert status == 0
        assert "PASS" in said.out
