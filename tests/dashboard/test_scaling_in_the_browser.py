"""The scaling page in a real browser, over a real server that holds a sound and a sick family."""

import re

import httpx
import pytest

from tests.dashboard.serving import served
from tests.dashboard.test_for_everyone import faults
from tests.server.families import hidden_too_fast, send_family

pytestmark = pytest.mark.browser
PLOT = "#loglog .scatterlayer .trace"
ROWS = ".scaling tbody tr"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a server with two families, and the runs of the sick one."""
    with served(tmp_path_factory.mktemp("lab")) as address, httpx.Client(base_url=address, timeout=60) as api:
        send_family(api, prefix="well-", project="well")
        yield address, send_family(api, prefix="sick-", project="sick", law=hidden_too_fast)


@pytest.fixture
def sick(lab):
    """Path of the sick family's page."""
    families = httpx.get(f"{lab[0]}/api/v1/scaling", timeout=60).json()["families"]
    return "/scaling?family=" + next(family["id"] for family in families if family["project"] == "sick")


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def wait_for_report(page):
    page.wait_for_selector(ROWS)
    page.wait_for_selector(PLOT, state="attached")


def test_the_sentence_names_the_mistake_and_the_worst_row_is_drawn(visit, lab, sick):
    page = visit(sick, address=lab[0])
    wait_for_report(page)

    assert "FAIL" in page.locator(".sentence").inner_text()
    assert "the hidden learning rate is not divided" in page.locator(".diagnosis").first.inner_text()
    first = page.locator(ROWS).first
    assert "FAIL" in first.inner_text() and first.locator(".mark").inner_text() == "■"
    assert first.locator(".quantity").inner_text().split("\n")[0] in page.locator("#exponent-head").inner_text()


def test_a_click_on_a_row_draws_its_plot_and_the_link_keeps_it(visit, lab, sick):
    page = visit(sick, address=lab[0])
    wait_for_report(page)

    row = page.locator(ROWS, has_text="embedding").first
    row.click()

    page.wait_for_url(re.compile("row=" + re.escape(row.get_attribute("data-exponent"))))
    page.wait_for_function("document.querySelector('#exponent-head').innerText.includes('embedding')")
    page.reload()
    wait_for_report(page)
    assert "embedding" in page.locator("#exponent-head").inner_text()
    assert "embedding" in page.locator(ROWS + ".is-open").inner_text()


def test_a_family_is_picked_from_the_list_and_another_from_the_box(visit, lab):
    page = visit("/", address=lab[0])
    page.get_by_role("link", name="Scaling").click()
    page.wait_for_selector(".families")

    page.locator(".families button", has_text="well").click()
    wait_for_report(page)
    page.wait_for_url(re.compile("family="))
    assert "PASS" in page.locator(".sentence").inner_text()

    page.click("#family")
    page.get_by_role("option", name=re.compile("sick")).click()
    page.wait_for_function("document.querySelector('.sentence').innerText.includes('FAIL')")


def test_the_filter_keeps_rows_and_is_in_the_address(visit, lab, sick):
    page = visit(sick + "&filter=logits", address=lab[0])
    wait_for_report(page)

    assert all("logits" in text for text in page.locator(ROWS + " .quantity").all_inner_texts())


def test_runs_may_be_named_in_the_address(visit, lab):
    page = visit("/scaling?runs=" + ",".join(lab[1]), address=lab[0])
    wait_for_report(page)

    assert "as named in the address" in page.locator("#family-note").inner_text()
    assert page.locator("#members li").count() == len(lab[1])


def test_runs_that_are_no_family_are_refused_in_words_with_a_way_out(visit, lab):
    page = visit("/scaling?runs=" + ",".join(lab[1][:2]), address=lab[0])

    page.wait_for_selector("text=These runs cannot be checked")
    assert page.get_by_text("1 more width").is_visible()
    assert page.get_by_role("link", name="All families").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1440, "dark")])
def test_the_page_fits_the_screen_and_its_plot_is_seen(visit, lab, sick, width, scheme):
    page = visit(sick, address=lab[0], width=width, height=844, scheme=scheme)
    wait_for_report(page)

    assert overflow(page) <= 0
    page.wait_for_function("document.querySelector('#loglog .main-svg').getBoundingClientRect().height > 250")
    plot = page.locator("#loglog .main-svg").first.bounding_box()
    assert plot["width"] <= width
    font = page.evaluate("document.querySelector('#loglog .js-plotly-plot').layout.template.layout.font.color")
    assert font == {"light": "#1f2328", "dark": "#e3e6ea"}[scheme]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_axe_finds_no_serious_fault_on_a_family_s_page(visit, lab, sick, width, scheme):
    page = visit(sick, address=lab[0], width=width, scheme=scheme)
    wait_for_report(page)

    assert faults(page) == []
