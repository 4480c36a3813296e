"""What a server tells Prometheus, looked at by Prometheus itself; and the files of deploy/ that are made for it."""

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from deploy import dashboard
from internist_migrations.upgrade import upgrade
from internist_server.app import create_app
from internist_server.settings import Settings
from tests.dashboard.serving import listening
from tests.server.prometheuses import prometheus_process
from tests.server.sending import Sender, module_series

pytestmark = pytest.mark.prometheus

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "internist.rules.yml"
TOKEN = "the token of the environment"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
STEPS = 3
_METRIC = re.compile(r"\b(?:internist|process)_\w+")


class Bearer:
    """A client that presents the token."""

    def __init__(self, client):
        self.client = client

    def post(self, path, **asked):
        return self.client.post(path, **{**asked, "headers": {**ADMIN, **asked.get("headers", {})}})

    def get(self, path, **asked):
        return self.client.get(path, headers=ADMIN, **asked)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that listens and has taken a run; what its metrics are then."""
    url = f"sqlite:///{tmp_path_factory.mktemp('prometheus') / 'internist.db'}"
    upgrade(url)
    with (
        listening(create_app(Settings(database_url=url, token=TOKEN), board=False)) as address,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        bearer = Bearer(client)
        sender = Sender(bearer)
        sender.send(
            [
                *sender.declare([module_series(0, "update.own", "a")]),
                *(sender.frame(step, [1.0]) for step in range(STEPS)),
            ]
        )
        yield bearer


@pytest.fixture(scope="module")
def text(server):
    return server.get("/metrics").text


@pytest.fixture(scope="module")
def prometheus(server, prometheus_program, tmp_path_factory):
    """A Prometheus that scrapes it, by the configuration of deploy/ but for places and times."""
    directory = tmp_path_factory.mktemp("scraped")
    secret = directory / "token"
    made = server.post("/api/v1/tokens", json={"name": "prometheus", "scopes": ["read"]}).json()
    secret.write_text(made["secret"])
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    scrape |= {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
    scrape["authorization"]["credentials_file"] = str(secret)
    scrape["static_configs"][0]["targets"] = [server.client.base_url.netloc.decode()]
    config["rule_files"] = [str(RULES)]
    config["global"] = {"evaluation_interval": "200ms"}
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    with prometheus_process(prometheus_program, directory, file) as running:
        running.await_value('up{job="internist"}', lambda value: value == 1)
        yield running


def named(text):
    """Metrics by name, as they are exposed."""
    return {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line and line[0] != "#"} | {
        line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")
    }


def expressions():
    """Every expression of the dashboard, and of the rules."""
    found = json.loads(dashboard.PAGE.read_text())
    of_panels = [target["expr"] for panel in found["panels"] for target in panel["targets"]]
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    return [*of_panels, *rules]


def check(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_metrics(text, promtool_program):
    assert check(promtool_program, "check", "metrics", input=text) == ""


def test_promtool_finds_nothing_wrong_with_the_rules_and_they_fire_when_they_should(promtool_program):
    check(promtool_program, "check", "rules", str(RULES))
    check(promtool_program, "test", "rules", "internist.rules.test.yml", cwd=RULES.parent)


def test_every_metric_of_the_dashboard_and_of_the_rules_is_there(text):
    asked = {name for expression in expressions() for name in _METRIC.findall(expression)}

    assert len(asked) > 20
    assert asked <= named(text)


def test_every_metric_of_the_server_is_documented(text):
    page = (DEPLOY.parent / "docs" / "operate.md").read_text()
    own = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE internist_")}

    assert [name for name in sorted(own) if f"`{name}`" not in page] == []


def test_the_dashboard_is_what_its_script_writes():
    assert dashboard.PAGE.read_text() == dashboard.text()


def test_prometheus_scrapes_what_was_taken(prometheus):
    assert prometheus.await_value("internist_ingest_frames_total", lambda value: value >= STEPS) >= STEPS
    assert prometheus.value("internist_ingest_points_total") >= STEPS
    assert prometheus.value("internist_ingest_bytes_total") > 0
    assert prometheus.value("internist_ingest_lag_seconds_count") >= 1
    assert prometheus.value("internist_database_bytes") > 100_000
    assert prometheus.value('internist_requests_waiting{lane="ingest"}') == 0
    assert prometheus.value("process_resident_memory_bytes") > 1_000_000
    assert prometheus.value("sum(internist_runs)") == 1
    assert prometheus.await_value("internist_tick_duration_seconds_count", lambda value: value > 0)


def test_prometheus_understands_every_expression_and_has_loaded_every_rule(prometheus):
    for expression in expressions():
        prometheus.query(expression.replace("$__rate_interval", "1m").replace("$instance", ".*"))

    assert {rule["name"] for rule in prometheus.rules()} >= {"InternistDown", "InternistLags"}
    assert all(rule["health"] in ("ok", "unknown") and rule["state"] == "inactive" for rule in prometheus.rules())
