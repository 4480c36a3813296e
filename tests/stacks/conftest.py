"""What the tests of stacks share: no hub is asked for anything, and the kit's assertions say what they compared."""

import os
from collections.abc import Iterator

import pytest
import torch

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
