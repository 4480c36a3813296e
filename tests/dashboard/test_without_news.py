"""The board when its server dies, and when runs do: never calm without news."""

from contextlib import ExitStack

import httpx
import pytest

from tests.dashboard.feeder import Feeder
from tests.dashboard.serving import served
from tests.dashboard.test_in_the_browser import wait_for_charts

pytestmark = pytest.mark.browser
GREY = "getComputedStyle(document.querySelector('main')).filter.includes('grayscale')"


@pytest.fixture
def feeds():
    """Feeds a run to the server at an address, and lets it go on there."""
    with ExitStack() as clients:

        def feed(address, **about):
            client = clients.enter_context(httpx.Client(base_url=address, timeout=60))
            feeder = Feeder(client, "well", "baseline", **about)
            feeder.start()
            feeder.train(until=400)
            return feeder

        yield feed


def test_a_dead_server_is_said_on_the_page_and_in_the_title_and_the_page_comes_back_by_itself(visit, directory, feeds):
    with served(directory) as address:
        feeder = feeds(address)
        page = visit("/runs/well", address=address, complains=True)
        wait_for_charts(page)
        page.wait_for_function("document.title === '● · baseline'")
        assert "4a7a62" in page.locator("link[rel=icon]").get_attribute("href")

    page.wait_for_selector("#connection")
    assert "No connection since" in page.locator("#connection").inner_text()
    assert "drawn is the last answer" in page.locator("#connection").inner_text()
    assert page.title() == "offline · baseline"
    assert page.evaluate(GREY)
    assert page.locator(".badge-lost").is_visible() and not page.locator("#live-badge").is_visible()

    with served(directory, port=httpx.URL(address).port):
        feeder.train(until=450)
        page.wait_for_selector("#connection", state="detached")
        page.wait_for_function("document.querySelector('.facts').innerText.includes('450')")
        assert not page.evaluate(GREY)
        assert page.title() == "● · baseline"
        page.close()


def test_a_run_that_ended_says_so_before_its_verdict_and_forecasts_nothing(visit, directory, feeds):
    with served(directory) as address:
        feeder = feeds(address, sick=("blocks.2",))
        feeder.finish()
        page = visit("/runs/well", address=address)
        wait_for_charts(page)

        said = page.locator(".sentence").inner_text()
        assert "Finished at step 400" in said and "violated" in said
        assert "if this goes on" not in page.locator("main").inner_text()
        page.close()
