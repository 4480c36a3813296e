"""What all tables are made of: the base of rows, and the types that two databases have in common."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, Integer, LargeBinary, MetaData, String
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine


class Exact(TypeDecorator[float]):
    """A float kept as text, because NaN in a REAL of SQLite becomes NULL."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """As text."""
        return None if value is None else repr(float(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        """As a float again, to the last bit."""
        return None if value is None else float(value)


BIG = BigInteger()
KEY: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
"""Of keys that the database counts."""


class Base(DeclarativeBase):
    """Base of all rows; its metadata names every constraint."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {int: BIG, float: Exact, dict[str, Any]: JSON, list[Any]: JSON, bytes: LargeBinary}  # noqa: RUF012
