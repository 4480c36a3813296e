"""The verdict board: all verdicts of an attempt rolled up to cards, blocks and one sentence. Display only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema import views
from internist.schema.conditions import CARDS, CONDITION, JUDGED_CARDS, JUDGED_STEP, Basis, State
from internist_server.judge import wording

RANKS: tuple[State, ...] = ("not measured", "ok", "drifting", "violated")
"""States by their rank in a roll-up: one member's state outranks those before it."""
NOT_MEASURED, OK, DRIFTING, VIOLATED = range(4)
IN_MODEL = 2
"""Cause of what follows in the whole model."""
STRENGTH: tuple[Basis, ...] = ("sanity", "baseline", "target", "reference")
"""Bases from weakest to strongest."""
_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six")
_OF_ALL = {6: "six", 5: "five", 4: "four", 3: "three", 2: "two", 1: "one"}


@dataclass(frozen=True, slots=True)
class Summary:
    """A run's verdict for a list of runs."""

    state: State
    sentence: str
    violated: int
    drifting: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where all members stand, as aligned arrays: checks, then finite series, then the learning rate."""

    rank: NDArray[np.uint8]
    card: NDArray[np.int64]
    strength: NDArray[np.int64]
    """Place of the basis in STRENGTH."""
    excess: NDArray[np.float64]
    """How far out, larger is worse."""
    cause: NDArray[np.int64]
    """0 for own causes, 1 for what follows from them in a module, 2 for what follows in the whole model."""
    is_sign: NDArray[np.bool_]
    """Whether its being well says nothing of the card's condition."""
    is_finite: NDArray[np.bool_]
    """Whether its last value is a number."""
    since: NDArray[np.int64]
    """First step of the present excursion."""
    began: NDArray[np.int64]
    """The first step at which it may have begun: it was not measured between that and `since`."""
    place: NDArray[np.int64]
    """Forward order."""
    block: NDArray[np.int64]
    """Place in `blocks`; -1: of no module."""
    blocks: Sequence[str]
    block_order: Sequence[int]

    def worst_first(self) -> NDArray[np.int64]:
        """Members, worst first: by state, own causes before what follows, then excess, time and forward order."""
        excess = np.where(np.isnan(self.excess), -np.inf, self.excess)
        out = self.rank >= DRIFTING
        return np.lexsort((self.place, self.since, -excess, np.where(out, self.cause, 0), -self.rank.astype(np.int64)))

    def first_cause(self) -> int:
        """Of the worst members the one that broke first: of those that may have been out as early as the first that was
        seen to be, what shows in a module before what shows in the whole model, then by time, what is not finite, and
        forward order."""
        at = np.flatnonzero(self.rank == self.rank.max())
        is_early = self.began[at] <= self.since[at].min()
        at = at[is_early] if is_early.any() else at
        excess = np.where(np.isnan(self.excess[at]), -np.inf, self.excess[at])
        in_model = self.cause[at] == IN_MODEL
        return int(at[np.lexsort((-excess, self.place[at], self.is_finite[at], self.since[at], in_model))[0]])

    def says_well(self) -> NDArray[np.bool_]:
        """Members whose being well says that their card's condition holds."""
        well: NDArray[np.bool_] = (self.rank == OK) & ~self.is_sign
        return well


@dataclass(frozen=True, slots=True)
class Sparkline:
    """The worst excess of one card at each of the last steps."""

    steps: tuple[int, ...]
    excess: tuple[views.Number, ...]


def summary(standing: Standing, verdict_of: Callable[[int], views.Verdict]) -> Summary:
    """The run's verdict, without its members."""
    violated = int(np.count_nonzero(standing.rank == VIOLATED))
    drifting = int(np.count_nonzero(standing.rank == DRIFTING))
    state, said = _overall(standing, _card_ranks(standing), verdict_of)
    return Summary(state, said, violated, drifting)


def verdicts(
    standing: Standing,
    verdict_of: Callable[[int], views.Verdict],
    *,
    run: str,
    attempt: str,
    step: int | None,
    sparklines: Sequence[Sparkline],
    limit: int | None,
) -> views.Verdicts:
    """The whole board."""
    order = standing.worst_first()
    ranks = _card_ranks(standing)
    state, said = _overall(standing, ranks, verdict_of)
    cards = tuple(_card(standing, order, card, ranks[card], sparklines[card], verdict_of) for card in range(len(CARDS)))
    return views.Verdicts(
        run=run,
        attempt=attempt,
        step=step,
        state=state,
        sentence=said,
        cards=cards,
        blocks=_blocks(standing, order, verdict_of),
        members=tuple(verdict_of(int(i)) for i in (order if limit is None else order[:limit])),
        total=int(order.size),
    )


def _card_ranks(standing: Standing) -> list[int]:
    ranks = [NOT_MEASURED] * len(CARDS)
    for card in range(len(CARDS)):
        speaks = standing.says_well() | (standing.rank >= DRIFTING)
        members = standing.rank[(standing.card == card) & speaks]
        if members.size:
            ranks[card] = int(members.max())
    return ranks


