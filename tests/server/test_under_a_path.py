import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from internist_server.app import create_app
from internist_server.settings import Settings

BASE = "/internist"
TOKEN = "secret"


@pytest.fixture
def under(sqlite_url):
    """A server with its board that people reach under a path, and that asks for a token."""
    app = create_app(
        Settings(database_url=sqlite_url, token=TOKEN, base_path=f"{BASE}/", allowed_hosts=("testserver",))
    )
    with TestClient(app, follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize("prefix", ["", BASE])
def test_the_api_answers_whether_the_proxy_takes_the_path_off_or_not(under, prefix):
    answer = under.get(f"{prefix}/api/v1/runs", headers={"Authorization": f"Bearer {TOKEN}"})

    assert (answer.status_code, answer.json()) == (200, [])


def test_a_path_that_only_begins_alike_is_not_the_servers(under):
    assert under.get(f"{BASE}-other/api/v1/runs").status_code == 303  # a page, for which one signs in


@pytest.mark.parametrize("prefix", ["", BASE])
def test_signing_in_stays_under_the_path(under, prefix):
    away = under.get(f"{prefix}/runs/x")
    back = under.post(f"{prefix}/login", data={"token": TOKEN, "next": "/runs/x"})

    assert away.headers["location"].startswith(f"{BASE}/login?next=")
    assert back.headers["location"] == f"{BASE}/runs/x"
    assert f"Path={BASE};" in back.headers["set-cookie"]
    assert under.get(f"{BASE}/api/v1/runs").status_code == 200
    assert under.post("/login", data={"token": TOKEN, "next": f"{BASE}/runs/x"}).headers["location"] == f"{BASE}/runs/x"


def test_a_page_names_its_scripts_under_the_path(under):
    page = under.get(f"{BASE}/", headers={"Authorization": f"Bearer {TOKEN}"}).text

    assert f'data-base="{BASE}/"' in page
    assert f'src="{BASE}/_dash-component-suites/' in page
    assert 'src="/_dash' not in page
    assert 'href="/assets' not in page


@pytest.mark.parametrize("path", ["internist", "/a b", '/"><script>', "/a/../b/?", "//other.example"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValidationError, match="expected a path such as /internist"):
        Settings(base_path=path)


def test_links_in_notifications_have_the_path_too():
    assert Settings(base_path=BASE, port=8237).address == "http://127.0.0.1:8237/internist"
