"""What Alembic runs: migrations over the connection that `upgrade.py` opened."""

from alembic import context

from internist_server.store.metadata import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()
