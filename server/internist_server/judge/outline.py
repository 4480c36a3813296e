"""The outline of a model as its series tell it: which block each belongs to, in forward order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internist_server.judge.checks import MISSING, Indices
from internist_server.judge.series import JudgedSeries


@dataclass(frozen=True, slots=True)
class Outline:
    """Blocks, and modules outside blocks; `place` and `block` are aligned with the series."""

    place: Indices
    """Forward order."""
    block: Indices
    """Place in `blocks`; MISSING for series of a parameter group or of the whole model."""
    blocks: tuple[str, ...]
    block_order: tuple[int, ...]

    @classmethod
    def of(cls, series: Sequence[JudgedSeries]) -> "Outline":
        """The outline of these series."""
        order: dict[str, int] = {}
        names: list[str | None] = []
        for one in series:
            facts = one.facts
            name = (facts.block or facts.module or one.subject) if one.kind in ("module", "parameter") else None
            names.append(name)
            if name is not None:
                order[name] = min(order.get(name, facts.order), facts.order)
        number = {name: place for place, name in enumerate(order)}
        return cls(
            place=np.array([one.facts.order for one in series], np.int64),
            block=np.array([MISSING if name is None else number[name] for name in names], np.int64),
            blocks=tuple(order),
            block_order=tuple(order.values()),
        )
