"""The grid: the steps at which samples lie, by the step's number alone, so that the samples of all ranks are nested.

While a run is young, samples lie eight an octave (steps 0 to 16 all, then every second, from 32 on every fourth, and so
on), until the regular distance of their class is the shorter one. [t/4, t/2] then holds eight samples from step 32 on.
"""

PER_OCTAVE = 8
"""Samples between a step and the one twice as late, while the regular ones lie further apart."""
HEAVY_EVERY = 10
"""Regular samples of the heavy classes are every so many light ones."""
MATRIX_ROTATION = 4
"""A regular matrix-heavy sample measures every fourth matrix, in rotation."""


def geometric(step: int) -> int:
    """Steps between two samples of a young run at this step, a power of two that changes behind powers of two."""
    return max(1, (1 << max(step - 1, 0).bit_length() >> 1) // PER_OCTAVE)


def spacing(step: int, regular: int, *, power: int = 0) -> int:
    """Steps between two samples at this step.

    Args:
        step: from 0.
        regular: steps between two samples of an old run.
        power: of two, by which the distance is stretched.
    """
    return min(geometric(step), regular) << power


def is_on_grid(step: int, regular: int, *, power: int = 0) -> bool:
    """Whether a sample lies at this step. What a higher power samples, a lower one does too."""
    return step % spacing(step, regular, power=power) == 0


def samples(first: int, last: int, regular: int) -> int:
    """Samples between two steps, both inclusive, without any stretch."""
    count = 0
    while first <= last:
        end = min(last, 1 << max(first - 1, 0).bit_length())
        step = spacing(first, regular)
        count += end // step - (first - 1) // step
        first = end + 1
    return count
