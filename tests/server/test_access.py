"""What tokens are for: one sends, another reads, a third administers; each perhaps of one project alone."""

import json
import logging

import pytest
from starlette.testclient import TestClient

from internist.schema.wire import Note
from internist_server.app import create_app
from internist_server.routes.access import SHARED, need_of
from internist_server.settings import Settings
from internist_server.throttle import MOST, WINDOW_S, Throttle
from tests.server.sending import EPOCH_MS, Sender, module_series, start_of

BOOTSTRAP = "the token of the environment"
ADMIN = {"Authorization": f"Bearer {BOOTSTRAP}"}
DAY_S = 86_400


class Bearer:
    """A test client that presents one token."""

    def __init__(self, client, secret):
        self.client, self.headers = client, {"Authorization": f"Bearer {secret}"}

    def request(self, method, path, headers=None, **asked):
        return self.client.request(method, path, headers={**self.headers, **(headers or {})}, **asked)

    def get(self, path, **asked):
        return self.request("GET", path, **asked)

    def post(self, path, **asked):
        return self.request("POST", path, **asked)


@pytest.fixture
def guarded(database_url, clock):
    """A server that asks for a token, without its board."""
    app = create_app(Settings(database_url=database_url, token=BOOTSTRAP), board=False, clock=clock)
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
        yield client


