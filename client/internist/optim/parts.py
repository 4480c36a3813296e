"""Parts of matrices that a CPU's cache holds while several operators pass over them."""

from collections.abc import Iterator

from torch import Tensor

CACHED_ENTRIES = 2**16
"""Entries that a CPU works on at once: four float32 tensors of them stay in a cache of 1 MiB."""


def cached_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, cut alike along their leading dimensions into views that a cache holds."""
    first = tensors[0]
    if first.numel() <= CACHED_ENTRIES or first.ndim < 2:
        yield tensors
        return
    rows = CACHED_ENTRIES * first.shape[0] // first.numel()
    if rows > 1:
        parts = -(-len(first) // rows)
        yield from zip(*(tensor.chunk(parts) for tensor in tensors), strict=True)
        return
    for slices in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
        yield from cached_parts(*slices)
