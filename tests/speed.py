"""Which tests are fast: the one place to edit. `make test ARGS="-m fast"` takes less than a minute on two cores.

A test is fast unless what it uses, its folder, its file or its name is listed here with the reason. A new file is fast
until somebody lists it; CI prints the fast tests that took longest, and names those over `LONGEST` seconds.
"""

from pathlib import PurePosixPath

LONGEST = 2.0
"""Seconds that a fast test may take on a quiet machine."""

SLOW_MARKERS = {
    "alertmanager": "starts a real Alertmanager",
    "browser": "starts a real browser",
    "postgres": "starts a PostgreSQL server",
}

SLOW_FIXTURES = {
    "gang": "several processes",
    "two": "several processes",
    "four": "several processes",
    "house": "a server with trained runs",
}

SLOW_PATHS = {
    "tests/system": "whole programs, trained and served",
    "tests/client/exponents/test_confusion.py": "a family of models for every mistake",
    "tests/client/monitor/test_identity.py": "several processes",
    "tests/client/measures/kernels": "an interpreter's kernels",
    "tests/client/measures/test_kernels.py": "a process of their own, and a compiler",
    "tests/client/mup/test_benchmarks.py": "benchmarks, in small",
    "tests/client/optim/test_quality_benchmark.py": "benchmarks, in small",
    "tests/client/test_public_names.py": "interpreters of their own",
    "tests/server/test_serve.py": "servers as processes",
}
"""Folders and files, as seen from the root."""

SLOW_TESTS = {
    "test_a_compiled_model_is_multiplied_too": "a compiler",
}
"""Names of functions, in whichever file."""


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
        ([function], SLOW_TESTS),
    ):
        for name in names:
            if name in reasons:
                return reasons[name]
    return None
