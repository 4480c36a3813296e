"""The two alarms that people have without a monitor: on the loss, and on the norm of the gradient."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median, pstdev

WINDOW = 100
FEWEST = 30
"""Values, before an alarm can say anything."""
LOSS_DEVIATIONS = 5.0
LOSS_IN_A_ROW = 3
NORM_FACTOR = 5.0


def loss_alarms(losses: Sequence[float]) -> list[int]:
    """Steps at which a third loss in a row lies more than 5 deviations over the mean of the last 100 that did not."""
    window: deque[float] = deque(maxlen=WINDOW)
    found, beyond = [], 0
    for step, loss in enumerate(losses):
        is_beyond = not math.isfinite(loss)
        if len(window) >= FEWEST and not is_beyond:
            is_beyond = loss > fmean(window) + LOSS_DEVIATIONS * pstdev(window)
        beyond = beyond + 1 if is_beyond else 0
        if beyond == LOSS_IN_A_ROW:
            found.append(step)
        if not is_beyond:
            window.append(loss)
    return found


def norm_alarms(norms: Sequence[float]) -> list[int]:
    """Steps at which the gradient's norm rises over 5 times the median of the last 100."""
    window: deque[float] = deque(maxlen=WINDOW)
    found, was_beyond = [], False
    for step, norm in enumerate(norms):
        is_beyond = not math.isfinite(norm) or (len(window) >= FEWEST and norm > NORM_FACTOR * median(window))
        if is_beyond and not was_beyond:
            found.append(step)
        was_beyond = is_beyond
        if math.isfinite(norm):
            window.append(norm)
    return found
