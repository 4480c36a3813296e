"""Limits that a run sets for itself."""

import pytest

from internist.errors import ConfigurationError
from internist.monitor.limits import limits
from internist.schema.wire import Threshold


def test_a_number_is_the_largest_value_and_a_pair_are_both_edges():
    assert limits({"gradient.global_norm": 5, "loss": (0.1, 12.0), "weight.rms": [1e-4, None]}) == (
        Threshold("gradient.global_norm", above=5.0),
        Threshold("loss", above=12.0, below=0.1),
        Threshold("weight.rms", below=1e-4),
    )
    assert limits(None) == limits({}) == ()


def test_a_metric_that_is_not_known_is_refused_and_the_nearest_is_named():
    with pytest.raises(ConfigurationError, match=r"'gradient.globalnorm', .* did you mean 'gradient.global_norm'"):
        limits({"gradient.globalnorm": 5.0})


@pytest.mark.parametrize(
    "edges", ["5", None, True, float("nan"), float("inf"), (None, None), (2.0, 1.0), (1, 2, 3), {}]
)
def test_an_edge_that_is_no_number_is_refused_with_what_was_given(edges):
    with pytest.raises(ConfigurationError, match=r"thresholds\['loss'\]="):
        limits({"loss": edges})


def test_what_is_no_mapping_is_refused():
    with pytest.raises(ConfigurationError, match="expected a mapping"):
        limits([("loss", 5.0)])
