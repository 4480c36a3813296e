"""What the board costs in a real browser, at sizes at which boards of others break.

    python -m benchmarks.board [--quick] [--json]

A real server on SQLite, a real headless Chromium. Where the machine is shared, seconds on the clock say little: CPU
seconds of the tab and of the server stand beside them.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import sync_playwright

from benchmarks import board_scenes
from benchmarks.board_server import cpu_seconds, serving
from tests.conftest import BROWSER_ARGUMENTS, BROWSERS
from tests.dashboard.feeder import EVERY, Feeder

WAIT_MS = 180_000
HEAT = "#heat-graph .heatmaplayer .hm image"
WATCH_S = 20.0
BOARDS = 20


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

    def close(self) -> None:
        """Close the page."""
        self._context.close()

    def _count(self, event: dict[str, Any]) -> None:
        self._bytes += event.get("encodedDataLength") or 0


def measure(browser: Any, client: httpx.Client, address: str, server: int, *, quick: bool) -> Iterator[Row]:
    """All measurements, one after the other."""
    size = {"series": 1_900, "samples": 200} if quick else {"series": 12_000, "samples": 2_000}
    big = board_scenes.many_series(client, **size)
    board_scenes.many_runs(client, runs=200 if quick else 5_000)
    tab = Tab(browser, address, server)
    said = f"{size['series']:,} series x {size['samples']:,} samples"
    yield tab.measure(f"{said}: first paint, cold", lambda: tab.open(big, ".card", HEAT), bar="1.5 s, 1,000 kB")
    yield tab.measure(f"{said}: first paint, warm", lambda: tab.open(big, ".card", HEAT), bar="1.5 s, 100 kB")
    tab.page.wait_for_timeout(2_000)
    yield tab.measure("zoom", partial(_zoom, tab.page), bar="0.3 s")
    yield tab.measure("filter", partial(_filter, tab.page), bar="200 rows at most")
    yield tab.measure("runs page", lambda: tab.open("/", ".runs tbody tr"), bar="server's page 0.05 s")
    yield tab.measure("alerts page", lambda: tab.open("/alerts", ".alert-item"))
    yield tab.measure(
        f"alerts page, {WATCH_S:.0f} s", lambda: tab.page.wait_for_timeout(1_000 * WATCH_S), bar="0.02 cores"
    )
    tab.close()
    yield from _live(browser, client, address, server)


def _zoom(page: Any) -> None:
    plot = page.locator("#loss-graph .nsewdrag").first.bounding_box()
    middle = plot["y"] + plot["height"] / 2
    page.mouse.move(plot["x"] + plot["width"] * 0.3, middle)
    page.mouse.down()
    page.mouse.move(plot["x"] + plot["width"] * 0.6, middle, steps=4)
    page.mouse.up()
    page.wait_for_function(
        "(() => { const x = id => document.querySelector(`#${id} .js-plotly-plot`).layout.xaxis.range;"
        " return Math.abs(x('heat-graph')[0] - x('loss-graph')[0]) < 1; })()"
    )


def _filter(page: Any) -> None:
    page.fill("#filter-box", "attn|mlp")
    page.wait_for_function(
        "(() => { const y = document.querySelector('#heat-graph .js-plotly-plot')._fullLayout.yaxis.categoryarray;"
        " return y && y.length && [...y].every(name => /attn|mlp/.test(name)); })()"
    )


def _live(browser: Any, client: httpx.Client, address: str, server: int) -> Iterator[Row]:
    """A run that goes on, watched by one board and by twenty."""
    feeder = Feeder(client, "goes-on", "goes on", layers=12, heads=4)
    feeder.start()
    feeder.train(until=1_000)
    tabs = [Tab(browser, address, server)]
    tabs[0].open("/runs/goes-on", ".card", HEAT)
    tabs[0].page.wait_for_timeout(3_000)
    yield tabs[0].measure("a sample, from commit to pixels", partial(_sample, feeder, tabs[0].page), bar="0.3 s, 5 kB")
    yield tabs[0].measure(f"one board, {WATCH_S:.0f} s of 2 samples/s", partial(_watch, feeder, tabs[0].page))
    for _ in range(BOARDS - 1):
        tabs.append(Tab(browser, address, server))
        tabs[-1].open("/runs/goes-on", ".card", HEAT)
    yield tabs[0].measure(f"{BOARDS} boards, the same", partial(_watch, feeder, tabs[0].page), bar="0.2 cores of 50")
    for tab in tabs:
        tab.close()


def _sample(feeder: Feeder, page: Any) -> None:
    feeder.train(until=feeder.step)
    page.wait_for_function(
        "last => { const x = document.querySelector('#loss-graph .js-plotly-plot')._fullData[0].x;"
        " return x[x.length - 1] >= last; }",
        arg=feeder.step - EVERY,
    )


def _watch(feeder: Feeder, page: Any) -> None:
    until = time.monotonic() + WATCH_S
    while time.monotonic() < until:
        feeder.train(until=feeder.step)
        page.wait_for_timeout(500)


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


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller scenes, minutes instead of half an hour")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="internist-board-") as place,
        serving(Path(place)) as (server, address),
        httpx.Client(base_url=address, timeout=600) as client,
        chromium() as browser,
    ):
        for row in measure(browser, client, address, server, quick=arguments.quick):
            if arguments.json:
                print(json.dumps(asdict(row)), flush=True)
                continue
            cost = f"{row.clock_s:7.2f} s  tab {row.tab_cpu_s:6.2f} s  server {row.server_cpu_s:6.2f} s"
            print(f"{row.what:48} {cost}  {row.kilobytes:8.1f} kB  {row.bar and 'bar: ' + row.bar}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
