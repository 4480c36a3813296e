"""Matrices side by side on a CPU: each thread steps matrices of its own, where products of one are too small to share.

A product of small matrices gains nothing from a second thread, and may take longer. The threads here compute with one
thread each, so that n of them step n matrices in the time of one. Derived for this project.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier

import torch

from internist.optim.bucket import Bucket

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

    under_way = [_threads(threads).submit(one, bucket) for bucket in small]
    wait(under_way)
    for done in under_way:
        done.result()


def _entries(bucket: Bucket) -> int:
    return sum(weight.numel() for weight in bucket.weights)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """That many threads, each of which computes alone."""
    known = torch.get_num_threads()
    pool, all_there = ThreadPoolExecutor(count, thread_name_prefix="internist-optim"), Barrier(count)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over the number of all when it is first asked, and its own after that
        torch.set_num_threads(1)
        all_there.wait()

    for begun in [pool.submit(begin) for _ in range(count)]:
        begun.result()
    torch.set_num_threads(known)  # threads that others start later are told the latest number
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive a fork
