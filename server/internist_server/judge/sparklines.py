"""Sparklines: how far out the worst member of each card was at the last regular steps."""

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import CARDS
from internist.schema.views import Number
from internist_server.judge.board import Sparkline
from internist_server.judge.checks import NUMERIC_CARD, Checks, Flags, Logs

POINTS = 64


class Sparklines:
    """A ring of the last points of each card."""

    def __init__(self) -> None:
        self.steps = np.full((len(CARDS), POINTS), -1, np.int64)
        self.excess = np.zeros((len(CARDS), POINTS), np.float32)
        self.drawn = np.zeros(len(CARDS), np.int64)

    def add(self, step: int, cards: NDArray[np.int64], excess: NDArray[np.float32]) -> None:
        """One more point for each of these cards."""
        at = self.drawn[cards] % POINTS
        self.steps[cards, at] = step
        self.excess[cards, at] = excess
        self.drawn[cards] += 1

    def line(self, card: int) -> Sparkline:
        """The points of one card, oldest first."""
        steps = np.roll(self.steps[card], -int(self.drawn[card]) % POINTS)
        excess = np.roll(self.excess[card], -int(self.drawn[card]) % POINTS)
        known = steps >= 0
        points: list[Number] = [x if np.isfinite(x) else "inf" for x in excess[known].tolist()]
        return Sparkline(tuple(steps[known].tolist()), tuple(points))


def draw(lines: Sparklines, checks: Checks, step: int, ratios: Logs, bad: Flags | None) -> None:
    """One more point of each card's sparkline.

    Args:
        lines: of all cards.
        checks: what is judged.
        step: of the point.
        ratios: by check, log2 of how far out it is; NaN where it is not judged.
        bad: by column, what is not finite; None where nothing was measured.
    """
    if checks.column.size:
        excess = np.where(checks.two_sided, np.abs(ratios), np.maximum(ratios, 0))
        by_card = np.where(np.isnan(ratios), np.float32(-1), excess)[checks.by_card]
        worst = np.maximum.reduceat(by_card, checks.card_starts)
        drawn = worst >= 0
        lines.add(step, checks.cards_present[drawn], worst[drawn])
    if bad is not None:
        lines.add(step, np.array([NUMERIC_CARD]), np.array([np.inf if bad.any() else 0.0], np.float32))
