"""Tiles of up to thirty-two series lie in one row, and judgements are packed: rows that fill pages, in tables that
need no index beside them."""

import zlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_T = TypeVar("_T")
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_BUNDLE = 32
_BATCH = 200
_KINDS = (
    # of frames, and of judgements: blocks, arrays of their heads, tables of tiles and of bundles, tiles of a series
    ("blocks", 6, "tiles", "bundles", ("values",)),
    ("judged_blocks", 5, "judged_tiles", "judged_bundles", ("ratios", "basis")),
)
_HEADS_OF_JUDGEMENT = ("schedule", "ranks_delivered", "ranks_expected", "divisor")


def upgrade() -> None:
    bind = op.get_bind()
    for blocks, arrays, tiles, bundles, parts in _KINDS:
        _create_tiles(bundles, blocks, "place", ("tiles",))
        found = bind.execute(sa.text(f"SELECT id, heads FROM {blocks} ORDER BY id")).all()
        listed = ", ".join(f'{tiles}."{part}"' for part in parts)
        query = sa.text(
            f"SELECT {tiles}.series_id, {listed} FROM {tiles} LEFT JOIN series ON series.id = {tiles}.series_id "
            f"WHERE {tiles}.block_id = :block ORDER BY series.metric, {tiles}.series_id"
        )
        for block, heads in found:
            of_block = [(row[0], [bytes(part) for part in row[1:]]) for row in bind.execute(query, {"block": block})]
            rows = [
                {"block_id": block, "place": place, "tiles": _bundle(part for _, parts_ in some for part in parts_)}
                for place, some in enumerate(_pieces(of_block, _BUNDLE))
            ]
            if rows:
                bind.execute(_table(bundles, "block_id", "place", "tiles").insert(), rows)
            ids = [series for series, _ in of_block]
            of_blocks = _table(blocks, "id", "heads")
            whole = bytes(heads)[: _end_of_arrays(bytes(heads), arrays)] + _packed_ids(ids)
            bind.execute(of_blocks.update().where(of_blocks.c.id == block).values(heads=whole))
        op.drop_table(tiles)
    _make_judgements_anew(is_upgrade=True)


def downgrade() -> None:
    bind = op.get_bind()
    for blocks, arrays, tiles, bundles, parts in _KINDS:
        _create_tiles(tiles, blocks, "series_id", parts)
        found = bind.execute(sa.text(f"SELECT id, heads FROM {blocks} ORDER BY id")).all()
        query = sa.text(f"SELECT tiles FROM {bundles} WHERE block_id = :block ORDER BY place")
        for block, heads in found:
            end = _end_of_arrays(bytes(heads), arrays)
            unpacked = [part for row in bind.execute(query, {"block": block}) for part in _unbundle(bytes(row[0]))]
            of_series = _pieces(unpacked, len(parts))
            rows = [
                {"block_id": block, "series_id": series} | dict(zip(parts, some, strict=True))
                for series, some in zip(_unpacked_ids(bytes(heads)[end:]), of_series, strict=True)
            ]
            if rows:
                bind.execute(_table(tiles, "block_id", "series_id", *parts).insert(), rows)
            of_blocks = _table(blocks, "id", "heads")
            bind.execute(of_blocks.update().where(of_blocks.c.id == block).values(heads=bytes(heads)[:end]))
        op.drop_table(bundles)
    _make_judgements_anew(is_upgrade=False)


