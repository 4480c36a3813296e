import json

import pytest

from internist.schema.metrics import CATALOGUE
from tests.server.sending import Sender, module_series


@pytest.fixture
def documents(sqlite_api):
    return sqlite_api.get("/openapi.json").json()


def operations(documents):
    return [
        (f"{method} {path}", operation)
        for path, methods in documents["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_operation_has_a_description_and_an_example(documents):
    for name, operation in operations(documents):
        assert operation.get("description"), name
        (content,) = operation["responses"]["200"]["content"].values()
        assert content["example"], name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["in"] == "path", (name, parameter["name"])
        if "requestBody" in operation:
            assert "application/json" in operation["requestBody"]["content"], name


def test_every_reference_leads_somewhere(documents):
    schemas = documents["components"]["schemas"]
    text = json.dumps(documents)

    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}

    assert named <= set(schemas)


def test_every_documented_request_example_is_taken(sqlite_api, documents):
    for path in ("/api/v1/runs", "/api/v1/runs/{run_id}/frames", "/api/v1/runs/{run_id}/heartbeat"):
        example = documents["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        run = documents["paths"]["/api/v1/runs"]["post"]["requestBody"]["content"]["application/json"]["example"]["run"]

        answer = sqlite_api.post(path.format(run_id=run), json=example)

        assert answer.status_code == 200, answer.text
        assert not answer.json().get("refused")


def test_the_catalogue_is_the_schema_s(sqlite_api):
    catalogue = sqlite_api.get("/api/v1/metrics/catalogue").json()

    assert [one["name"] for one in catalogue["metrics"]] == [metric.name for metric in CATALOGUE]
    assert {one["name"] for one in catalogue["conditions"]} >= {"forward", "dependency", "update"}


def test_prometheus_reads_what_was_taken(sqlite_api):
    sender = Sender(sqlite_api)
    before = sample(sqlite_api, "internist_ingest_points_total")
    sender.send([*sender.declare([module_series(0, "update.own", "a")]), sender.frame(0, [1.0])])

    text = sqlite_api.get("/metrics").text

    assert sample(sqlite_api, "internist_ingest_points_total") == before + 1
    assert "internist_open_alerts 0.0" in text


def sample(api, name):
    lines = api.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))
