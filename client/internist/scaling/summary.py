"""The series of one member become its quantities: one number per metric, role and window."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from internist.scaling.members import Columns, Key, Role, Window

EARLY_ROUNDS = 10
"""Optimizer rounds after the start that count as early. As many as the feature check of arXiv:2603.00541 trains, as
read in detailed notes on the paper."""
LATE_SHARE = 0.25
"""Share of the run, its last, that counts as late, ..."""
LATE_FROM_ROUNDS = 40
"""... in runs at least this long."""
LATE_STEPS = 24
"""Steps of the late window that are read: enough for a geometric mean."""

_FIRST_BLOCK = frozenset(("block.contribution",))
_LAST_BLOCK = frozenset(("activation.rms", "update.feature_mean"))


def needed_steps(recorded: Sequence[int], start_step: int) -> list[int]:
    """Those of the recorded steps that a summary uses, ascending."""
    steps = sorted(step for step in set(recorded) if step >= start_step)
    if not steps:
        return []
    early = [step for step in steps if step <= start_step + EARLY_ROUNDS] or steps[:1]
    late = [step for step in steps if _is_late(step, start_step, steps[-1])]
    return early + late[:: max(1, len(late) // LATE_STEPS)]


def summarise(
    columns: Columns, steps: NDArray[np.int64], values: NDArray[np.float32], start_step: int
) -> dict[Key, float]:
    """The quantities of one member.

    Args:
        columns: what the series are.
        steps: (steps,) ascending.
        values: (steps, series); NaN: absent; infinite: measured as NaN or infinite.
        start_step: the run's first step.

    Returns:
        Geometric means over the series of a role and the steps of a window, of what is positive. A series counts as
        much as another, however many of its steps were recorded. 0 where all is zero, infinity where something is not
        finite; a key is missing where nothing was recorded. Of the residual stream: of the last block, and
        `block.contribution` of the first.

    Raises:
        ValueError: the shape of `values` is not (steps, series).
    """
    if values.shape != (len(steps), len(columns.metric)):
        raise ValueError(f"expected values of shape ({len(steps)}, {len(columns.metric)}), got {values.shape}")
    names, group = _groups(columns)
    found: dict[Key, float] = {}
    if not len(steps):
        return found
    last = int(steps[-1])
    windows: dict[Window, NDArray[np.bool_]] = {
        "init": steps == steps[0],
        "early": steps <= start_step + EARLY_ROUNDS,
        "late": np.array([_is_late(int(step), start_step, last) for step in steps]),
    }
    for window, rows in windows.items():
        if not rows.any():
            continue
        part = values[rows].astype(np.float64)
        for (metric, role), value in zip(names, _means(part, group, len(names)), strict=True):
            if not np.isnan(value):
                found[metric, role, window] = float(value)
    return found


def _is_late(step: int, start: int, last: int) -> bool:
    return last - start >= LATE_FROM_ROUNDS and step >= last - LATE_SHARE * (last - start)


def _groups(columns: Columns) -> tuple[list[tuple[str, Role]], NDArray[np.int64]]:
    """The quantities there are, and for each series which one it belongs to; -1: none."""
    ends: dict[str, int] = {}
    for metric, role, block in zip(columns.metric, columns.role, columns.block, strict=True):
        if role == "residual":
            known = ends.setdefault(metric, block)
            ends[metric] = min(known, block) if metric in _FIRST_BLOCK else max(known, block)
    names: dict[tuple[str, Role], int] = {}
    group = np.full(len(columns.metric), -1, dtype=np.int64)
    for place, (metric, role, block) in enumerate(zip(columns.metric, columns.role, columns.block, strict=True)):
        if role == "residual" and metric in _FIRST_BLOCK | _LAST_BLOCK and block != ends[metric]:
            continue
        group[place] = names.setdefault((metric, role), len(names))
    return list(names), group


def _means(part: NDArray[np.float64], group: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Geometric mean of each group; NaN where nothing was recorded."""
    used = group >= 0
    part, group = part[:, used], group[used]
    positive = np.isfinite(part) & (part > 0)
    count = positive.sum(axis=0)
    logs = np.where(positive, np.log(np.where(positive, part, 1.0)), 0.0).sum(axis=0)
    of_series = logs / np.maximum(count, 1)
    weight = (count > 0).astype(np.float64)
    total = np.bincount(group, weights=of_series * weight, minlength=size)
    series = np.bincount(group, weights=weight, minlength=size)
    recorded = np.bincount(group, weights=(~np.isnan(part)).any(axis=0), minlength=size) > 0
    broken = np.bincount(group, weights=np.isinf(part).any(axis=0), minlength=size) > 0
    means = np.where(series > 0, np.exp(total / np.maximum(series, 1)), np.where(recorded, 0.0, np.nan))
    return np.where(broken, np.inf, means)
