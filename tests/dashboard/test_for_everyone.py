"""The board for everyone, and safe: its own policy, no serious fault that axe finds, the way by keyboard."""

from importlib.resources import files

import pytest

from tests.dashboard.feeder import Feeder
from tests.dashboard.test_in_the_browser import HEAT, wait_for_charts

pytestmark = pytest.mark.browser
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
GRAVE = ("serious", "critical")
PAGES = (
    ("/", ".runs"), ("/alerts", ".alert-item"), ("/runs/nope", ".empty"), ("/scaling", ".empty"),
    ("/compare?runs=sick,calm", "#difference-graph .heatmaplayer .hm image"), ("/conditions", ".conditions"),
    ("/conditions/update", "#condition-graph .scatterlayer .trace"),
)  # fmt: skip
"""Beside the run's, each with what it has when it is drawn."""


def faults(page):
    """What axe-core finds that shuts people out, as `rule: element`."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [f"{one['id']}: {node['html']}" for one in found if one["impact"] in GRAVE for node in one["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_axe_finds_no_serious_fault(visit, house, scheme, width):
    page = visit("/runs/sick", scheme=scheme, width=width)
    wait_for_charts(page)
    page.wait_for_selector(".chart-menu", state="attached")
    assert faults(page) == []

    for path, there in PAGES:
        page.goto(house.address + path)
        page.wait_for_selector(there, state="attached")
        assert faults(page) == [], path


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1440)])
def test_axe_finds_no_serious_fault_where_a_run_has_ranks(visit, house, scheme, width):
    client = house.calm.client
    Feeder(client, "spread", "spread", layers=1, ranks=3).start()
    try:
        page = visit("/runs/spread", scheme=scheme, width=width)
        page.wait_for_selector("#ranks table")
        assert "2 never seen" in page.locator("#ranks-note").inner_text()
        assert faults(page) == []
        page.close()
    finally:
        client.delete("/api/v1/runs/spread").raise_for_status()


def test_pages_work_under_their_own_policy(visit, house):
    page = visit("/runs/sick", guarded=True)
    page.wait_for_selector(HEAT, state="attached")
    page.wait_for_selector(".chart-menu", state="attached")
    page.locator(".card", has_text="Attention").locator("button").click()
    page.wait_for_selector("#series-graph .scatterlayer .trace", state="attached")


def test_a_divergence_is_found_by_the_keyboard_alone(visit, house):
    page = visit("/alerts?run=sick")
    page.wait_for_selector(".alert-item")
    assert page.title().startswith("■")

    page.keyboard.press("j")
    page.wait_for_function("document.activeElement.innerText.startsWith('Numeric')")
    page.keyboard.press("Enter")

    page.wait_for_selector("#series-graph .scatterlayer .trace", state="attached")
    assert "blocks.1.mlp.down" in page.locator(".mantine-Drawer-title").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_url(lambda address: "series" not in address)
    page.go_back()
    page.wait_for_url(lambda address: "series" in address)
    page.wait_for_selector(".mantine-Drawer-title >> visible=true")


def test_a_chart_s_numbers_are_there_as_a_table_and_what_is_drawn_equals_the_api(visit, house):
    page = visit("/runs/calm")
    wait_for_charts(page)
    page.locator(".area-loss .chart-menu summary").click()
    page.get_by_role("button", name="show as a table").first.click()

    rows = page.locator("dialog tbody tr").all_inner_texts()
    known = house.calm.client.get("/api/v1/runs/calm/points?metric=loss&pixels=10000").json()["windows"][0]
    drawn = {int(row.split()[0]): float(row.split()[-1]) for row in rows}
    for step, value in zip(known["steps"], known["values"], strict=True):
        assert drawn[step] == pytest.approx(value, rel=1e-5)
    page.keyboard.press("Escape")
