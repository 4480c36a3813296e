"""Threads that compute alone: as many as a CPU's operators use together, each on a job of its own.

Derived for this project.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], T]], *, threads: int | None = None) -> list[T]:
    """Run every job, each by one thread that computes alone, as many at once as there are threads.

    Args:
        jobs: independent of one another.
        threads: how many; None is torch's number, which is one in a thread of this kind.

    Returns:
        What each returned, in their order.

    Raises:
        Exception: what a job raised, after all others have ended.
    """
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 2:
        return [job() for job in jobs]
    under_way = [_threads(threads).submit(job) for job in jobs]
    wait(under_way)
    return [done.result() for done in under_way]


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
