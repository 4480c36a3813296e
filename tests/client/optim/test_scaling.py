"""Scale rules: the numbers of the papers, and names that are known or offered."""

import math

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
