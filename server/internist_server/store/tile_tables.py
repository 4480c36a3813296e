"""Tables of what lies in tiles: blocks of frames and of judgements, packed, and the spans that sum them up.

A tile is small, so those of up to thirty-two series lie in one row: pages of the database are full, and few.
"""

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
    """What frames hold beside their values, and ids of the series of its tiles: see `store.blocks`."""
    packed_bytes: Mapped[int] = mapped_column(server_default="0")
    """Of its heads and tiles."""


class BundleRow(Base):
    """The values of some series in the frames of a block, a tile of each. It is never changed."""

    __tablename__ = "bundles"
    __table_args__ = ({"sqlite_with_rowid": False},)

    block_id: Mapped[int] = mapped_column(ForeignKey("blocks.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    """Of its series, in the order of the block's: the first thirty-two are those of place 0."""
    tiles: Mapped[bytes]


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
    """What judgements hold beside ratios and bases, and ids of the series of its tiles: see `store.blocks`."""


class JudgedBundleRow(Base):
    """The ratios and bases of some series in the judgements of a block, two tiles of each. It is never changed.

    A series of which nothing was judged has none.
    """

    __tablename__ = "judged_bundles"
    __table_args__ = ({"sqlite_with_rowid": False},)

    block_id: Mapped[int] = mapped_column(ForeignKey("judged_blocks.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    tiles: Mapped[bytes]


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
