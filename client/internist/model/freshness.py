"""Whether a weight was drawn or trained: what a new optimizer may rescale, and what it may not."""

import torch
from torch import Tensor

ROOM = 1.05
DEVIATIONS = 3.0
"""Independent draws of unit variance have a norm above √fan_out + √fan_in + t with a probability of exp(−t²/2)
(Gaussian concentration); with a share on top for draws with heavier tails."""


def looks_drawn(matrices: Tensor, sigma: Tensor) -> Tensor:
    """Whether the largest singular value is no larger than independent entries of that RMS make it.

    Training leaves singular values far above that, so does any mean other than zero. A matrix that was hardly trained
    looks drawn, and one of a few entries always does.

    Args:
        matrices: (B, fan_out, fan_in), floating.
        sigma: (B,) their spectral norms.

    Returns:
        (B,) of bools; false for a matrix of zeros or with NaN.
    """
    fan_out, fan_in = matrices.shape[1:]
    rms = torch.linalg.vector_norm(matrices, dim=(1, 2), dtype=sigma.dtype) / (fan_out * fan_in) ** 0.5
    edge = ROOM * (fan_out**0.5 + fan_in**0.5) + DEVIATIONS
    drawn: Tensor = (sigma > 0) & (sigma <= edge * rms)
    return drawn
