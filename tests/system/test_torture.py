"""A short share of `make torture`: whatever dies, nothing that was acknowledged is lost or doubled."""

import subprocess
import sys

import pytest

ROUNDS = "3"


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_whatever_dies_nothing_that_was_acknowledged_is_lost_or_doubled(database):
    command = [sys.executable, "-m", "tests.torture", "--rounds", ROUNDS, "--on", database, "--seed", "1"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("there once") == 4, done.stdout
