"""What watching adds to a training step on an accelerator, counted: the bars of a GPT-2 with all metrics."""

import pytest

from benchmarks import launches
from internist.observe.sampling import HEAVY_EVERY

FOUR = ("activation.rms", "gradient.rms", "update.rms", "weight.rms")
SHARE_OF_FOUR = 0.4
"""Of what all metrics cost, over the samples of which one is heavy."""
MOST = {"dormant": 0, "light": 350, "model-heavy": 1_000, "matrix-heavy": 1_000}
OF_CALLS = ("internist.extent.default", "aten.index_select.default", "aten.index.Tensor_out", "aten.topk.values")


@pytest.fixture(scope="module")
def everything():
    return launches.added()


@pytest.fixture(scope="module")
def four():
    return launches.added(metrics=FOUR)


@pytest.mark.parametrize("kind", MOST)
def test_a_step_with_all_metrics_launches_no_more_than_it_may(everything, kind):
    assert everything[kind].total() <= MOST[kind], everything[kind].most_common(20)


def test_a_call_is_one_launch_and_its_probe_one_more(everything):
    light = everything["light"]

    assert light["internist.extent.default"] == 12 * 7 + 4
    assert sum(light[name] for name in OF_CALLS) <= 2 * (12 * 7 + 4)


def test_four_metrics_alone_launch_little(everything, four):
    def cycle(found):
        light, heavy, matrices = (found[kind].total() for kind in ("light", "model-heavy", "matrix-heavy"))
        return (HEAVY_EVERY - 1) * light + heavy + matrices - light

    assert cycle(four) <= SHARE_OF_FOUR * cycle(everything)


def test_nothing_is_launched_for_calls_that_nobody_asked_for():
    found = launches.added(layers=2, metrics=("gradient.rms",))

    assert not set(OF_CALLS) & set(found["light"] + found["model-heavy"])
