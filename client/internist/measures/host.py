"""Reductions over float32 in a CPU's memory, by what runs through it fastest: BLAS, and NumPy where it is installed.

NumPy's reductions and BLAS's dot product take less time than torch's over what lies in a cache; the product is also
the more exact, as it adds up in many places. How many differs from BLAS to BLAS and with the vectors of a processor,
and the error grows with the entries that a place takes in, so long products are cut.
"""

from typing import Any

import torch
from torch import Tensor

numpy: Any
try:
    import numpy
except ImportError:
    numpy = None

LONGEST_PRODUCT = 2**20
"""Entries that BLAS adds up at once in float32. Of normal draws the sum was then off by 1e-6 with AVX-512, 2e-6 with
AVX2 and 8e-6 with neither; four million at once were off by 7e-6, 2e-5 and 6e-5, and the 39 million of an embedding by
up to 2e-3. Cut, a GPT-2's block took 1.00 to 1.06 of the time, interleaved, and at half the length up to 1.1 of it."""

LONGEST_COPY = 2**17
"""Entries of another type that are turned to float32 at once, and stay in a cache."""

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


def can_count(x: Tensor) -> bool:
    """Whether `under` takes it: plain, where there is a NumPy."""
    return numpy is not None and is_plain(x)


def under(x: Tensor, limits: Tensor) -> Tensor:
    """How many entries are smaller than each limit, by absolute value; faster by ten than by sums of booleans.

    Of a limit beyond all of them it is known from the largest and the smallest, as mostly of all limits of a format.

    Args:
        x: what `can_count` said yes to, of any shape.
        limits: (n,) float32 on the CPU.

    Returns:
        (n,) float32. NaN is under none.
    """
    with numpy.errstate(all="ignore"):
        sizes = numpy.abs(x.detach().numpy())
        smallest, largest = sizes.min(), sizes.max()  # NaN where an entry is, and then neither side of any limit
        counts = [
            sizes.size if largest < limit else 0 if smallest >= limit else numpy.count_nonzero(sizes < limit)
            for limit in limits.numpy()
        ]
    return torch.tensor(counts, dtype=torch.float32, device="cpu")


def can_sum(x: Tensor) -> bool:
    """Whether `square_sum` takes it: an ordinary floating tensor in a CPU's memory."""
    return x.is_floating_point() and x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


def square_sum(x: Tensor) -> float:
    """The sum of squares of a tensor that `can_sum` said yes to, of any shape and strides.

    Exact to 1e-5 of it on any BLAS, for entries that vary at random. NaN in, NaN out.
    """
    flat = x.detach().view(-1) if x.is_contiguous() else _in_memory_order(x.detach())
    if flat.dtype is not torch.float32:
        return sum([square_sum(part.float()) for part in flat.chunk(-(-flat.numel() // LONGEST_COPY))])
    if flat.numel() <= LONGEST_PRODUCT:
        return torch.dot(flat, flat).item()
    parts = flat.chunk(-(-flat.numel() // LONGEST_PRODUCT))
    return sum([torch.dot(part, part).item() for part in parts])  # Python adds up in float64


def _in_memory_order(x: Tensor) -> Tensor:
    """The entries, flat, one after another as they lie in memory: a view unless there are gaps."""
    return x.permute(sorted(range(x.ndim), key=x.stride, reverse=True)).reshape(-1).contiguous()
