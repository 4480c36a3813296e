"""What watching launches on an accelerator, by tests in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "accelerator"
SECONDS = 400
"""For all of them, on a busy machine."""


@pytest.mark.timeout(SECONDS + 20)
def test_what_is_launched_on_an_accelerator_holds_what_its_own_tests_say():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER), "-p", "no:cacheprovider"],
        env=os.environ | {"INTERNIST_TEST_ACCELERATOR": "1"},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
