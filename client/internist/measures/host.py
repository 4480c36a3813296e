"""Reductions over float32 in a CPU's memory, by what runs through it fastest: BLAS, and NumPy where it is installed.

NumPy's reductions and BLAS's dot product take less time than torch's over what lies in a cache; the product is also the
more exact, as it adds up in many places.
"""

from typing import Any

import torch
from torch import Tensor

numpy: Any
try:
    import numpy
except ImportError:
    numpy = None

LONGEST_ROW = 2**13
"""Entries of a row up to which NumPy's BLAS keeps to one thread."""


def is_plain(x: Tensor) -> bool:
    """Whether it is an ordinary float32 tensor in a CPU's memory, which is what the functions below take."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


def can_scan(rows: Tensor) -> bool:
    """Whether `scan` takes it: plain, of rows that are not long, where there is a NumPy of at least 2.0."""
    return hasattr(numpy, "vecdot") and is_plain(rows) and rows.shape[1] <= LONGEST_ROW


def scan(rows: Tensor, at_once: int) -> tuple[Tensor, list[float]]:
    """Norms and extremes of many rows.

    Args:
        rows: (n, features), what `can_scan` said yes to.
        at_once: rows of a piece that a cache holds: it is read three times, twice from there.

    Returns:
        (n,) float32 Euclidean norms of the rows, and numbers of which the greatest is the largest absolute entry; one
        of them is NaN where an entry is.
    """
    array = rows.detach().numpy()
    squares = numpy.empty(len(array), numpy.float32)
    ends: list[float] = []
    with numpy.errstate(all="ignore"):  # what is not finite is measured here, and no reason to warn
        for start in range(0, len(array), at_once):
            piece = array[start : start + at_once]
            numpy.vecdot(piece, piece, out=squares[start : start + at_once])
            ends += [float(piece.max()), -float(piece.min())]
    return torch.from_numpy(squares).sqrt_(), ends


def square_sum(x: Tensor) -> float:
    """The sum of squares of a contiguous plain tensor of any shape."""
    flat = x.detach().view(-1)
    return torch.dot(flat, flat).item()
