"""Which step measures what: the grid, by the step's number alone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist.observe.sampling import MOST_TURNS, NOTHING, Due, Powers, due
from internist.schema.grid import is_on_grid, samples

EVERY = 10
steps = st.integers(0, 200_000)
everies = st.sampled_from((1, 2, 5, 7, 10, 50, 100, 1_000))
powers = st.builds(Powers, *[st.integers(0, 6)] * 3, st.integers(0, MOST_TURNS))


def test_the_first_steps_measure_everything():
    assert all(due(step, EVERY) == Due(True, True, -1) for step in range(17))


def test_a_young_run_is_sampled_eight_times_an_octave_by_every_class():
    for first in (8, 16, 32, 64):
        found = [s for s in range(first + 1, 2 * first + 1) if due(s, EVERY) == Due(True, True, -1)]
        assert found == [first + first // 8 * i for i in range(1, 9)]


def test_each_class_leaves_the_geometric_grid_where_its_regular_one_is_denser():
    light = [s for s in range(100, 200) if is_on_grid(s, EVERY)]
    heavy = [s for s in range(900, 1_400) if due(s, EVERY).heavy]
    matrices = [(s, due(s, EVERY).matrices) for s in range(3_800, 4_600) if due(s, EVERY).matrices is not None]

    assert light == [104, 112, 120, 128, 130, 140, 150, 160, 170, 180, 190]
    assert heavy == [960, 1_024, 1_100, 1_200, 1_300]
    assert matrices == [(3_840, -1), (4_096, -1), (4_100, 1), (4_200, 2), (4_300, 3), (4_400, 0), (4_500, 1)]


def test_light_and_heavy_steps_of_an_old_run_come_as_stated_and_matrices_rotate():
    old = range(100_000, 100_400)

    assert [s for s in old if due(s, EVERY).light] == list(range(100_000, 100_400, 10))
    assert [s for s in old if due(s, EVERY).heavy] == [100_000, 100_100, 100_200, 100_300]
    assert [due(s, EVERY).matrices for s in (100_000, 100_100, 100_200, 100_300)] == [0, 1, 2, 3]


@given(st.integers(32, 200_000), everies)
def test_from_step_32_on_a_baselines_window_holds_eight_samples_of_every_class(step, every):
    assert all(samples(-(-step // 4), step // 2, every * rarity) >= 8 for rarity in (1, 10, 40))


@given(st.integers(0, 5_000), st.integers(0, 500), everies)
def test_samples_are_counted_as_the_grid_has_them(first, length, every):
    assert samples(first, first + length, every) == sum(is_on_grid(s, every) for s in range(first, first + length + 1))


def holds(fine: Due, coarse: Due) -> bool:
    """Whether all that one sample measures is measured by another too."""
    return (
        (fine.light or not coarse.light)
        and (fine.heavy or not coarse.heavy)
        and coarse.matrices in (None, fine.matrices)
        and (fine.turns == 1 or (coarse.turns >= fine.turns and coarse.turn % fine.turns == fine.turn))
    )


@given(steps, everies, powers, powers)
def test_what_larger_powers_sample_smaller_ones_do_too(step, every, some, others):
    fine, coarse = (due(step, every, powers=p._replace(turns=0)) for p in (some, some.coarser(others)))

    assert holds(fine, coarse)


@given(steps, everies, powers, st.integers(0, MOST_TURNS))
def test_modules_whose_turn_it_is_among_many_have_theirs_among_fewer_too(step, every, some, turns):
    fine = due(step, every, powers=some)
    coarse = due(step, every, powers=some._replace(turns=max(turns, some.turns)))

    assert holds(fine, coarse)


@given(st.integers(0, 6), st.integers(0, 3))
def test_every_quarter_of_the_matrices_keeps_its_place_however_far_they_are_stretched(power, quarter):
    found = [
        s for s in range(100_000, 200_000, 100) if due(s, EVERY, powers=Powers(matrices=power)).matrices == quarter
    ]

    assert {b - a for a, b in pairwise(found)} == {400 << power}


@given(st.integers(1, MOST_TURNS), st.integers(0, 3))
def test_every_module_has_its_turn_in_as_many_light_samples_as_there_are_turns(turns, power):
    stretched = Powers(light=power, heavy=6, matrices=6, turns=turns)
    found = [due(s, EVERY, powers=stretched) for s in range(100_010, 120_000, 10)]
    light = [sample.turn for sample in found if sample.light and not sample.heavy]

    assert set(light) == set(range(1 << turns))
    assert all(sample.turns == 1 for sample in found if sample.heavy)


def test_a_directive_makes_the_light_class_dense_for_a_while():
    found = [due(step, EVERY, dense_until=1_004) for step in range(1_001, 1_007)]

    assert found == [Due(light=True)] * 4 + [NOTHING] * 2


@pytest.mark.parametrize("told", [(), (2,), (2, 3, 4, 1), (2, 3, 4, 1, 9)])
def test_powers_of_any_version_are_read(told):
    assert Powers.of(told) == Powers(*(*told, 0, 0, 0, 0)[:4])


def test_powers_that_make_no_sense_are_cut():
    assert Powers.of((-1, 99, 3, 9)) == Powers(0, 12, 3, MOST_TURNS)