def _weakest(standing: Standing, card: int) -> Basis | None:
    well = (standing.card == card) & standing.says_well()
    return STRENGTH[int(standing.strength[well].min())] if well.any() else None


def _card(
    standing: Standing,
    order: NDArray[np.int64],
    card: int,
    rank: int,
    sparkline: Sparkline,
    verdict_of: Callable[[int], views.Verdict],
) -> views.Card:
    name = CARDS[card]
    condition = next(c for c in CONDITION.values() if c.card == name)
    counts = np.bincount(standing.rank[standing.card == card], minlength=len(RANKS))
    own = order[standing.card[order] == card]
    return views.Card(
        name=name,
        title=condition.title,
        summary=condition.summary,
        state=RANKS[rank],
        basis=_weakest(standing, card),
        ok=int(counts[OK]),
        drifting=int(counts[DRIFTING]),
        violated=int(counts[VIOLATED]),
        not_measured=int(counts[NOT_MEASURED]),
        worst=verdict_of(int(own[0])) if own.size else None,
        steps=sparkline.steps,
        sparkline=sparkline.excess,
    )


def _blocks(
    standing: Standing, order: NDArray[np.int64], verdict_of: Callable[[int], views.Verdict]
) -> tuple[views.BlockVerdict, ...]:
    size = len(standing.blocks)
    grid = np.full((size, len(CARDS)), -1, np.int64)
    inside = standing.block >= 0
    np.maximum.at(grid, (standing.block[inside], standing.card[inside]), standing.rank[inside].astype(np.int64))
    ordered = standing.block[order]
    found, first = np.unique(ordered, return_index=True)
    worst = {int(block): int(order[at]) for block, at in zip(found, first, strict=True) if block >= 0}
    return tuple(
        views.BlockVerdict(
            name=standing.blocks[block],
            order=standing.block_order[block],
            states={CARDS[card]: RANKS[rank] for card, rank in enumerate(grid[block].tolist()) if rank >= 0},
            worst=verdict_of(worst[block]) if block in worst else None,
        )
        for block in sorted(range(size), key=lambda b: (-int(grid[b].max()), standing.block_order[b]))
    )


def _overall(
    standing: Standing,
    ranks: Sequence[int],
    verdict_of: Callable[[int], views.Verdict],
) -> tuple[State, str]:
    """The run's state and the sentence on top of its page."""
    rank = max(ranks)
    if rank >= DRIFTING:
        return RANKS[rank], _first_sentence(standing, standing.first_cause(), verdict_of)
    held = [card for card in range(len(CARDS)) if ranks[card] == OK]
    if not held:
        return "not measured", "Nothing is judged yet: warming up."
    by_basis: dict[str, int] = {}
    for card in held:
        basis = _weakest(standing, card)
        word = "own baseline" if basis == "baseline" else str(basis)
        by_basis[word] = by_basis.get(word, 0) + 1
    rests = ", ".join(
        f"{by_basis[word]} by {word}" for word in ("reference", "target", "own baseline", "sanity") if word in by_basis
    )
    if len(held) == len(CARDS):
        return "ok", f"All {_OF_ALL[len(CARDS)]} conditions hold ({rests})."
    waiting = [card for card in range(len(CARDS)) if ranks[card] != OK]
    empty = [card for card in waiting if not (standing.card == card).any()]
    told = (
        ("not measured yet", [card for card in waiting if card not in empty]),
        ("nothing to measure so far", empty),
    )
    rest = "".join(f"; {word}: {', '.join(CARDS[card] for card in cards)}" for word, cards in told if cards)
    verb = "holds" if len(held) == 1 else "hold"
    said = f"{_NUMBERS[len(held)]} of {_OF_ALL[len(CARDS)]} conditions {verb} ({rests}){rest}."
    is_enough = len(held) >= JUDGED_CARDS and ranks[CARDS.index(JUDGED_STEP)] == OK
    return ("ok", said) if is_enough else ("not measured", f"Too little is judged to call it well. {said}")


def _first_sentence(standing: Standing, first: int, verdict_of: Callable[[int], views.Verdict]) -> str:
    verdict = verdict_of(first)
    alike = (
        (standing.block == standing.block[first])
        & (standing.card == standing.card[first])
        & (standing.rank == standing.rank[first])
    )
    whole_block = verdict.block is not None and int(np.count_nonzero(alike)) > 1
    where = wording.place(verdict.block or "", None) if whole_block else wording.place(verdict.subject, verdict.index)
    if verdict.kind == "group":
        where = f"{verdict.metric.replace('_', ' ')} of {wording.group(verdict.subject)}"
    said = wording.sentence(verdict.condition, where, verdict.reason, verdict.since_step)
    others = int(np.count_nonzero(standing.rank == standing.rank[first])) - 1
    return said if not others else f"{said} {others} more {RANKS[int(standing.rank[first])]}."