@pytest.fixture
def make(guarded):
    """Makes a token for these scopes, and its bearer."""

    def make(name, *scopes, **wanted):
        answer = guarded.post("/api/v1/tokens", json={"name": name, "scopes": scopes, **wanted}, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        return Bearer(guarded, answer.json()["secret"])

    return make


def operations(guarded):
    paths = guarded.get("/openapi.json", headers=ADMIN).json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def fill(path):
    return path.format(run_id="run1", alert_id="1", silence_id="1", token_id="77")


def test_each_scope_opens_its_own_routes_and_no_other(guarded, make):
    Sender(Bearer(guarded, BOOTSTRAP))
    bearers = {"ingest": make("in", "ingest"), "read": make("out", "read"), "admin": make("all", "admin")}

    for method, path in operations(guarded):
        need = need_of(method, path)
        if path.endswith("/stream"):
            continue  # it does not end
        for scope, bearer in bearers.items():
            answer = bearer.request(method, fill(path))
            is_refused = answer.status_code == 403 and answer.json()["error"] == "forbidden"
            may = need is None or scope in (need, "admin")
            is_of_another = may and scope == "ingest" and "{run_id}" in path
            assert is_refused == (not may or is_of_another), (method, path, scope, answer.text)


def test_what_is_not_named_needs_what_administers_the_server():
    assert need_of("POST", "/api/v1/anything/new") == "admin"
    assert need_of("GET", "/api/v1/tokens") == need_of("GET", "/api/v1/audit") == "admin"
    assert need_of("GET", "/healthz") is None


def test_a_token_is_told_once_and_only_its_hash_is_kept(guarded, make, database_url):
    bearer = make("cluster", "ingest", days=1)
    secret = bearer.headers["Authorization"].removeprefix("Bearer ")

    (listed,) = guarded.get("/api/v1/tokens", headers=ADMIN).json()
    assert (listed["name"], listed["scopes"], listed["project"]) == ("cluster", ["ingest"], None)
    assert (listed["expires_at_ms"], listed["last_used_ms"]) == (EPOCH_MS + DAY_S * 1000, None)
    assert secret not in json.dumps(guarded.get("/api/v1/audit", headers=ADMIN).json())

    Sender(bearer)
    (listed,) = guarded.get("/api/v1/tokens", headers=ADMIN).json()
    assert listed["last_used_ms"] == EPOCH_MS


def test_two_tokens_in_force_have_two_names(guarded, make, clock):
    make("cluster", "ingest", days=1)
    again = {"name": "cluster", "scopes": ["read"]}

    assert guarded.post("/api/v1/tokens", json=again, headers=ADMIN).json()["error"] == "conflict"
    clock.advance(DAY_S + 1)
    assert guarded.post("/api/v1/tokens", json=again, headers=ADMIN).status_code == 200


@pytest.mark.parametrize(
    "wanted",
    [{"scopes": ["read"]}, {"name": "", "scopes": ["read"]}, {"name": "a", "scopes": []},
     {"name": "a", "scopes": ["root"]},
     {"name": "a", "scopes": ["read"], "days": 0}, {"name": "a", "scopes": ["read"], "days": 1e9},
     {"name": "a", "scopes": ["read"], "project": "\0"}, {"name": "a", "scopes": ["read"], "secret": "mine"}],
)  # fmt: skip
def test_a_token_that_cannot_be_is_refused(guarded, wanted):
    assert guarded.post("/api/v1/tokens", json=wanted, headers=ADMIN).status_code == 422


def test_a_token_that_is_over_opens_nothing(guarded, make, clock):
    revoked, expired = make("a", "read"), make("b", "read", days=1)
    assert revoked.get("/api/v1/runs").status_code == expired.get("/api/v1/runs").status_code == 200

    token = next(one["id"] for one in guarded.get("/api/v1/tokens", headers=ADMIN).json() if one["name"] == "a")
    assert guarded.delete(f"/api/v1/tokens/{token}", headers=ADMIN).json()["revoked_at_ms"] == EPOCH_MS
    clock.advance(DAY_S + 1)

    assert revoked.get("/api/v1/runs").json()["error"] == "token_refused"
    assert expired.get("/api/v1/alerts").status_code in (200, 403)  # for some seconds it is taken for what it was
    assert make("b", "read").get("/api/v1/runs").status_code == 200


def test_a_client_writes_to_no_run_that_it_did_not_start(guarded, make):
    ours, others = make("ours", "ingest"), make("others", "ingest")
    sender = Sender(ours)
    stranger = Sender(others, start_of(name="renamed", attempt="mine"), register=False)
    series = [module_series(0, "update.own", "blocks.0")]
    sender.send(sender.declare(series))

    assert stranger.post_start().json()["error"] == "forbidden"
    assert stranger.post(stranger.declare(series)).status_code == 403
    beat = {"attempt": "run1-a", "rank": 0, "step": 1, "step_age_ms": 1}
    assert others.post("/api/v1/runs/run1/heartbeat", json=beat).status_code == 403
    assert guarded.get("/api/v1/runs/run1", headers=ADMIN).json()["name"] == "a run"

    assert Sender(ours, start_of(attempt="again")).post_start().status_code == 200
    assert Sender(Bearer(guarded, BOOTSTRAP), start_of(attempt="admin")).post_start().status_code == 200


def test_a_run_of_the_server_s_own_token_is_not_anyone_s(guarded, make):
    Sender(Bearer(guarded, BOOTSTRAP))

    assert Sender(make("ours", "ingest"), register=False).post_start().status_code == 403


def test_a_token_of_one_project_starts_and_reads_runs_of_that_alone(guarded, make):
    mine, admin = make("mine", "ingest", "read", project="p"), Bearer(guarded, BOOTSTRAP)
    Sender(admin, start_of("other", project="q"))
    sender = Sender(admin, start_of("alarming", project="q"))
    sender.send([sender.record(note=Note("t", "x", "info", 1, EPOCH_MS))])

    assert Sender(mine, start_of("new", project="q"), register=False).post_start().json()["error"] == "forbidden"
    assert Sender(mine, start_of("other", project="p"), register=False).post_start().json()["error"] == "forbidden"
    assert Sender(mine, start_of("own", project="p")).post_start().status_code == 200

    assert [one["id"] for one in mine.get("/api/v1/runs").json()] == ["own"]
    assert mine.get("/api/v1/runs", params={"project": "q"}).status_code == 403
    assert mine.get("/api/v1/alerts").json()["total"] == 0
    assert mine.get("/api/v1/runs/own").status_code == 200
    for path in ("", "/series", "/verdicts", "/coverage", "/usage", "/check", "/stream", "/trajectory", "/thresholds"):
        assert mine.get(f"/api/v1/runs/other{path}").json()["error"] == "run_not_found", path
    for path in ("/metrics", "/api/v1/rules"):
        assert mine.get(path).json()["error"] == "forbidden"
    assert mine.get("/api/v1/scaling", params={"runs": ["own", "other"]}).json()["error"] == "run_not_found"
    assert mine.get("/api/v1/runs/own/check", params={"reference": "other"}).json()["error"] == "run_not_found"


def test_a_token_of_one_project_administers_that_alone(guarded, make):
    chief, admin = make("chief", "admin", project="p"), Bearer(guarded, BOOTSTRAP)
    for run, project in (("ours", "p"), ("theirs", "q")):
        sender = Sender(admin, start_of(run, project=project))
        sender.send([sender.record(note=Note("t", "x", "info", 1, EPOCH_MS))])
    alerts = {one["run"]: one["id"] for one in admin.get("/api/v1/alerts").json()["alerts"]}

    for run, status in (("ours", 200), ("theirs", 404)):
        assert chief.post(f"/api/v1/alerts/{alerts[run]}/acknowledge", json={"by": "x"}).status_code == status
        assert chief.request("DELETE", f"/api/v1/runs/{run}").status_code == status
    for method, path in operations(guarded):
        if "{run_id}" not in path and "{alert_id}" not in path and path not in SHARED and need_of(method, path):
            assert chief.request(method, fill(path)).status_code == 403, (method, path)
    assert chief.request("POST", "/api/v1/silences", json={}).status_code == 403


def test_acts_are_written_down_with_who_did_them_to_what(guarded, make, caplog):
    caplog.set_level(logging.INFO, "internist_server.auditing")
    Sender(Bearer(guarded, BOOTSTRAP))
    chief = make("chief", "admin")

    chief.request("PUT", "/api/v1/runs/run1/thresholds", json={"thresholds": [{"metric": "loss", "above": 5}]})
    chief.request("DELETE", "/api/v1/runs/none")
    chief.request("DELETE", "/api/v1/runs/run1")

    acts = guarded.get("/api/v1/audit", headers=ADMIN).json()
    assert [(one["act"], one["actor"], one["target"]) for one in acts] == [
        ("delete_run", "chief", "run1"),
        ("set_thresholds", "chief", "run1"),
        ("create_token", "bootstrap", ""),
    ]
    assert json.loads(acts[1]["detail"]) == {"thresholds": [{"metric": "loss", "above": 5}]}
    lines = [one.message.removeprefix("audit ") for one in caplog.records if one.message.startswith("audit ")]
    assert [json.loads(line)["act"] for line in lines] == ["create_token", "set_thresholds", "delete_run"]


def sign_in(guarded, token):
    return guarded.post("/login", data={"token": token})


def test_a_session_is_a_random_id_of_which_the_store_knows_the_hash(guarded, make):
    first, second = (sign_in(guarded, BOOTSTRAP).cookies["internist_session"] for _ in range(2))

    assert first != second and BOOTSTRAP not in first and len(first) >= 43
    assert guarded.get("/api/v1/runs", headers={"Cookie": f"internist_session={first}"}).status_code == 200
    guarded.cookies.clear()
    for cookie in (BOOTSTRAP, first[:-1], ""):
        assert guarded.get("/api/v1/runs", headers={"Cookie": f"internist_session={cookie}"}).status_code == 401
    assert guarded.get("/api/v1/runs", headers={"Authorization": f"Bearer {first}"}).status_code == 403


def test_a_session_ends_by_signing_out_and_with_its_token(guarded, make):
    reader = make("reader", "read")
    secret = reader.headers["Authorization"].removeprefix("Bearer ")
    for end in ("/logout", None):
        sign_in(guarded, secret)
        kept = {"Cookie": f"internist_session={guarded.cookies['internist_session']}"}
        assert guarded.get("/api/v1/runs").status_code == 200
        assert guarded.put("/api/v1/rules", json={"rules": []}).status_code == 403
        if end is not None:
            assert guarded.post(end).headers["location"] == "/login"
            assert "internist_session" not in guarded.cookies
        else:
            guarded.cookies.clear()
            (token,) = guarded.get("/api/v1/tokens", headers=ADMIN).json()
            guarded.delete(f"/api/v1/tokens/{token['id']}", headers=ADMIN)
        assert guarded.get("/api/v1/runs", headers=kept).status_code == 401
    acts = guarded.get("/api/v1/audit", headers=ADMIN).json()
    assert [one["act"] for one in acts] == ["revoke_token", "sign_in", "sign_out", "sign_in", "create_token"]


def test_a_token_that_only_sends_does_not_sign_in(guarded, make):
    secret = make("cluster", "ingest").headers["Authorization"].removeprefix("Bearer ")

    assert sign_in(guarded, secret).status_code == 403


def test_guessing_is_slow_by_the_form_and_by_the_header_and_is_logged(guarded, make, caplog):
    assert guarded.get("/api/v1/runs", headers=ADMIN).status_code == 200
    fresh = make("fresh", "read")
    for guess in range(MOST - 1):
        assert sign_in(guarded, f"guess {guess}").status_code == 403
    assert Bearer(guarded, "another guess").get("/api/v1/runs").status_code == 403

    assert sign_in(guarded, "one more").status_code == 429
    refused = Bearer(guarded, "one more").get("/api/v1/runs")
    assert (refused.status_code, refused.json()["error"]) == (429, "too_many_attempts")
    assert 0 < int(refused.headers["retry-after"]) <= WINDOW_S
    assert fresh.get("/api/v1/runs").status_code == 429  # nothing tells a right guess
    assert guarded.get("/api/v1/runs", headers=ADMIN).status_code == 200  # what was right from there before stays so
    assert sum("refused" in one.message for one in caplog.records) == MOST - 1


def test_one_program_with_an_old_token_locks_nobody_out(guarded):
    for _ in range(3 * MOST):
        assert Bearer(guarded, "old").get("/api/v1/runs").status_code == 403

    assert sign_in(guarded, BOOTSTRAP).status_code == 303


def test_a_throttle_forgets_and_counts_networks():
    now = [0.0]
    throttle = Throttle(clock=lambda: now[0])
    for guess in range(MOST):
        throttle.note(f"2001:db8::{guess:x}", str(guess))

    assert throttle.wait_s("2001:db8::ffff", "x") == WINDOW_S
    assert throttle.wait_s("2001:db8:0:1::1", "x") == throttle.wait_s("10.0.0.1", "x") == 0.0
    now[0] = WINDOW_S
    assert throttle.wait_s("2001:db8::ffff", "x") == 0.0


def test_an_open_server_makes_no_tokens(serve, sqlite_url):
    answer = serve(sqlite_url).post("/api/v1/tokens", json={"name": "a", "scopes": ["read"]})

    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
