"""Runs of a small model, as frames: calm, but for what a test does to a block."""

from collections.abc import Callable, Sequence

import numpy as np

from internist.schema.wire import Facts, Record, Series
from tests.server.sending import Sender, module_series

EVERY = 10
BLOCKS = 3
NOISE = 0.05
_METRICS = ("update.own", "update.feature", "activation.rms", "activation.nonfinite")
_SQUARED = 2

Change = Callable[[int, int, str], float]
"""Factor by step, block and metric."""


def small_model() -> list[Series]:
    """Four series of each of three blocks, and a learning rate."""
    series = [
        module_series(block * len(_METRICS) + place, metric, f"blocks.{block}.fc", order=block * 10, role="linear")
        for block in range(BLOCKS)
        for place, metric in enumerate(_METRICS)
    ]
    return [*series, Series(len(series), "learning_rate", "group", "group 0", facts=Facts(group=0, parameters=100))]


def frames(sender: Sender, steps: Sequence[int], change: Change | None = None) -> list[Record]:
    """Frames of the small model at these steps; plan 0 must be declared."""
    return [sender.frame(step, values_at(step, change)) for step in steps]


def values_at(step: int, change: Change | None = None) -> list[float]:
    """What the small model measures at a step, as it travels on the wire."""
    rng = np.random.default_rng(step)
    values = []
    for block in range(BLOCKS):
        for place, metric in enumerate(_METRICS):
            level = 0.0 if metric == "activation.nonfinite" else 0.01 if metric.startswith("update") else 1.0
            value = level * float(np.exp(rng.normal(0.0, NOISE))) * (change(step, block, metric) if change else 1.0)
            values.append(value**2 if place == _SQUARED else value)
    return [*values, 1e-3]


def faulty_block(block: int, *, first: int, last: int, factor: float = 30.0, feature: bool = True) -> Change:
    """A block whose updates are too large for a while; later blocks' features move with it."""

    def change(step: int, where: int, metric: str) -> float:
        if not first <= step <= last:
            return 1.0
        if metric == "update.own" and where == block:
            return factor
        return factor if feature and metric == "update.feature" and where >= block else 1.0

    return change
