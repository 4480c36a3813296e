"""Scale rules: the numbers of the papers, and names that are known or offered."""

import math
from pathlib import Path

import pytest

from internist.optim.scaling import SCALES, known_scale, scale

SHAPES = [(4, 1), (1, 4), (3, 3), (1024, 4096), (3072, 768)]


@pytest.mark.parametrize(("fan_out", "fan_in"), SHAPES)
def test_rules_by_hand(fan_out, fan_in):
    widest = math.sqrt(max(fan_out, fan_in))

    assert scale("none", fan_out, fan_in) == 1.0
    assert scale("original", fan_out, fan_in) == pytest.approx(max(1.0, math.sqrt(fan_out / fan_in)))
    assert scale("match_rms_adamw", fan_out, fan_in) == pytest.approx(0.2 * widest)
    assert scale("spectral_mup", fan_out, fan_in) == pytest.approx(math.sqrt(fan_out / fan_in))
    assert scale("unit_rms", fan_out, fan_in) == pytest.approx(widest)


@pytest.mark.parametrize(("fan_out", "fan_in"), SHAPES)
def test_the_dynamic_rule_runs_from_original_to_spectral_mup(fan_out, fan_in):
    assert scale("dynamic", fan_out, fan_in, tau=1.0) == scale("original", fan_out, fan_in)
    assert scale("dynamic", fan_out, fan_in, tau=0.0) == scale("spectral_mup", fan_out, fan_in)
    assert scale("dynamic", 1, 4, tau=0.5) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(("wrong", "right"), [("orginal", "original"), ("spectral-mup", "spectral_mup")])
def test_an_unknown_rule_is_refused_with_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"did you mean '{right}'"):
        known_scale(wrong)


def test_every_rule_has_its_source_or_says_that_it_is_the_plain_one():
    for name, rule in SCALES.items():
        assert name == rule.__name__
        assert "Source:" in (rule.__doc__ or "") or name == "none"


def test_the_rates_that_the_docs_convert_make_steps_of_the_same_length():
    text = (Path(__file__).parents[3] / "docs" / "optimizers.md").read_text(encoding="utf-8")
    header, _, *lines = text.partition("<!-- rates:begin -->\n")[2].partition("<!-- rates:end -->")[0].splitlines()
    shapes = [tuple(map(int, cell.split(" x "))) for cell in header.split("|")[2:-1]]

    assert len(shapes) == 3 and {line.split("`")[1] for line in lines} == {
        "original",
        "match_rms_adamw",
        "spectral_mup",
    }
    for line in lines:
        rule, factors = line.split("`")[1], line.split("|")[2:-1]
        for (fan_out, fan_in), factor in zip(shapes, factors, strict=True):
            in_units = scale(rule, fan_out, fan_in) / scale("spectral_mup", fan_out, fan_in)
            assert factor.strip() == f"{in_units:.4g}"
