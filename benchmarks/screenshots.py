"""A picture of every page of the board, at both widths, in both colour schemes, of every scene: to be looked at.

python -m benchmarks.screenshots [--into DIRECTORY] [--only WORD]
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import httpx
import msgspec

from benchmarks.board_scenes import SCENES
from benchmarks.board_server import serving
from benchmarks.board_tab import HEAT, WAIT_MS, chromium
from internist.schema.wire import MSGPACK_CONTENT_TYPE, Heartbeat

WIDTHS = (1440, 390)
SCHEMES = ("light", "dark")
REST_MS = 1_500
"""Charts have come to rest after this long."""
PAGES = (
    ("runs", "/", ".runs tbody tr"),
    ("alerts", "/alerts", ".alerts, .empty"),
    ("scaling", "/scaling", ".empty"),
    ("condition", "/conditions/spectral_weight", "#condition-graph .scatterlayer .trace"),
)
LIVING = {"calm": 800, "diverges": 600}
"""Runs of scenes that go on, with their last steps."""
MSGPACK = {"Content-Type": MSGPACK_CONTENT_TYPE}


def pages(client: httpx.Client) -> Iterator[tuple[str, str, str]]:
    """Name, path, and what must be there, of everything that is drawn."""
    names = []
    for scene in SCENES:
        path = scene.make(client)
        names.append(path.rpartition("/")[2])
        yield scene.name, path, HEAT
    diverged = client.get("/api/v1/alerts", params={"run": "diverges", "limit": 1}).json()["alerts"][0]
    yield "series", f"/runs/diverges?series={diverged['series']}", "#series-graph .scatterlayer .trace"
    yield "compare", f"/compare?runs={','.join(names)}", "#compare-graph .scatterlayer .trace"
    yield from PAGES


def _sign(run: str, step: int) -> bytes:
    """A sign of life."""
    return msgspec.msgpack.encode(Heartbeat(f"{run}-a", 0, step, 100))


def main() -> int:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=Path("build/screenshots"), help="where the pictures go")
    parser.add_argument("--only", default="", help="only pages whose name has this in it")
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="internist-board-") as place,
        serving(Path(place)) as (_, address),
        httpx.Client(base_url=address, timeout=600) as client,
        chromium() as browser,
    ):
        shown = [page for page in pages(client) if arguments.only in page[0]]
        again = {scene.name: scene.again for scene in SCENES if scene.again is not None}
        for width, scheme in product(WIDTHS, SCHEMES):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)
            for name, path, there in shown:
                for run, step in LIVING.items():
                    client.post(
                        f"/api/v1/runs/{run}/heartbeat", content=_sign(run, step), headers=MSGPACK
                    ).raise_for_status()
                if name in again:
                    again[name](client)
                page.goto(address + path)
                page.wait_for_selector(there, state="attached")
                page.wait_for_timeout(REST_MS)
                picture = arguments.into / f"{name}-{width}-{scheme}.png"
                page.screenshot(path=picture, full_page=name != "series")
                print(picture, flush=True)
            context.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
