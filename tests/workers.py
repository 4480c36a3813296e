"""The plugin by which `make test` shares the tests among processes that run side by side (`-p tests.workers -n auto`).

A process gets a whole file at a time, so that what a file's tests share is made once; some folders share what costs
more and go as one. What takes longest, by durations.json, goes first: all processes end at about the same time.
"""

import os
import random
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.speed import LONG_FIXTURES, recorded

MOST = 4
"""Processes at most: each holds GiBs at its peak, and those that tests start come on top."""
TOGETHER = {
    "tests/client/history": "a server that holds imported runs",
    "tests/dashboard": "a server with trained runs, and a browser whose cache is warm",
    "tests/stacks": "libraries that take long to import, and groups of ranks",
}
"""Folders whose tests all go to one process, with what they share there."""
SENT = "long fixtures"
"""Under which name a worker tells the reporting process of them."""


@pytest.hookimpl(tryfirst=True)  # before what xdist would count
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a core; none, the tests run in pytest's own, for a single file or core."""
    files = {place.partition("::")[0] for place in config.args}
    if len(files) == 1 and all(file.endswith(".py") for file in files):
        return 0
    workers = min(cores(), MOST)
    return workers if workers > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    """Leave each worker its part of the cores: threads that wait for a core in another's use are slower than one."""
    workers = 0 if is_worker(config) else len(config.option.tx)
    if workers:
        config.option.loadscopereorder = False  # tests are in order when they are collected
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))
        # sets are told in one order by all: tests are named after their parameters
        os.environ.setdefault("PYTHONHASHSEED", str(random.SystemRandom().randrange(2**32)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Hands out groups, in the order in which they were collected."""
    return GroupScheduling(config, log)


@pytest.hookimpl(trylast=True)  # when it is known which tests run
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the groups that take longest first; within one, tests stay in their order."""
    if not is_worker(config):
        return
    seconds: Counter[str] = Counter()
    for item in items:
        seconds[group_of(item.nodeid)] += recorded().get(item.nodeid.partition("[")[0], 0.0)
    items.sort(key=lambda item: (-seconds[group_of(item.nodeid)], group_of(item.nodeid)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what a worker knows of fixtures."""
    if is_worker(session.config):
        session.config.workeroutput[SENT] = session.config.stash.get(LONG_FIXTURES, {})  # type: ignore[attr-defined]


def pytest_testnodedown(node: Any) -> None:
    """Keep it where it is reported; from a worker that crashed nothing came."""
    node.config.stash.setdefault(LONG_FIXTURES, {}).update(getattr(node, "workeroutput", {}).get(SENT, {}))


class GroupScheduling(LoadScopeScheduling):
    """A scheduler whose scopes are groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """The folder or file whose tests all go to one process."""
    file = PurePosixPath(nodeid.partition("::")[0])
    return next((str(place) for place in file.parents if str(place) in TOGETHER), str(file))


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_worker(config: pytest.Config) -> bool:
    """Whether tests run in this process for another one."""
    return hasattr(config, "workerinput")
