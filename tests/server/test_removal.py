"""A run that is deleted leaves nothing, and what a run takes is told before."""

import pytest
import sqlalchemy

from internist_server.compactor import Compactor
from internist_server.store.metadata import METADATA
from tests.server.sending import Sender, module_series, start_of

SERIES = [module_series(n, "activation.rms", f"blocks.{n}", role="block", cadence=10) for n in range(3)]


@pytest.fixture
def sender(api):
    sender = Sender(api)
    sender.send([*sender.declare(SERIES), *(sender.frame(step, [1.0, 2.0, 3.0]) for step in range(0, 900, 10))])
    sender.send([sender.finish(890)])
    Compactor(api.app.state.services.database).compact()
    return sender


def test_a_deleted_run_leaves_nothing(sender, api):
    other = Sender(api, start_of("run2"))
    other.send([*other.declare(SERIES), other.frame(0, [1.0, 2.0, 3.0])])
    usage = sender.get("/usage")
    assert usage["tiles"] > 0 and usage["judgements"] > 0 and usage["spans"] > 0
    assert usage["total"] == sum(usage[part] for part in ("frames", "tiles", "judgements", "spans"))

    answer = api.delete("/api/v1/runs/run1")

    assert (answer.status_code, answer.json()) == (200, usage)
    assert api.get("/api/v1/runs/run1").status_code == 404
    assert [one["id"] for one in api.get("/api/v1/runs").json()] == ["run2"]
    assert api.delete("/api/v1/runs/run1").status_code == 404
    assert api.delete("/api/v1/runs/run2").status_code == 200
    with api.app.state.services.database.read() as session:
        for table in set(METADATA.sorted_tables) - {METADATA.tables["acts"]}:  # who deleted them is kept
            assert session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)) == 0, table.name


def test_a_run_of_the_same_name_begins_anew(sender, api):
    assert api.delete("/api/v1/runs/run1").status_code == 200

    again = Sender(api)
    again.send([*again.declare(SERIES), again.frame(0, [4.0, 9.0, 16.0])])

    assert again.points("activation.rms", subject="^blocks.1$") == {0: 3.0}  # squares travel
    assert again.get("/verdicts")["step"] == 0
