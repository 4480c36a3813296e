"""The board in a real browser, over the real server, fed through its HTTP API."""

import re
from itertools import pairwise
from typing import Any

import httpx
import pytest
from playwright.sync_api import TimeoutError as StillWaiting

from tests.dashboard.serving import served

pytestmark = pytest.mark.browser
CLICKS, CLICK_MS = 5, 4_000
STILL_READS, STILL_MS = 20, 400
"""A chart is at rest when two readings this far apart agree: rows that are opened push the others down."""
HEAT = "#heat-graph .heatmaplayer .hm image"


def wait_for_charts(page: Any) -> None:
    page.wait_for_selector(HEAT, state="attached")
    page.wait_for_selector(".card")


def wait_for_address(page: Any, pattern: str) -> None:
    page.wait_for_url(re.compile(pattern))


def heat_labels(page: Any) -> list[str]:
    return page.locator("#heat-graph .ytick text").all_text_contents()


def places(page: Any, label: str) -> tuple[dict[str, float], dict[str, float]]:
    """Where the row with this label and the plot are, once the chart has come to rest."""
    before = None
    page.locator("#heat-graph .ytick text", has_text=label).first.scroll_into_view_if_needed()
    for _ in range(STILL_READS):
        row = page.locator("#heat-graph .ytick text", has_text=label).first.bounding_box()
        plot = page.locator("#heat-graph .nsewdrag").first.bounding_box()
        if (row, plot) == before:
            break
        before = row, plot
        page.wait_for_timeout(STILL_MS)
    return row, plot


def click_row(page: Any, label: str, *, at: float = 0.9) -> None:
    """Click a cell of the row with this label."""
    row, plot = places(page, label)
    page.mouse.move(plot["x"] + at * plot["width"] - 3, row["y"] + row["height"] / 2)
    page.wait_for_selector("#heat-graph .hoverlayer .hovertext")
    page.mouse.click(plot["x"] + at * plot["width"], row["y"] + row["height"] / 2)


def click_row_until(page: Any, label: str, pattern: str) -> None:
    """Click a cell as a person does: again, if the chart was being redrawn just then."""
    for _ in range(CLICKS):
        click_row(page, label)
        try:
            page.wait_for_url(re.compile(pattern), timeout=CLICK_MS)
        except StillWaiting:
            continue
        return
    raise AssertionError(f"{CLICKS} clicks on {label} did not lead to {pattern}")


SPAN = "(([low, high]) => high - low)(document.querySelector('#heat-graph .js-plotly-plot').layout.xaxis.range)"
"""Steps that the heat map shows."""
BEYOND = """
(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let above = element.parentElement; above; above = above.parentElement)
      if (above.clientWidth && /auto|scroll/.test(getComputedStyle(above).overflowX)) return true;
    return false;
  };
  return [...document.querySelectorAll("main *")]
    .filter((element) => element.offsetParent && !scrolls(element))
    .filter((element) => element.getBoundingClientRect().right > width + 1)
    .map((element) => element.outerHTML.slice(0, 80));
})()
"""
"""Elements that reach beyond the screen and lie in nothing of their own that scrolls."""


def test_the_run_page_says_the_worst_thing_and_shows_where(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)

    assert "blocks.2" in page.locator(".sentence").inner_text()  # what broke first, not what is worst
    assert page.locator(".card").count() == 6
    assert page.locator(".card", has_text="Update").locator(".mark").inner_text() == "■"
    assert "not measured" in page.locator(".card", has_text="Dependency").inner_text()
    assert page.locator("#board tbody tr").first.inner_text().startswith("blocks.1")
    assert "live" in page.locator("#live-badge").inner_text()
    assert "▸ blocks.2" in heat_labels(page)


def test_with_96_layers_labels_do_not_overlap_and_every_block_is_on_the_board(visit, house):
    page = visit("/runs/deep", scheme="dark")
    wait_for_charts(page)

    tops = "labels => labels.map(label => label.getBoundingClientRect().y)"
    boxes = sorted(page.eval_on_selector_all("#heat-graph .ytick text", tops))
    assert min(b - a for a, b in pairwise(boxes)) >= 12
    assert page.locator("#board tr").count() == 1 + 98
    assert page.locator("#board tbody tr").first.inner_text().startswith("blocks.40")


def test_news_arrive_without_a_reload(visit, house):
    page = visit("/runs/calm")
    wait_for_charts(page)
    page.evaluate("window.stays = true")
    assert "400" in page.locator(".facts").inner_text()

    house.calm.train(until=450)

    page.wait_for_function("document.querySelector('.facts').innerText.includes('450')")
    assert page.evaluate("window.stays")


