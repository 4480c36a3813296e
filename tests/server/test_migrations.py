import sqlalchemy

from internist_migrations.upgrade import downgrade, drift, is_current, upgrade
from internist_server.store.database import make_engine
from internist_server.store.tables import Base


def tables(engine):
    return set(sqlalchemy.inspect(engine).get_table_names()) - {"alembic_version"}


def test_migrations_go_up_and_down_and_up_again(empty_database_url):
    engine = make_engine(empty_database_url)
    assert not is_current(engine)

    upgrade(empty_database_url)
    assert is_current(engine)
    assert tables(engine) == set(Base.metadata.tables)
    downgrade(empty_database_url, "base")
    assert tables(engine) == set()
    upgrade(empty_database_url)
    upgrade(empty_database_url)

    assert is_current(engine)
    engine.dispose()


def test_a_migrated_database_has_the_form_of_the_tables(database_url):
    engine = make_engine(database_url)

    assert drift(engine) == []
    engine.dispose()


def test_every_constraint_has_a_name_of_its_own():
    names = [
        str(constraint.name)
        for table in Base.metadata.tables.values()
        for constraint in [*table.constraints, *table.indexes]
    ]

    assert all(name and name != "None" for name in names)
    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for name in names)


def test_a_server_whose_database_is_not_migrated_is_not_ready(empty_database_url, serve):
    answer = serve(empty_database_url).get("/readyz")

    assert (answer.status_code, answer.json()["error"]) == (503, "not_migrated")
