"""How far apart the points of series lie, as the run itself tells."""

import numpy as np
import pytest

from internist_server.judge.thinning import Thinning
from tests.server.judged_runs import series

EVERY = 10
SERIES = [
    series(0, "activation.rms", "blocks.0", cadence=10),
    series(1, "update.feature", "blocks.0", cadence=100),
    series(2, "weight.spectral_norm", "blocks.0.weight", cadence=400),
    series(3, "optimizer.gap", "blocks.0.weight", cadence=100),
    series(4, "monitor.light_every", "model"),
    series(5, "monitor.model_heavy_every", "model"),
    series(6, "monitor.matrix_heavy_every", "model"),
    series(7, "monitor.turns", "model"),
]


def distances(told, stride=1):
    last = np.array([1.0, 1.0, 1.0, 1.0, *told], np.float32)
    return Thinning.of(SERIES[: last.size]).distances(last, every=EVERY, stride=stride)[:4].tolist()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((10, 100, 400, 1), [10, 100, 400, 100]),
        ((40, 100, 3_200, 1), [40, 100, 3_200, 400]),
        ((10, 800, 400, 2), [20, 800, 400, 800]),
        ((2, 2, 2, 1), [10, 100, 400, 100]),
    ],
)
def test_each_class_lies_as_far_apart_as_it_is_told(told, expected):
    assert distances(told) == expected


def test_a_client_that_does_not_tell_is_known_by_the_steps_between_its_samples():
    assert distances((), stride=4) == [40, 400, 1_600, 400]


def test_of_no_series_nothing_is_known():
    assert Thinning.of([]).distances(np.empty(0, np.float32), every=EVERY, stride=1).size == 0