def test_ages_tick_by_themselves(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)
    before = page.locator("#live-badge .age").inner_text()

    page.wait_for_function("old => document.querySelector('#live-badge .age').innerText !== old", arg=before)


def test_the_theme_button_repaints_everything_and_the_link_keeps_it(visit, house):
    page = visit("/runs/sick", afresh=True)
    wait_for_charts(page)
    assert page.evaluate("document.documentElement.dataset.mantineColorScheme") == "light"

    page.click("#theme-button")

    wait_for_address(page, "theme=dark")
    is_dark = "document.documentElement.dataset.mantineColorScheme === 'dark'"
    is_drawn_dark = (
        "document.querySelector('#heat-graph .js-plotly-plot').layout.template.layout.font.color === '#e3e6ea'"
    )
    page.wait_for_function(is_dark)
    page.wait_for_function(is_drawn_dark)
    for address in (page.url, page.url.split("?")[0]):  # by the link, and by what the browser keeps
        page.goto(address)
        wait_for_charts(page)
        page.wait_for_function(is_drawn_dark)
        assert page.evaluate(is_dark)


def test_a_first_visit_honours_the_preferred_scheme(visit, house):
    page = visit("/", scheme="dark")
    page.wait_for_selector(".runs")

    assert page.evaluate("document.documentElement.dataset.mantineColorScheme") == "dark"


def test_a_link_reproduces_the_view(visit, house):
    page = visit("/runs/sick?metric=weight.operator_norm&steps=200-390&filter=attn&theme=dark")
    wait_for_charts(page)

    assert page.locator("#metric").input_value() == "weight.operator_norm"
    assert page.locator("#filter-box").input_value() == "attn"
    assert heat_labels(page) and all("attn" in label for label in heat_labels(page))
    low, high = page.evaluate("document.querySelector('#loss-graph .js-plotly-plot').layout.xaxis.range")
    assert 190 < low < 200 and 390 < high < 400


def test_brushing_one_chart_zooms_all_and_a_double_click_resets(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)
    page.wait_for_selector("#loss-graph .scatterlayer .trace")
    plot = page.locator("#loss-graph .nsewdrag").first.bounding_box()
    middle = plot["y"] + plot["height"] / 2

    zoomed = "document.querySelector('#heat-graph .js-plotly-plot').layout.xaxis.range[1] < 300"

    def drag() -> None:
        page.mouse.move(plot["x"] + plot["width"] * 0.3, middle)
        page.mouse.down()
        page.mouse.move(plot["x"] + plot["width"] * 0.6, middle, steps=6)
        page.mouse.up()
        wait_for_address(page, r"steps=\d+-\d+")
        page.wait_for_function(zoomed)

    drag()
    page.click("#reset-zoom")
    page.wait_for_function(f"!({zoomed})")
    drag()
    page.locator("#heat-graph .nsewdrag").first.dblclick()
    page.wait_for_function(f"!({zoomed})")
    assert "steps=" not in page.url


def test_a_line_stands_at_the_same_step_in_all_charts_and_wheel_and_buttons_zoom_there(visit, house):
    page = visit("/runs/calm")
    wait_for_charts(page)
    page.wait_for_selector("#loss-graph .scatterlayer .trace")
    plot = page.locator("#loss-graph .nsewdrag").first.bounding_box()
    whole = page.evaluate(SPAN)

    page.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + 20)
    page.wait_for_selector("#heat-graph .pointed:not([hidden])")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    wait_for_address(page, r"steps=\d+-\d+")
    page.wait_for_function(f"{SPAN} < {0.7 * whole}")

    near = page.evaluate(SPAN)
    page.get_by_role("button", name="zoom in").click()
    page.wait_for_function(f"{SPAN} < {0.6 * near}")


def test_a_click_opens_a_block_and_another_draws_the_series_with_its_band(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)

    click_row_until(page, "blocks.2", "open=blocks.2")
    page.locator("#heat-graph .ytick text", has_text="mlp.up").wait_for()
    click_row_until(page, "mlp.up", r"series=\d+")

    page.wait_for_selector("#series-graph .scatterlayer .trace", state="attached")
    assert "blocks.2.mlp.up" in page.locator(".mantine-Drawer-title").inner_text()
    assert "own baseline" in page.locator("#detail-facts").inner_text()


