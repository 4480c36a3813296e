"""One server with four runs for all browser tests, and a real browser whose console must stay empty."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dashboard.feeder import Feeder
from tests.dashboard.serving import served

TIMEOUT_MS = 60_000
"""Long enough for a machine that is shared: what is well never waits for it."""


@dataclass(frozen=True)
class House:
    """A server that has runs: `sick` with 4 layers and an optimizer that tells of itself, `deep` with 96, `calm` that
    stays well."""

    address: str
    sick: Feeder
    deep: Feeder
    calm: Feeder


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The real server, fed through its HTTP API."""
    with served(tmp_path_factory.mktemp("board")) as address, httpx.Client(base_url=address, timeout=60) as client:
        sick = Feeder(client, "sick", "lr-30x", sick=("blocks.2",), nonfinite_from=380, tells=True)
        deep = Feeder(client, "deep", "deep-96", layers=96, heads=1, sick=("blocks.40",))
        calm = Feeder(client, "calm", "baseline")
        for feeder in (calm, deep, sick):
            feeder.start()
            feeder.train(until=400)
        yield House(address, sick, deep, calm)


@pytest.fixture(scope="session")
def contexts(browser: Any) -> Iterator[dict[str, Any]]:
    """One browser context a preferred scheme, for all tests: what a page loads once is in its cache for the next.

    They look the other way where a page's policy is concerned, for tests that evaluate strings; one test does not.
    """
    made = {scheme: browser.new_context(color_scheme=scheme, bypass_csp=True) for scheme in ("light", "dark")}
    yield made
    for context in made.values():
        context.close()


@pytest.fixture
def visit(browser: Any, contexts: dict[str, Any], house: House) -> Iterator[Callable[..., Any]]:
    """Opens a page of the board; whatever its console complains of fails the test.

    `afresh`: as a visitor who was never here, and who leaves no trace for other tests. `complains`: that the console
    does is what the test is about. `guarded`: afresh, under the page's own policy.
    """
    opened: list[Any] = []
    complaints: list[str] = []

    def open_page(
        path: str, *, address: str | None = None, width: int = 1440, height: int = 900, scheme: str = "light",
        afresh: bool = False, complains: bool = False, guarded: bool = False,
    ) -> Any:  # fmt: skip
        context = contexts[scheme]
        if afresh or guarded:
            context = browser.new_context(color_scheme=scheme, bypass_csp=not guarded)
            opened.append(context)
        page = context.new_page()
        opened.append(page)
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(TIMEOUT_MS)
        if not complains:
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        for feeder in (house.sick, house.deep, house.calm):
            feeder.beat()  # they live for as long as tests look at them
        page.goto((address or house.address) + path)
        return page

    yield open_page
    for one in reversed(opened):
        one.close()
    assert not complaints, complaints


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a second server keeps its database."""
    return tmp_path
