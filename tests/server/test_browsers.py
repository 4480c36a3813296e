import pytest
from starlette.testclient import TestClient

from internist_migrations.upgrade import upgrade
from internist_server.app import create_app
from internist_server.browsers import name_of, names_of
from internist_server.settings import Settings

HERE = "http://127.0.0.1:8237"
HEADERS = ("x-content-type-options", "x-frame-options", "content-security-policy", "referrer-policy")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """An open server on loopback, with its board."""
    url = f"sqlite:///{tmp_path_factory.mktemp('here') / 'a.db'}"
    upgrade(url)
    with TestClient(create_app(Settings(database_url=url)), base_url=HERE, follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/api/v1/runs", "/metrics", "/openapi.json", "/login", "/assets/board.js", "/x"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8237", "127.0.0.1.evil.example", "[::2]", "", "0.0.0.0"]
)
def test_a_page_that_was_bound_anew_to_this_machine_reads_nothing(here, path, host):
    answer = here.get(path, headers={"Host": host})

    assert (answer.status_code, answer.json()["error"]) == (421, "host_refused")
    assert "INTERNIST_ALLOWED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["127.0.0.1:8237", "localhost", "LOCALHOST.:9", "[::1]:8237", "127.0.0.1"])
def test_this_machine_is_asked_by_its_own_names(here, host):
    assert here.get("/api/v1/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_ask_by_whatever_address_they_know(here, path):
    assert here.get(path, headers={"Host": "10.1.2.3:8237"}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"host": "127.0.0.5"}, {"127.0.0.5", "localhost", "127.0.0.1", "::1"}),
        ({"external_url": "https://Lab.example/x"}, {"127.0.0.1", "localhost", "::1", "lab.example"}),
        ({"allowed_hosts": "a.example, B.example"}, {"127.0.0.1", "localhost", "::1", "a.example", "b.example"}),
        ({"allowed_hosts": "*"}, None),
        ({"host": "0.0.0.0", "token": "t"}, None),
        ({"host": "0.0.0.0", "token": "t", "allowed_hosts": "a"}, {"0.0.0.0", "127.0.0.1", "localhost", "::1", "a"}),
    ],
)
def test_a_server_knows_its_names(settings, names):
    assert names_of(Settings(**settings)) == names


@pytest.mark.parametrize(("host", "name"), [("a:1", "a"), ("[::1]", "::1"), ("[::1", "::1"), ("", ""), ("A.", "a")])
def test_a_host_is_read_without_its_port(host, name):
    assert name_of(host) == name


@pytest.mark.parametrize("path", ["/", "/api/v1/runs", "/metrics", "/openapi.json", "/login", "/assets/board.js", "/x"])
def test_every_answer_keeps_browsers_from_guessing_and_framing(here, path):
    answer = here.get(path)

    assert set(HEADERS) <= set(answer.headers)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors" in answer.headers["content-security-policy"]
    assert all(len(answer.headers.get_list(name)) == 1 for name in HEADERS)


def test_answers_that_refuse_do_so_too(here):
    for answer in (here.get("/api/v1/nope"), here.get("/", headers={"Host": "x"}), here.delete("/api/v1/runs")):
        assert set(HEADERS) <= set(answer.headers)


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"},
     {"Origin": "null"}, {"Origin": "http://127.0.0.1:3000"}],
)  # fmt: skip
def test_the_page_of_another_site_writes_nothing(here, headers):
    for method, path in [("POST", "/api/v1/silences"), ("DELETE", "/api/v1/runs/x"), ("PUT", "/api/v1/rules")]:
        assert here.request(method, path, headers=headers).json()["error"] == "cross_site"
    assert here.get("/", headers=headers).status_code == 200  # links lead here


@pytest.mark.parametrize(
    "headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": HERE}]
)
def test_programs_and_pages_of_its_own_write(here, headers):
    assert here.put("/api/v1/rules", json={"rules": []}, headers=headers).status_code == 200
