"""What is too large for one record, in pieces of at most `PIECE_BYTES`: they pass wherever that much passes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from internist.schema.wire import MAX_TEXT_LENGTH, PIECE_BYTES, Outline, Plan, RunStart, Scalar

_ROOM: Final = PIECE_BYTES - 128
"""What the record itself takes besides its items: header, sequence number, field names."""
_VALUE_BYTES: Final = 4
_LOSSES: Final = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)
_INT_BYTES: Final = ((1 << 7, 1), (1 << 8, 2), (1 << 16, 3), (1 << 32, 5))
_ENCODER = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


def cut(items: Iterable[_T]) -> tuple[list[tuple[_T, ...]], list[Exception]]:
    """Items in their order, in pieces that each fit a record, and why some are left out: msgpack cannot express them.

    An item that is too large by itself is a piece of its own.
    """
    kept, sizes, errors = [], [], list[Exception]()
    for item in items:
        try:
            sizes.append(len(_ENCODER.encode(item)))
            kept.append(item)
        except _LOSSES as error:
            errors.append(error)
    return [tuple(kept[begin:end]) for begin, end in _spans(sizes)], errors


def cut_plan(plan: Plan) -> list[tuple[int, int]]:
    """The stretches of a plan's series, each of which fits a record as a plan and as a frame; one where all of it
    fits."""
    counts = plan.counts if len(plan.counts) == len(plan.series) else (1,) * len(plan.series)
    sizes = [max(_VALUE_BYTES, _size(one) + _size(count)) for one, count in zip(plan.series, counts, strict=True)]
    return _spans(sizes) or [(0, 0)]


def bare(start: RunStart) -> RunStart:
    """A start without what may follow it as outlines."""
    return replace(
        start, config={}, modules=(), routing=(), trajectory=(), optimizers=tuple(dict.fromkeys(start.optimizers))
    )


def cut_start(start: RunStart) -> tuple[RunStart, list[Outline]]:
    """A start that fits a record, and the outlines that have to follow it: none where all of it fits."""
    if len(_ENCODER.encode(start)) <= _ROOM:
        return start, []
    outlines, _ = cut_outline(Outline(start.config, start.modules, start.routing, start.trajectory))
    return bare(start), outlines


def cut_outline(outline: Outline) -> tuple[list[Outline], list[Exception]]:
    """An outline in pieces that each fit a record, and why some of its lines are left out."""
    config, of_config = cut((name, _short(value)) for name, value in outline.config.items())
    modules, of_modules = cut(outline.modules)
    routing, of_routing = cut(outline.routing)
    pieces = [Outline(config=dict(piece)) for piece in config]
    pieces += [Outline(modules=piece) for piece in modules]
    pieces += [Outline(routing=piece) for piece in routing]
    pieces += [Outline(trajectory=(piece,)) for piece in outline.trajectory]
    return pieces, [*of_config, *of_modules, *of_routing]


def join_start(start: RunStart, outlines: Sequence[Outline]) -> RunStart:
    """A start as it was before `cut_start`."""
    config = dict(start.config)
    for outline in outlines:
        config.update(outline.config)
    return replace(
        start,
        config=config,
        modules=start.modules + tuple(module for outline in outlines for module in outline.modules),
        routing=start.routing + tuple(route for outline in outlines for route in outline.routing),
        trajectory=start.trajectory + tuple(piece for outline in outlines for piece in outline.trajectory),
    )


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where to cut items of these sizes."""
    spans: list[tuple[int, int]] = []
    begin = taken = 0
    for at, size in enumerate(sizes):
        if at > begin and taken + size > _ROOM:
            spans.append((begin, at))
            begin, taken = at, 0
        taken += size
    return [*spans, (begin, len(sizes))] if sizes else []


def _size(number: int) -> int:
    """Bytes of a whole number in msgpack, or more."""
    return next((size for end, size in _INT_BYTES if 0 <= number < end), 9)


def _short(value: Scalar) -> Scalar:
    return value[:MAX_TEXT_LENGTH] if isinstance(value, str) else value
