"""A tab of a real Chromium whose time, bytes, CPU and memory are counted."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import sync_playwright

from benchmarks.board_server import cpu_seconds
from tests.conftest import BROWSER_ARGUMENTS, BROWSERS

WAIT_MS = 180_000
HEAT = "#heat-graph .heatmaplayer .hm image"
"""Is there once a heat map is drawn."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    clock_s: float
    tab_cpu_s: float
    server_cpu_s: float
    kilobytes: float
    bar: str


class Tab:
    """A page whose time, bytes and CPU are counted."""

    def __init__(self, browser: Any, address: str, server: int) -> None:
        self._context = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True)
        self.page = self._context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self._address, self._server = address, server
        self._session = self._context.new_cdp_session(self.page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._session.send("Network.enable")
        self._bytes = 0
        self._session.on("Network.dataReceived", self._count)

    def measure(self, what: str, act: Callable[[], object], *, bar: str = "") -> Row:
        """What an action costs, from its beginning until it returns."""
        began, tab, server, received = time.perf_counter(), self.cpu_s(), cpu_seconds(self._server), self._bytes
        act()
        now = self.cpu_s()
        spent = now - tab if now >= tab else now  # a new page may have a process of its own
        return Row(
            what, time.perf_counter() - began, spent, cpu_seconds(self._server) - server,
            (self._bytes - received) / 1_000, bar,
        )  # fmt: skip

    def open(self, path: str, *selectors: str) -> None:
        """Go to a page and wait until these are there."""
        self.page.goto(self._address + path)
        for selector in selectors:
            self.page.wait_for_selector(selector, state="attached")

    def cpu_s(self) -> float:
        """CPU seconds of the tab's main thread so far."""
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    def counts(self) -> dict[str, float]:
        """Bytes of scripts' memory and numbers of elements, once what nobody needs is thrown away."""
        self._session.send("HeapProfiler.collectGarbage")
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return {one["name"]: float(one["value"]) for one in metrics}

    def close(self) -> None:
        """Close the page."""
        self._context.close()

    def _count(self, event: dict[str, Any]) -> None:
        self._bytes += event.get("encodedDataLength") or 0


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's browser, without a screen."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit(f"no browser is found, tried {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=found, args=BROWSER_ARGUMENTS)
        yield instance
        instance.close()
