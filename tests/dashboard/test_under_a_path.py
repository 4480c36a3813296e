"""The board under a path of another address, behind a proxy that takes the path off, in a real browser."""

import re

import httpx
import pytest

from tests.dashboard.feeder import EVERY, Feeder
from tests.dashboard.proxy import StrippingProxy
from tests.dashboard.serving import listening, served

BASE = "/user/ann/proxy/8237"
HEAT = "#heat-graph .heatmaplayer .hm image"
OUTWARD = re.compile(r"^(https?://|#|data:)")


def addresses(page):
    """Every address that an element of the page names."""
    found = "document.querySelectorAll('[href], [src], form[action]')"
    return page.evaluate(
        f"[...{found}].map(x => x.getAttribute('href') || x.getAttribute('src') || x.getAttribute('action'))"
    )


@pytest.mark.browser
def test_behind_a_proxy_every_link_asset_and_stream_lies_under_its_path(visit, directory):
    with (
        served(directory, base_path=BASE) as server,
        httpx.Client(base_url=server) as client,
        listening(proxy := StrippingProxy(server, BASE)) as address,
    ):
        feeder = Feeder(client, "r1", "behind", sick=("blocks.2",))
        feeder.start()
        feeder.train(until=400)
        page = visit(f"{BASE}/", address=address)
        page.click(".runs a.run-name")
        page.wait_for_selector(HEAT, state="attached")
        page.wait_for_url(f"{address}{BASE}/runs/r1")
        page.wait_for_function("document.querySelector('#live-badge').innerText.includes('live')")
        feeder.train(until=feeder.step)
        page.wait_for_function(
            "last => { const x = document.querySelector('#loss-graph .js-plotly-plot')._fullData[0].x;"
            " return x[x.length - 1] >= last; }",
            arg=feeder.step - EVERY,
        )
        seen = addresses(page)
        others = (("alerts", ".alert-title a"), ("scaling", "#scaling-report"), ("compare?runs=r1", ".compare-table"))
        for path, there in others:
            page.goto(f"{address}{BASE}/{path}")
            page.wait_for_selector(there, state="attached")
            seen += addresses(page)
        page.click(".crumbs .brand")
        page.wait_for_selector(".runs a.run-name")

    assert page.url == f"{address}{BASE}/"
    assert [one for one in seen if one and not one.startswith(BASE) and not OUTWARD.match(one)] == []
    assert proxy.beside == []
