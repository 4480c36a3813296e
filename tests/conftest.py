"""What tests of several rooms share: a real browser, Alertmanager and Prometheus, and which of them are fast."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import settings

from tests.speed import LONG_FIXTURES, LONGEST, SLOW_FIXTURES, is_slow_place, why_slow

ROOT = PurePosixPath(Path(__file__).parents[1].as_posix())
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


# What is drawn at random is the same in every run that decides over a change; `make fuzz` looks further.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Have a server that set up its log in this process do so for one test alone."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [one for one in root.handlers if type(one).__module__.startswith("internist_server")]:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium; without one the tests are skipped, except where CI is set."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no browser: CI must have one (apt-get install chromium)")
        pytest.skip("no browser found: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=found, args=BROWSER_ARGUMENTS)
        yield instance
        instance.close()


@pytest.fixture(scope="session")
def alertmanager_program() -> str:
    """Debian's Alertmanager; without it the tests are skipped, except where CI is set."""
    return _found("prometheus-alertmanager", "alertmanager", within="alertmanager", package="prometheus-alertmanager")


@pytest.fixture(scope="session")
def prometheus_program() -> str:
    """Debian's Prometheus, likewise."""
    return _found("prometheus", within="prometheus", package="prometheus")


@pytest.fixture(scope="session")
def promtool_program() -> str:
    """What checks files and metrics for Prometheus, of the same package."""
    return _found("promtool", within="prometheus", package="prometheus")


def _found(*names: str, within: str, package: str) -> str:
    """A program of a Debian package: an installed one, or one that `make test` has fetched."""
    beside = Path(sys.prefix, within, "usr", "bin")
    found = next((path for name in names if (path := shutil.which(name) or shutil.which(name, path=beside))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"no {names[0]}: CI must have one (apt-get install {package})")
        pytest.skip(f"no {names[0]} found: apt-get install {package}")
    return found


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no file in vain: importing what slow tests need takes longer than many a fast test."""
    is_wanted = config.option.markexpr != "fast" or not collection_path.is_relative_to(Path(ROOT))
    return None if is_wanted or not is_slow_place(PurePosixPath(collection_path.relative_to(ROOT).as_posix())) else True


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """Time what tests share: the first that asks pays for it, whichever that is."""
    began = time.perf_counter()
    result = yield
    took = time.perf_counter() - began
    if took > LONGEST and fixturedef.argname not in SLOW_FIXTURES:
        request.config.stash.setdefault(LONG_FIXTURES, {})[f"{fixturedef.argname} ({request.node.nodeid})"] = took
    return result


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as fast whatever `tests.speed` does not list."""
    for item in items:
        path = PurePosixPath(item.path.as_posix()).relative_to(ROOT)
        function, fixtures = getattr(item, "originalname", item.name), set(getattr(item, "fixturenames", ()))
        if why_slow(path, function, fixtures, {marker.name for marker in item.iter_markers()}) is None:
            item.add_marker("fast")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the fast tests that were not: for a machine that does nothing else, such as CI's."""
    took: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and "fast" in report.keywords:
                took[report.nodeid] = took.get(report.nodeid, 0.0) + report.duration
    for name, seconds in sorted(took.items(), key=lambda entry: -entry[1]):
        if seconds > LONGEST and os.environ.get("CI"):
            terminalreporter.write_line(f"not fast: {seconds:.1f} s {name} (tests/speed.py)")
    for name, seconds in terminalreporter.config.stash.get(LONG_FIXTURES, {}).items():
        if os.environ.get("CI"):
            terminalreporter.write_line(f"a slow fixture: {seconds:.1f} s {name} (tests/speed.py)")
