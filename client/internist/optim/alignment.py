"""Where matrices begin in a CPU's memory: on some processors the rounding of a product depends on it.

Intel's MKL, which torch multiplies by, adds up in another order where a matrix begins elsewhere between two multiples
of 64 bytes: so it does on processors that are not Intel's, and reserves the right to everywhere. A matrix would then be
orthogonalised to other last digits for what stands beside it in a bucket, and ranks that share matrices out would part
from one process. So operands begin at such multiples, and only matrices that keep those beside them there are
multiplied in batches.

Derived for this project. Seen with MKL 2024.2 on the code path of other processors: 1e-6 of
single entries of an orthogonalised (5, 7) matrix, and 2.5e-6 of weights after four steps of 0.05.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BOUNDARY = 64
"""Bytes between the places where operands may begin: torch's own allocations on a CPU begin there."""

EVEN = 32
"""Entries that a side is a multiple of if vectors and matrices of it, one after another, all begin at a boundary: in
bfloat16, and so in wider types."""


def aligned(matrices: Tensor) -> Tensor:
    """The matrices without gaps from a boundary on: on a CPU a copy where they are not, elsewhere always themselves."""
    if matrices.device.type != "cpu" or (matrices.is_contiguous() and matrices.data_ptr() % BOUNDARY == 0):
        return matrices
    return matrices.clone(memory_format=torch.contiguous_format)


def is_even(sides: Sequence[int]) -> bool:
    """Whether matrices (fan_out, fan_in) of these sides, and their vectors, keep those after them at a boundary."""
    return all(side % EVEN == 0 for side in sides)
