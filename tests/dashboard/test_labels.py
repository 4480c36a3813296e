"""Runs are renamed, tagged, pinned, archived and deleted from the board, and listed in the order asked for."""

import httpx
import pytest

from tests.dashboard.feeder import Feeder
from tests.dashboard.serving import served

pytestmark = pytest.mark.browser


def names(page):
    return page.locator(".runs a.run-name").all_text_contents()


def test_what_people_say_of_runs_is_kept_and_orders_the_list(visit, directory):
    with served(directory) as address, httpx.Client(base_url=address) as client:
        for name in ("a", "b", "c"):
            feeder = Feeder(client, name, f"run-{name}")
            feeder.start()
            feeder.train(until=40)
            feeder.finish()
        page = visit("/runs/b", address=address)
        page.on("dialog", lambda asked: asked.accept())
        page.click("[data-edit=name]")
        page.fill(".about-form input", "<b>baseline</b>")
        page.keyboard.press("Enter")
        page.wait_for_selector("#about dd:has-text('<b>baseline</b>')")
        page.click("[data-edit=tags]")
        page.fill(".about-form input", "paper, muon")
        page.keyboard.press("Enter")
        page.wait_for_selector("#about .tag:has-text('muon')")
        page.click("#about [data-change-run]:has-text('Pin')")
        page.wait_for_selector("#about [data-change-run]:has-text('Unpin')")
        assert page.locator(".crumb.here").inner_text() == "<b>baseline</b>"

        page.click(".crumbs .brand")
        page.wait_for_selector(".tag.is-pinned")
        assert names(page) == ["<b>baseline</b>", "run-c", "run-a"]
        page.click("[data-sort=name]")
        page.wait_for_function("document.querySelectorAll('.runs a.run-name')[1].innerText === 'run-a'")
        page.click("[data-choose=c]")
        page.click("[data-change-chosen]:has-text('Archive')")
        page.wait_for_function("document.querySelectorAll('.runs a.run-name').length === 2")
        page.click("[data-choose=a]")
        page.click("[data-delete-chosen]")
        page.wait_for_function("document.querySelectorAll('.runs a.run-name').length === 1")
        page.click("[data-archived]")
        page.wait_for_selector("h1:has-text('Archived runs')")

        assert names(page) == ["run-c"]
        assert page.url == f"{address}/?sort=name&archived=1"
        assert client.get("/api/v1/runs/a").status_code == 404
