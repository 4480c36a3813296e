"""Which tests are fast: `make test ARGS="-m fast"` takes less than a minute on two cores.

A test is fast unless what it uses, its folder or its file is listed here with the reason, or durations.json says that
it took long (`python .ci/durations.py --record REPORT` writes that from a run's JUnit report). A new one is fast until
then; CI names those over `LONGEST` seconds, and the fixtures of fast tests that take as long to set up.
"""

import json
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

LONG_FIXTURES = pytest.StashKey[dict[str, float]]()
"""Seconds that the setting up of a fixture took, by its name and place."""

LONGEST = 2.0
"""Seconds that a fast test may take on a quiet machine."""

SLOW_MARKERS = {
    "alertmanager": "starts a real Alertmanager",
    "prometheus": "starts a real Prometheus",
    "browser": "starts a real browser",
    "postgres": "starts a PostgreSQL server",
    "slow": "builds the distribution and installs it",
}

SLOW_FIXTURES = {
    "answers": "families of models, trained and served",
    "ends": "processes that die",
    "gang": "several processes",
    "two": "several processes",
    "four": "several processes",
    "house": "a server with trained runs",
}

SLOW_PATHS = {
    "tests/stacks": "libraries that take long to import, and compilers",
    "tests/system": "whole programs, trained and served",
    "tests/client/commands/test_server_commands.py": "a server with runs",
    "tests/client/history": "files that other tools write, and a server",
    "tests/client/integrations": "runs that are trained and served",
    "tests/client/exponents/test_confusion.py": "a family of models for every mistake",
    "tests/client/monitor/test_identity.py": "several processes",
    "tests/client/measures/kernels": "an interpreter's kernels",
    "tests/client/measures/test_kernels.py": "a process of their own, and a compiler",
    "tests/client/mup/test_benchmarks.py": "benchmarks, in small",
    "tests/client/optim/test_quality_benchmark.py": "benchmarks, in small",
    "tests/client/test_public_names.py": "interpreters of their own",
    "tests/server/test_serve.py": "servers as processes",
}
"""Folders and files, as seen from the root; where only fast tests are asked for they are not even read."""


@cache
def recorded() -> dict[str, float]:
    """Seconds by test function, of those that took long when they were recorded."""
    found: dict[str, float] = json.loads(Path(__file__).with_name("durations.json").read_text(encoding="utf-8"))
    return found


def is_slow_place(path: PurePosixPath) -> bool:
    """Whether all tests of a file or a folder, as seen from the root, are slow."""
    return any(str(place) in SLOW_PATHS for place in (path, *path.parents))


def why_slow(path: PurePosixPath, function: str, fixtures: set[str], markers: set[str]) -> str | None:
    """The first reason why a test is not fast; None if it is.

    Args:
        path: of its file, as seen from the root.
        function: its name, without parameters.
        fixtures: all that it uses.
        markers: all that it bears.
    """
    places = [str(path), *map(str, path.parents)]
    for names, reasons in (
        (sorted(markers), SLOW_MARKERS),
        (sorted(fixtures), SLOW_FIXTURES),
        (places, SLOW_PATHS),
    ):
        for name in names:
            if name in reasons:
                return reasons[name]
    seconds = recorded().get(f"{path}::{function}")
    return None if seconds is None else f"{seconds} s"
