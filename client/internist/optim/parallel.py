"""Matrices side by side on a CPU: each thread steps matrices of its own, where products of one are too small to share.

A product of small matrices gains nothing from a second thread, and may take longer. The threads here compute with one
thread each, so that n of them step n matrices in the time of one. Derived for this project.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from internist.optim.bucket import Bucket
from internist.optim.threads import side_by_side

LARGEST = 2**21
"""Entries of a matrix up to which it is stepped by one thread; larger ones use all threads, one after another."""

LEAST = 2**18
"""Entries of all such matrices from which handing them over pays."""


def step_each(buckets: Iterable[Bucket], step: Callable[[Bucket], None], *, threads: int) -> None:
    """Step each bucket, small ones of a CPU side by side.

    Args:
        buckets: independent of one another.
        step: of one bucket; called from other threads, without gradients.
        threads: how many; with one, the buckets are stepped as they come.

    Raises:
        Exception: what a step raised, after all others have ended.
    """
    if threads < 2 or torch.compiler.is_compiling():
        for bucket in buckets:
            step(bucket)
        return
    small: list[Bucket] = []
    for bucket in buckets:
        if bucket.device.type == "cpu" and bucket.fan_out * bucket.fan_in <= LARGEST:
            small.append(bucket)
        else:
            step(bucket)
    if len(small) < 2 or sum(_entries(bucket) for bucket in small) < LEAST:
        for bucket in small:
            step(bucket)
        return
    small.sort(key=_entries, reverse=True)  # the long ones first: the threads then end together

    @torch.no_grad()
    def one(bucket: Bucket) -> None:
        step(bucket)

    side_by_side([partial(one, bucket) for bucket in small], threads=threads)


def _entries(bucket: Bucket) -> int:
    return sum(weight.numel() for weight in bucket.weights)
