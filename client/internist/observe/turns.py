"""Turns: which modules wait where a light sample measures only some of them."""

from internist.model.outline import Outline
from internist.observe.sampling import MOST_TURNS, Due

_NOBODY: frozenset[int] = frozenset()


class Turns:
    """Splits the modules of an outline into parts of neighbours. The root, blocks and the output head never wait."""

    def __init__(self, outline: Outline) -> None:
        orders = [m.order for m in outline.modules if m.role not in ("root", "block", "head") and m is not outline.head]
        parts = 1 << MOST_TURNS
        self._part = {order: place * parts // len(orders) for place, order in enumerate(orders)}
        self._waiting: dict[tuple[int, int], frozenset[int]] = {}

    def waiting(self, sample: Due) -> frozenset[int]:
        """Orders of the modules whose turn it is not. With twice as many turns, those that do not wait are among those
        that do not wait now."""
        if sample.turns == 1:
            return _NOBODY
        key = sample.turn, sample.turns
        if key not in self._waiting:
            self._waiting[key] = frozenset(o for o, part in self._part.items() if part % sample.turns != sample.turn)
        return self._waiting[key]
