"""Ranks join each other on threads of their own, by step number alone; one that does not come is waited for once."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, linalg
from torch.distributed import HashStore

from internist.measures.sharded_spectra import EXACT_UP_TO, Pieces, spectra
from internist.observe.collective import Ranks
from internist.observe.reduction import MOST_WAITING, TOLERATED, Reduction

EXACT = 1e-6
"""Relative, of float32 sums in another order."""
ITERATED = 1e-4
"""Relative, of 32 steps of Lanczos on matrices whose largest singular value stands out: as of one process."""
PATIENCE_S = 1.0
ALWAYS_S = 60.0
ALL = (0, 1, 2)


@dataclass
class Part:
    """This rank's rows of some matrices, and what becomes known of the whole."""

    matrices: list[Pieces]
    mark: int = 7
    norms: list[Tensor] = field(default_factory=list)

    def work_out(self, ranks: Ranks) -> None:
        self.norms = [found.norms for found in spectra(self.matrices, total=ranks.total, largest=ranks.largest)]


class Falling(Part):
    """A rank that falls in the middle of its work."""

    def work_out(self, ranks: Ranks) -> None:
        ranks.total(torch.ones(1))
        del ranks._group
        raise RuntimeError("it fell")


@pytest.fixture
def joined() -> Iterator[Callable[..., list[Reduction]]]:
    """Ranks of one process, which find each other."""
    made: list[Reduction] = []

    def of(patience_s: float = ALWAYS_S) -> list[Reduction]:
        store = HashStore()
        made.extend(Reduction(lambda: store, "test", rank, patience_s=patience_s) for rank in ALL)
        return made

    yield of
    for reduction in made:
        reduction.close()


def steep(rows: int, columns: int, *, scale: float = 1.0) -> Tensor:
    """A random matrix whose largest singular value stands out a little."""
    generator = torch.Generator().manual_seed(rows)
    noise = torch.randn(rows, columns, generator=generator)
    left, right = torch.randn(rows, generator=generator), torch.randn(columns, generator=generator)
    return scale * (noise + torch.outer(left, right) / min(rows, columns) ** 0.5)


def rows_of(matrix: Tensor, rank: int) -> Pieces:
    return Pieces(torch.tensor_split(matrix, len(ALL))[rank].clone().unsqueeze(0), matrix.shape[1])


def columns_of(matrix: Tensor, rank: int) -> Pieces:
    """A piece of a matrix that is taken for cut both ways."""
    parts = torch.tensor_split(matrix, len(ALL), dim=1)
    at = 0, sum(part.shape[1] for part in parts[:rank])
    return Pieces(parts[rank].clone().unsqueeze(0), matrix.shape[1], matrix.shape[0], at)


def work(reductions: list[Reduction], step: int, parts: dict[int, Part | None]) -> None:
    """Those ranks join a step, and all of them have ended."""
    ended = [threading.Event() for _ in parts]
    for (rank, part), end in zip(parts.items(), ended, strict=True):
        reductions[rank].join(step, [ALL], {} if part is None else {ALL: part}, end.set)
    assert all(end.wait(ALWAYS_S) for end in ended)


def parts(*matrices: Tensor) -> dict[int, Part | None]:
    return {rank: Part([rows_of(matrix, rank) for matrix in matrices]) for rank in ALL}


def norms(found: Part | None) -> list[float]:
    assert found is not None
    return [norm.item() for norm in found.norms]


def test_norms_of_the_whole_are_known_of_all_ranks(joined):
    few, many = steep(40, 30), steep(300, EXACT_UP_TO + 40)
    fewer_rows_than_ranks = steep(2, 9)
    tiny, empty = steep(20, EXACT_UP_TO + 1, scale=1e-25), torch.zeros(5, EXACT_UP_TO + 1)
    matrices = few, many, fewer_rows_than_ranks, tiny, empty
    given = {
        rank: Part([*(rows_of(matrix, rank) for matrix in matrices), columns_of(many, rank), columns_of(few, rank)])
        for rank in ALL
    }
    reductions = joined()

    work(reductions, 0, given)

    expected = [linalg.matrix_norm(matrix.double(), 2).item() for matrix in (*matrices, many, few)]
    tolerances = (EXACT, ITERATED, EXACT, ITERATED, 0.0, ITERATED, EXACT)
    for found, value, tolerance in zip(norms(given[0]), expected, tolerances, strict=True):
        assert found == pytest.approx(value, rel=tolerance, abs=0.0)
    assert norms(given[1]) == norms(given[2]) == norms(given[0])


@pytest.mark.parametrize(("entry", "told"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_what_is_no_number_stays_with_its_own_matrix(joined, entry, told):
    spoilt = steep(9, EXACT_UP_TO + 1)
    spoilt[7, 3] = entry
    given = parts(steep(9, 8), spoilt)

    work(joined(), 0, given)

    sound, other = norms(given[0])
    assert sound == pytest.approx(linalg.matrix_norm(steep(9, 8), 2).item(), rel=EXACT)
    assert str(other) == told


def test_where_one_rank_brings_nothing_the_step_alone_is_given_up(joined):
    reductions = joined()
    first, second = parts(steep(9, 8)), parts(steep(9, 8))
    first[1] = None

    work(reductions, 0, first)
    work(reductions, 1, second)

    assert norms(first[0]) == []
    assert len(norms(second[0])) == 1
    assert not any(reduction.is_over for reduction in reductions)


def test_a_rank_that_does_not_come_is_waited_for_once_and_said_once(joined, caplog):
    reductions = joined(PATIENCE_S)
    with caplog.at_level(logging.WARNING, "internist"):
        work(reductions, 0, parts(steep(9, 8)))
        late = {rank: part for rank, part in parts(steep(9, 8)).items() if rank}
        work(reductions, 1, late)
        work(reductions, 2, late)
        work(reductions, 1, {0: Part([])})  # it comes at last

    assert all(reduction.is_over for reduction in reductions)
    assert sorted(record.args[0] for record in caplog.records) == [0, 1, 2]


def test_a_rank_that_falls_in_the_middle_ends_it_for_all(joined, caplog):
    reductions = joined()
    given = parts(steep(9, 8))
    given[1] = Falling([])
    with caplog.at_level(logging.WARNING, "internist"):
        work(reductions, 0, given)

    assert all(reduction.is_over for reduction in reductions)
    assert len(caplog.records) == len(ALL)


def test_ranks_at_unlike_steps_part(joined, caplog):
    reductions = joined()
    ended = threading.Event()
    reductions[2].join(5, [ALL], {ALL: Part([])}, ended.set)
    with caplog.at_level(logging.WARNING, "internist"):
        work(reductions, 4, {0: Part([]), 1: Part([])})
        assert ended.wait(ALWAYS_S)

    assert all(reduction.is_over for reduction in reductions)
    assert {"steps from 4 to 5" in record.getMessage() for record in caplog.records} == {True}


def test_ranks_that_bring_unlike_matrices_are_forgiven_a_few_times(joined):
    reductions = joined()
    for step in range(TOLERATED):
        assert not any(reduction.is_over for reduction in reductions)
        given = parts(steep(9, 8))
        given[0] = Part([], mark=8)
        work(reductions, step, given)

    assert all(reduction.is_over for reduction in reductions)


def test_a_rank_that_waits_for_others_says_that_it_is_behind(joined):
    reductions = joined(PATIENCE_S)
    for step in range(MOST_WAITING):
        assert not reductions[0].is_behind
        reductions[0].join(step, [ALL], {}, lambda: None)

    assert reductions[0].is_behind