def _create_tiles(name: str, blocks: str, key: str, parts: Iterable[str]) -> None:
    op.create_table(
        name,
        sa.Column("block_id", _KEY, nullable=False),
        sa.Column(key, sa.BigInteger(), nullable=False),
        *(sa.Column(part, sa.LargeBinary(), nullable=False) for part in parts),
        sa.ForeignKeyConstraint(
            ["block_id"], [f"{blocks}.id"], name=op.f(f"fk_{name}_block_id_{blocks}"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("block_id", key, name=op.f(f"pk_{name}")),
        sqlite_with_rowid=False,
    )


def _make_judgements_anew(*, is_upgrade: bool) -> None:
    bind = op.get_bind()
    kept, made = (("ratios", "basis"), ("packed",)) if is_upgrade else (("packed",), ("ratios", "basis"))
    rows = _converted(bind, kept, is_upgrade=is_upgrade)
    if bind.dialect.name == "sqlite":  # it gives a table no other form than the one in which it was made
        op.create_table(
            "judgements_anew",
            sa.Column("attempt_id", _KEY, nullable=False),
            sa.Column("step", sa.BigInteger(), nullable=False),
            sa.Column("schedule", sa.String(length=32), nullable=True),
            sa.Column("ranks_delivered", sa.BigInteger(), nullable=False),
            sa.Column("ranks_expected", sa.BigInteger(), nullable=False),
            *(sa.Column(part, sa.LargeBinary(), nullable=False) for part in made),
            sa.Column("divisor", sa.String(length=32), nullable=True),
            sa.ForeignKeyConstraint(
                ["attempt_id"], ["attempts.id"], name=op.f("fk_judgements_attempt_id_attempts"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("attempt_id", "step", name=op.f("pk_judgements")),
            sqlite_with_rowid=not is_upgrade,
        )
        anew = _table("judgements_anew", "attempt_id", "step", *_HEADS_OF_JUDGEMENT, *made)
        for some in rows:
            bind.execute(anew.insert(), some)
        op.drop_table("judgements")
        op.rename_table("judgements_anew", "judgements")
        return
    for part in made:
        op.add_column("judgements", sa.Column(part, sa.LargeBinary(), nullable=True))
    stored = _table("judgements", "attempt_id", "step", *made)
    is_it = (stored.c.attempt_id == sa.bindparam("a")) & (stored.c.step == sa.bindparam("s"))
    change = stored.update().where(is_it).values({part: sa.bindparam(f"new_{part}") for part in made})
    for some in rows:
        asked = [
            {"a": row["attempt_id"], "s": row["step"]} | {f"new_{part}": row[part] for part in made} for row in some
        ]
        bind.execute(change, asked)
    for part in made:
        op.alter_column("judgements", part, nullable=False)
    for part in kept:
        op.drop_column("judgements", part)


def _converted(bind: sa.Connection, kept: tuple[str, ...], *, is_upgrade: bool) -> Iterator[list[dict[str, object]]]:
    """All judgements in the other form, some at a time."""
    listed = ", ".join(("attempt_id", "step", *_HEADS_OF_JUDGEMENT, *kept))
    last = (-1, -1)
    query = sa.text(
        f"SELECT {listed} FROM judgements WHERE attempt_id > :attempt OR (attempt_id = :attempt AND step > :step) "
        f"ORDER BY attempt_id, step LIMIT {_BATCH}"
    )
    while found := bind.execute(query, {"attempt": last[0], "step": last[1]}).mappings().all():
        rows = []
        for row in found:
            parts = [bytes(row[part]) for part in kept]
            other: dict[str, object] = {"packed": _pack(*parts)} if is_upgrade else _unpack(parts[0])
            rows.append({name: row[name] for name in ("attempt_id", "step", *_HEADS_OF_JUDGEMENT)} | other)
        yield rows
        last = (found[-1]["attempt_id"], found[-1]["step"])


def _pack(ratios: bytes, basis: bytes) -> bytes:
    return zlib.compress(ratios[0::2] + ratios[1::2] + basis, 1)


def _unpack(packed: bytes) -> dict[str, object]:
    whole = zlib.decompress(packed)
    width = len(whole) // 3
    ratios = bytearray(2 * width)
    ratios[0::2], ratios[1::2] = whole[:width], whole[width : 2 * width]
    return {"ratios": bytes(ratios), "basis": whole[2 * width :]}


def _bundle(tiles: Iterable[bytes]) -> bytes:
    listed = list(tiles)
    sizes = b"".join(len(one).to_bytes(4, "little") for one in listed)
    return len(listed).to_bytes(2, "little") + sizes + b"".join(listed)


def _unbundle(bundle: bytes) -> list[bytes]:
    count = int.from_bytes(bundle[:2], "little")
    at, tiles = 2 + 4 * count, []
    for place in range(count):
        size = int.from_bytes(bundle[2 + 4 * place : 6 + 4 * place], "little")
        tiles.append(bundle[at : at + size])
        at += size
    return tiles


def _packed_ids(ids: list[int]) -> bytes:
    differences = [one - before for before, one in zip([0, *ids], ids, strict=False)]
    return zlib.compress(b"".join(one.to_bytes(8, "little", signed=True) for one in differences))


def _unpacked_ids(packed: bytes) -> list[int]:
    whole, ids, last = zlib.decompress(packed), [], 0
    for at in range(0, len(whole), 8):
        last += int.from_bytes(whole[at : at + 8], "little", signed=True)
        ids.append(last)
    return ids


def _end_of_arrays(heads: bytes, arrays: int) -> int:
    at = 0
    for _ in range(arrays):
        at += 4 + int.from_bytes(heads[at : at + 4], "little")
    return at


def _pieces(items: list[_T], size: int) -> list[list[_T]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def _table(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *(sa.column(column) for column in columns))
