"""Coverage by metric family: what ranks tell is kept by family, merged, and its share is the one definition's."""

import sqlalchemy

from internist.schema.coverage import share
from internist.schema.wire import CoverageEntry, Facts, Module, Series
from internist_migrations.upgrade import downgrade, upgrade
from internist_server.store.database import make_engine
from tests.server.sending import Sender, module_series, start_of


def states(coverage):
    return {(one["subject"], one["family"]): one["state"] for one in coverage["entries"]}


def lora_like(frozen=99):
    """Most of the model is frozen; of what trains, one family is not measured."""
    entries = [
        CoverageEntry("parameter", f"base.{i}.weight", "frozen", "requires_grad is False", "gradient")
        for i in range(frozen)
    ]
    return (
        *entries,
        CoverageEntry("parameter", "lora.weight", "measured", "", "gradient"),
        CoverageEntry("parameter", "lora.weight", "measured", "", "update"),
        CoverageEntry("parameter", "lora.weight", "silent", "not yet its turn", "spectrum"),
        CoverageEntry("model", "model", "measured", "", "loss"),
    )


def test_families_of_one_subject_are_kept_apart(api):
    sender = Sender(api)
    told = (
        CoverageEntry("module", "attn", "measured", "", "activation"),
        CoverageEntry("module", "attn", "silent", "its logits were not seen", "attention"),
    )
    sender.send([sender.record(coverage=told)])
    sender.send([sender.record(coverage=(CoverageEntry("module", "attn", "measured", "", "attention"),))])

    coverage = sender.get("/coverage")

    assert states(coverage) == {("attn", "activation"): "measured", ("attn", "attention"): "measured"}
    assert coverage["share"] == 1.0


def test_the_share_of_a_mostly_frozen_model_is_that_of_what_trains(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send([sender.record(coverage=lora_like())])

    coverage = sender.get("/coverage")

    assert coverage["share"] == share(lora_like()) == 3 / 4
    assert coverage["counts"] == {"frozen": 99, "measured": 3, "silent": 1}


def test_an_alert_on_what_is_measured_no_more_tells_why_as_the_client_does(sqlite_api):
    sender = Sender(sqlite_api)
    gradient = Series(0, "gradient.rms", "parameter", "lora.weight", facts=Facts(module="lora", cadence=10))
    other = module_series(1, "activation.rms", "head", cadence=10)
    records = [*sender.declare([gradient, other]), *(sender.frame(step, [1.0, 2.0]) for step in range(0, 500, 10))]
    entry = CoverageEntry("parameter", "lora.weight", "frozen", "requires_grad is False", "gradient")
    records += [*sender.declare([other]), sender.record(coverage=(entry,))]

    sender.send([*records, *(sender.frame(step, [2.0], plan=1) for step in range(500, 700, 10))])

    (alert,) = sqlite_api.get("/api/v1/alerts", params={"run": sender.run, "condition": "no_data"}).json()["alerts"]
    assert alert["message"] == ("lora.weight: no data of gradient.rms since step 490 (frozen, requires_grad is False)")


def test_what_one_rank_measures_is_measured_and_what_one_misses_is_missing(api):
    told = [
        {"seen": "silent", "lost": "frozen", "still": "frozen"},
        {"seen": "measured", "lost": "silent", "still": "idle"},
    ]
    for rank, of_rank in enumerate(told):
        sender = Sender(api, start_of(rank=rank, world_size=2))
        entries = tuple(CoverageEntry("module", name, state, "", "activation") for name, state in of_rank.items())
        sender.send([sender.record(coverage=entries)])

    coverage = sender.get("/coverage")

    assert states(coverage) == {
        ("seen", "activation"): "measured",
        ("lost", "activation"): "silent",
        ("still", "activation"): "frozen",
    }
    assert coverage["share"] == 0.5


def test_a_client_that_knows_no_families_is_still_understood(sqlite_api):
    sender = Sender(sqlite_api, start_of(modules=(Module("a", "Linear", "linear"),)))
    sender.send([sender.record(coverage=(CoverageEntry("module", "a", "measured"),))])

    assert states(sender.get("/coverage")) == {("a", ""): "measured"}


def test_a_family_whose_name_is_too_long_costs_its_entry_alone(sqlite_api):
    sender = Sender(sqlite_api)
    good, bad = (CoverageEntry("module", "m", "silent", "", family) for family in ("activation", "f" * 600))

    answer = sender.post([sender.record(coverage=(bad, good))]).json()

    assert [one["reason"] for one in answer["refused"]] == ["family has 600 characters; at most 512"]
    assert states(sender.get("/coverage")) == {("m", "activation"): "silent"}


def test_rows_from_before_families_keep_what_they_say(empty_database_url):
    upgrade(empty_database_url)
    downgrade(empty_database_url, "0002")
    engine = make_engine(empty_database_url)
    with engine.begin() as connection:
        for statement in OLD_ROWS:
            connection.exec_driver_sql(statement)

    upgrade(empty_database_url)

    with engine.begin() as connection:
        rows = connection.execute(sqlalchemy.text("SELECT subject, family, state FROM coverage")).all()
    assert [tuple(row) for row in rows] == [("a", "", "silent")]
    engine.dispose()


OLD_ROWS = (
    "INSERT INTO runs (id, project, name, created_at_ms, config, parametrization, optimizers, cursor) "
    "VALUES ('r', 'p', 'n', 0, '{}', 'standard', '[]', 0)",
    "INSERT INTO attempts (id, run_id, name, number, world_size, every, started_at_ms, received_at_ms, start_step, "
    "client, modules) VALUES (1, 'r', 'a', 1, 1, 10, 0, 0, 0, '', '[]')",
    "INSERT INTO coverage (attempt_id, rank, kind, subject, state, reason) "
    "VALUES (1, 0, 'module', 'a', 'silent', 'never called')",
)
