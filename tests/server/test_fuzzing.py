"""A short share of `make fuzz`, on both databases, from fixed seeds."""

import logging
import random

import pytest

from tests.server.fuzzing import fuzz_api, fuzz_intake

SEED = 20_260_701
REQUESTS = 120
EXAMPLES = 3
"""Per operation: `make fuzz` asks for as long as it is told to."""


@pytest.fixture(autouse=True)
def quiet():
    logger = logging.getLogger("internist_server")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def test_nothing_that_went_wrong_on_the_way_makes_the_server_fail(api):
    assert fuzz_intake(api, random.Random(SEED), most=REQUESTS) == REQUESTS


def test_no_documented_request_makes_the_server_fail(database_url):
    """Requests made up from the API's own description."""
    fuzz_api(database_url, examples=EXAMPLES, start=SEED)
