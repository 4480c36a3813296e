"""Writes of float32 numbers into bfloat16 weights, rounded up or down at random by how near each is.

To the nearest, a change below half of a weight's last place is lost, every time, and what is written drifts from what
was meant; at random, it is right on average. The random bits are a hash of an entry's place and the step: no generator
is touched, ranks and resumed runs round alike, and matrices of one shape alike too. Derived for this project, with a
mixing function of well-known constants (MurmurHash3's finalizer).
"""

import torch
from torch import Tensor

LOST = 16
"""Bits of a float32 that bfloat16 has no room for."""

SPREAD, FIRST, SECOND = 0x9E3779B1, -0x7A143595, -0x3D4D51CB
"""Odd constants as 32 bits: the golden ratio's, then the finalizer's."""


def rounded(values: Tensor, seed: int) -> Tensor:
    """(..., fan_out, fan_in) float32 numbers in bfloat16, right on average. Infinity and NaN stay what they are.

    Args:
        values: contiguous.
        seed: another one rounds otherwise.
    """
    rows, columns = values.shape[-2:]
    noise = torch.arange(rows * columns, dtype=torch.int32, device=values.device).mul_(_signed(SPREAD))
    noise.add_(_signed(seed * SPREAD + 1))
    noise.bitwise_xor_(noise >> 16).mul_(FIRST).bitwise_xor_(noise >> 13).mul_(SECOND)
    noise.bitwise_xor_(noise >> 16).bitwise_and_((1 << LOST) - 1)
    bits = values.contiguous().view(torch.int32) + noise.view(rows, columns)
    return bits.bitwise_and_(-(1 << LOST)).view(torch.float32).to(torch.bfloat16)


def _signed(number: int) -> int:
    low = number & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low
