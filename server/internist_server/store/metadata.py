"""All tables together: what migrations make, and what a copy of a database copies."""

from typing import Final

from sqlalchemy import MetaData

from internist_server.store import delivery_tables, tables, tile_tables, token_tables
from internist_server.store.base import Base

MODULES: Final = (tables, tile_tables, delivery_tables, token_tables)
"""A table is known when its module is imported."""
METADATA: Final[MetaData] = Base.metadata