def test_a_row_label_opens_its_block_too(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)
    label = page.locator("#heat-graph .ytick text", has_text="blocks.0").first.bounding_box()

    page.mouse.click(label["x"] + label["width"] / 2, label["y"] + label["height"] / 2)

    wait_for_address(page, "open=blocks.0")


def test_a_card_leads_to_its_worst_member_and_escape_leads_back(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)

    page.locator(".card", has_text="Attention").locator("button").click()

    page.wait_for_selector("#series-graph .scatterlayer .trace", state="attached")
    assert "blocks.2.attn · head 0" in page.locator(".mantine-Drawer-title").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_function("!location.search.includes('series')")


def test_coverage_names_what_is_silent(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)

    page.click("#coverage-button")

    page.wait_for_selector(".coverage")
    assert "blocks.0.aux" in page.locator(".coverage").inner_text()
    assert "panel=coverage" in page.url


def test_the_optimizer_s_panel_draws_what_it_tells_and_a_value_of_its_table_leads_to_the_series(visit, house):
    page = visit("/runs/sick")
    wait_for_charts(page)
    page.wait_for_selector("#optimizer-graph .scatterlayer .trace", state="attached")
    assert page.locator("#optimizer-graph .ytitle, #optimizer-graph .y2title, #optimizer-graph .y3title").count() == 3
    assert "16 muon" in page.locator("#routing-summary").inner_text()

    page.click("#routing-summary")
    row = page.locator(".routing tbody tr", has_text="blocks.2.mlp.up.weight")
    assert "decay" in row.inner_text()
    row.get_by_role("button").nth(1).click()

    page.wait_for_selector("#series-graph .scatterlayer .trace", state="attached")
    assert "optimizer.audit" in page.locator("#detail").inner_text()
    assert "blocks.2.mlp.up.weight" in page.locator(".mantine-Drawer-title").inner_text()


def test_without_anything_known_of_an_optimizer_its_panel_is_not_shown(visit, house):
    page = visit("/runs/calm")
    wait_for_charts(page)

    assert not page.locator("#optimizer").is_visible()


def test_the_runs_table_leads_to_a_run_and_can_be_filtered(visit, house):
    page = visit("/")
    page.wait_for_selector(".runs tbody tr")
    assert page.locator(".runs tbody tr").count() == 3

    page.keyboard.press("/")
    page.keyboard.type("30x")
    page.wait_for_function("document.querySelectorAll('.runs tbody tr').length === 1")
    page.locator(".runs tbody tr td").nth(3).click()

    wait_for_address(page, "/runs/sick")
    wait_for_charts(page)


def test_open_alerts_can_be_acknowledged(visit, house):
    page = visit("/alerts?filter=max_logit|attention", afresh=True)
    page.wait_for_selector(".alert-item")
    item = page.locator(".alert-item", has_text="blocks.2.attn").first
    assert "Try:" in item.inner_text() and "lr-30x" in item.inner_text()

    item.get_by_role("button", name="Acknowledge").click()
    page.keyboard.type("ada")
    page.keyboard.press("Enter")

    page.wait_for_selector("text=acknowledged by ada")


@pytest.mark.parametrize(
    "path",
    ["/", "/runs/sick", "/runs/deep", "/alerts", "/compare?runs=sick,calm", "/conditions", "/conditions/numeric"],
)
def test_a_phone_never_scrolls_sideways_and_nothing_reaches_beyond_it(visit, house, path):
    page = visit(path, width=390, height=844)
    if path.startswith("/runs/"):
        wait_for_charts(page)
    else:
        page.wait_for_selector(".runs, .alerts, .standing, .conditions, .condition-told")

    # a chart is 700 px wide until it has been told the size of its place
    page.wait_for_function("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(BEYOND) == []
    if path.startswith("/runs/"):
        lefts = {round(card.bounding_box()["x"]) for card in page.locator(".card").all()}
        assert len(lefts) == 1


def test_an_unknown_run_says_what_to_do(visit, house):
    page = visit("/runs/nope")

    page.wait_for_selector("text=Not found")
    assert page.get_by_text("All runs").is_visible()


def test_a_token_opens_the_board_and_an_empty_one_shows_the_lines_to_copy(visit, directory):
    with served(directory, token="s3cret") as address:
        page = visit("/alerts", address=address)
        page.fill("#token", "s3cret")
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_selector("text=All quiet")

        page.goto(address)
        page.wait_for_selector("#two-lines")
        assert f'server="{address}"' in page.locator("#two-lines").inner_text()
        assert httpx.get(f"{address}/api/v1/runs").status_code == 401

        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector("#token")
        page.goto(address)
        page.wait_for_selector("#token")
        page.close()
