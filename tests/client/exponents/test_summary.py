"""Series of one member become its quantities."""

import numpy as np
import pytest

from internist.scaling.members import Columns
from internist.scaling.summary import needed_steps, summarise

NAN = float("nan")
HIDDEN = ("update.own_mean", "hidden")


def columns(*rows: tuple[str, str, int]) -> Columns:
    return Columns(*(tuple(column) for column in zip(*rows, strict=True)))  # type: ignore[arg-type]


def values_of(cols: Columns, steps: list[int], values: list[list[float]], start: int = 0):
    return summarise(cols, np.array(steps), np.array(values, dtype=np.float32), start)


def test_a_role_is_the_geometric_mean_over_its_series_and_steps():
    cols = columns((*HIDDEN, 0), (*HIDDEN, 1))
    found = values_of(cols, [0, 5], [[1.0, 4.0], [1.0, 16.0]])

    assert found[*HIDDEN, "init"] == pytest.approx(2.0)
    assert found[*HIDDEN, "early"] == pytest.approx((1.0 * 8.0) ** 0.5)
    assert (*HIDDEN, "late") not in found


def test_a_series_that_was_recorded_less_often_counts_as_much():
    found = values_of(columns((*HIDDEN, 0), (*HIDDEN, 1)), [0, 1, 2], [[4.0, 1.0], [4.0, NAN], [4.0, NAN]])

    assert found[*HIDDEN, "early"] == pytest.approx(2.0)


def test_the_residual_stream_is_that_of_the_last_block_and_contribution_that_of_the_first():
    cols = columns(
        ("activation.rms", "residual", 0), ("activation.rms", "residual", 1),
        ("block.contribution", "residual", 0), ("block.contribution", "residual", 1),
    )  # fmt: skip
    found = values_of(cols, [0], [[1.0, 2.0, 3.0, 4.0]])

    assert found["activation.rms", "residual", "init"] == pytest.approx(2.0)
    assert found["block.contribution", "residual", "init"] == pytest.approx(3.0)


def test_the_late_window_is_the_last_quarter_of_a_long_run():
    steps = [0, 10, 70, 80, 100]
    found = values_of(columns((*HIDDEN, 0)), steps, [[1.0], [1.0], [3.0], [8.0], [2.0]])

    assert found[*HIDDEN, "late"] == pytest.approx(4.0)


def test_what_is_not_finite_shows_and_what_is_absent_does_not():
    cols = columns((*HIDDEN, 0), ("activation.rms", "head", -1))
    found = values_of(cols, [0], [[float("inf"), NAN]])

    assert found[*HIDDEN, "init"] == float("inf")
    assert ("activation.rms", "head", "init") not in found


def test_zeros_are_zero_only_where_all_are():
    cols = columns((*HIDDEN, 0), ("update.own_mean", "head", -1))
    found = values_of(cols, [0, 1], [[0.0, 0.0], [4.0, 0.0]])

    assert found[*HIDDEN, "init"] == 0.0
    assert found[*HIDDEN, "early"] == pytest.approx(4.0)
    assert found["update.own_mean", "head", "early"] == 0.0


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected values of shape \(1, 1\), got \(1, 2\)"):
        values_of(columns((*HIDDEN, 0)), [0], [[1.0, 2.0]])


def test_the_steps_a_collector_has_to_read_are_few():
    chosen = needed_steps(range(0, 100_000, 10), 0)

    assert chosen[:2] == [0, 10]
    assert min(chosen[2:]) >= 74_000
    assert len(chosen) < 60
    assert needed_steps([], 0) == []
