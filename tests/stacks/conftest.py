"""What the tests of stacks share: no hub is asked for anything, and the kit's assertions say what they compared."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.client.optim.gang import Gang

os.environ["HF_HUB_OFFLINE"] = "1"  # before any of its libraries is imported
pytest.register_assert_rewrite("tests.stacks.twin")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and compiled code of an earlier test is forgotten."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Gang]]:
    """Groups of ranks by their size, each started once: its processes stay up between tests."""
    groups: dict[int, Gang] = {}

    def of(world: int) -> Gang:
        if world not in groups:
            groups[world] = Gang(world)
        return groups[world]

    yield of
    for group in groups.values():
        group.close()
