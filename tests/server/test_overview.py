"""What a server tells of all its runs, on each kind of database."""

import pytest

from internist.schema.rules import LOST_AFTER_S
from tests.server.sending import Sender, module_series, start_of


def values(api, name):
    """Samples of a metric by their labels."""
    lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return {line.rpartition(" ")[0].removeprefix(name): float(line.rpartition(" ")[2]) for line in lines}


def test_runs_are_counted_by_how_they_stand_and_those_that_are_silent_as_lost(api, clock):
    quiet, busy, done = (Sender(api, start_of(run)) for run in ("quiet", "busy", "done"))
    done.send([done.finish(1)])
    counts = values(api, "internist_runs")
    assert (counts['{state="live"}'], counts['{state="finished"}'], counts['{state="lost"}']) == (2, 1, 0)

    clock.advance(LOST_AFTER_S + 1)
    busy.send([*busy.declare([module_series(0, "update.own", "a")]), busy.frame(0, [1.0])])
    counts = values(api, "internist_runs")
    assert (counts['{state="live"}'], counts['{state="finished"}'], counts['{state="lost"}']) == (1, 1, 1)
    assert quiet.run in str(api.get("/api/v1/runs").json())


def test_what_the_database_takes_and_what_came_in_is_told(api, clock):
    before = values(api, "internist_ingest_lag_seconds_sum")[""]
    sender = Sender(api)
    clock.advance(7)
    sender.send([*sender.declare([module_series(0, "update.own", "a")]), sender.frame(0, [1.0])])

    assert values(api, "internist_database_bytes")[""] > 100_000
    assert values(api, "internist_ingest_lag_seconds_sum")[""] - before == pytest.approx(7)
    assert set(values(api, "internist_requests_waiting")) == {
        f'{{lane="{name}"}}' for name in ("ingest", "life", "reads", "streams")
    }
