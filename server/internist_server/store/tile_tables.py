"""Tables of what lies in tiles: blocks of frames and of judgements, packed, and the spans that sum them up."""

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from internist_server.store.base import KEY, Base


class BlockRow(Base):
    """Frames of one plan of one rank that lie in tiles, in the order in which they were sent."""

    __tablename__ = "blocks"
    __table_args__ = (Index(None, "attempt_id", "last_step"),)

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    rank: Mapped[int]
    plan: Mapped[int]
    first_step: Mapped[int]
    last_step: Mapped[int]
    newest_ms: Mapped[int]
    """When the last of them came, by the server's clock: what retention goes by."""
    count: Mapped[int]
    heads: Mapped[bytes]
    """What frames hold beside their values: see `store.blocks`."""
    packed_bytes: Mapped[int] = mapped_column(server_default="0")
    """Of its heads and tiles."""


class TileRow(Base):
    """The values of one series in the frames of a block, packed. It is never changed."""

    __tablename__ = "tiles"
    __table_args__ = ({"sqlite_with_rowid": False},)

    block_id: Mapped[int] = mapped_column(ForeignKey("blocks.id", ondelete="CASCADE"), primary_key=True)
    series_id: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped[bytes]


class JudgedBlockRow(Base):
    """Judgements of one attempt that lie in tiles, in the order of their steps."""

    __tablename__ = "judged_blocks"
    __table_args__ = (Index(None, "attempt_id", "last_step"),)

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    first_step: Mapped[int]
    last_step: Mapped[int]
    count: Mapped[int]
    heads: Mapped[bytes]
    """What judgements hold beside ratios and bases: see `store.blocks`."""


class JudgedTileRow(Base):
    """The ratios and bases of one series in the judgements of a block, packed. It is never changed.

    A series of which nothing was judged has none.
    """

    __tablename__ = "judged_tiles"
    __table_args__ = ({"sqlite_with_rowid": False},)

    block_id: Mapped[int] = mapped_column(ForeignKey("judged_blocks.id", ondelete="CASCADE"), primary_key=True)
    series_id: Mapped[int] = mapped_column(primary_key=True)
    ratios: Mapped[bytes]
    basis: Mapped[bytes]


class SummaryRow(Base):
    """Spans of steps of the series of one metric, each told by a few numbers: see `store.summaries`."""

    __tablename__ = "summaries"
    __table_args__ = (Index(None, "attempt_id", "metric", "last_step"),)

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    metric: Mapped[str]
    first_step: Mapped[int]
    last_step: Mapped[int]
    count: Mapped[int]
    """Spans."""
    width: Mapped[int]
    """Series."""
    bases: Mapped[bytes]
    series: Mapped[bytes]
    spans: Mapped[bytes]
