"""What the host knows anyway is judged: an optimizer's memory, gradients under eps, parameters in no optimizer."""

import numpy as np
import pytest

from tests.server.judged_runs import EVERY, constant, series, tell, tell_values

WEIGHT = "blocks.0.fc.weight"


def seen(law, *, last=400, origin=0, **run):
    """A group whose optimizer's state has seen so many steps."""
    return tell([(series(0, "optimizer.steps", "0", group=0), law)], last=last, origin=origin, **run)


def test_a_state_that_has_seen_every_step_says_nothing_wherever_the_run_begins():
    assert seen(lambda steps: steps + 1).transitions == []
    assert seen(lambda steps: steps + 1, origin=5000).transitions == []
    assert seen(lambda steps: (steps + 1) // 2).transitions == []  # a scaler skipped half of them


@pytest.mark.parametrize("restart_every", [None, 3])
def test_a_state_that_was_cleared_is_told_at_once_and_for_a_while(restart_every):
    run = seen(lambda steps: np.where(steps < 200, steps + 1, steps - 199), restart_every=restart_every)

    (fired,) = run.fired()
    assert (fired.step, fired.rule, fired.severity) == (200, "optimizer_state_lost", "warning")
    assert fired.message == "optimizer of group 0: its state has seen 1 steps where 191 were made, at step 200"
    assert [change.step for change in run.resolved()] == [310]


def test_a_resume_that_did_not_load_it_is_told_at_its_first_step():
    (fired,) = seen(lambda steps: steps - 4999, origin=5000).fired()

    assert fired.step == 5000
    assert fired.message == "optimizer of group 0: its state has seen 1 steps where 5e+03 were made, at step 5000"


def test_an_optimizer_that_comes_late_is_young_and_well():
    steps = np.arange(5000, 5400, EVERY)
    one = series(0, "optimizer.steps", "0", group=0)
    values = (steps - 5199.0)[:, None].astype(np.float32)

    assert tell_values([one], steps, values, (steps >= 5200)[:, None]).transitions == []


@pytest.mark.parametrize(("value", "is_told"), [(1.1, False), (0.9, True), (0.0, True)])
def test_a_matrix_whose_gradient_is_less_than_eps_warns(value, is_told):
    one = series(0, "gradient.over_eps", WEIGHT, block="blocks.0", view="(fan_out, fan_in)", cadence=EVERY)

    fired = tell([(one, constant(value))], last=200).fired()

    assert [change.severity for change in fired] == ["warning"] * is_told
    if is_told:
        assert f"gradient.over_eps is {value:g}, under 1 (band from 1)" in fired[0].message


def test_it_ends_when_the_gradient_is_larger_again():
    one = series(0, "gradient.over_eps", WEIGHT, block="blocks.0", view="(fan_out, fan_in)", cadence=EVERY)

    run = tell([(one, lambda steps: np.where(steps < 200, 0.5, 5.0))], last=400)

    assert [change.step for change in run.resolved()] == [210]


@pytest.mark.parametrize("facts", [{}, {"view": "(fan_out, fan_in)", "role": "embedding"}])
def test_biases_and_embeddings_may_have_gradients_of_nearly_nothing(facts):
    assert tell([(series(0, "gradient.over_eps", WEIGHT, **facts), constant(0.01))], last=200).transitions == []


def test_a_parameter_in_no_optimizer_is_no_data_from_the_first_step_until_it_is_in_one():
    law = lambda steps: (steps < 200).astype(float)  # noqa: E731
    run = tell([(series(0, "optimizer.left_out", WEIGHT, block="blocks.0", cadence=EVERY), law)], last=400)

    (fired,) = run.fired()
    assert (fired.step, fired.rule, fired.severity) == (0, "no_data", "warning")
    assert fired.message == f"{WEIGHT}: no data: it wants a gradient and is in no optimizer, since step 0"
    assert [change.step for change in run.resolved()] == [200]


def test_where_tokens_choose_experts_a_choice_that_changes_is_no_step_too_far():
    def of(number, metric, subject, **facts):
        return series(number, metric, subject, block="blocks.0", cadence=EVERY, **facts)

    parts = ("fc.weight", "out.weight")
    experts = [f"blocks.0.experts.{place}.{part}" for place in range(2) for part in parts]
    others = [of(10 + place, "weight.rms", name) for place, name in enumerate(experts)]
    for one in others:
        object.__setattr__(one.facts, "module", one.subject.rpartition(".")[0])
    moved = of(0, "update.feature", "blocks.0", role="block")
    leaps = lambda steps: np.where(steps < 400, 0.01, 0.4)  # noqa: E731

    def told(law, known):
        return [t.rule for t in tell([(moved, law), *((one, constant(0.1)) for one in known)], last=600).fired()]

    assert told(leaps, []) == ["update_out_of_band"]
    assert told(leaps, others) == []
    assert told(lambda steps: np.where(steps < 400, 0.01, 1e-5), others) == ["update_out_of_band"]
