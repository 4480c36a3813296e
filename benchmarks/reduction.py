"""What spectra cost that ranks work out together: collectives, bytes and processor time of each rank.

    python -m benchmarks.reduction

Ranks are threads of this process on a gloo group of their own; each holds rows of random matrices, as `fully_shard`
leaves them. Largest errors are against an SVD of the whole.
"""

import sys
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor, linalg
from torch.distributed import HashStore

from internist.measures.sharded_spectra import Pieces, spectra
from internist.observe.collective import Ranks
from internist.observe.reduction import Reduction

CASES = ((256, 24, 2), (512, 24, 2), (512, 24, 4), (1024, 12, 2))
"""Side of the matrices, how many there are (a weight and its change are two), and ranks."""
PATIENCE_S = 300.0


@dataclass
class Part:
    """A rank's rows of all matrices."""

    matrices: list[Pieces]
    mark: int = 1
    norms: list[Tensor] = field(default_factory=list)

    def work_out(self, ranks: Ranks) -> None:
        """Keep what becomes known."""
        self.norms = [found.norms for found in spectra(self.matrices, total=ranks.total, largest=ranks.largest)]


def measure(side: int, count: int, world: int) -> tuple[int, int, float, float]:
    """Collectives, bytes that a rank puts into them, its thread's processor seconds, and the largest relative error."""
    store, generator = HashStore(), torch.Generator().manual_seed(0)
    ranks = tuple(range(world))
    whole = [torch.randn(side, side, generator=generator) for _ in range(count)]
    joined = [Reduction(lambda: store, "benchmark", rank, patience_s=PATIENCE_S) for rank in ranks]
    parts = [Part([_rows(matrix, rank, world) for matrix in whole]) for rank in ranks]
    ended = [threading.Event() for _ in ranks]
    for one, part, end in zip(joined, parts, ended, strict=True):
        one.join(0, [ranks], {ranks: part}, end.set)
    for one in joined:
        one.is_idle.wait(PATIENCE_S)
        one.close()
    exact = [linalg.matrix_norm(matrix.double(), 2).item() for matrix in whole]
    error = max(abs(norm.item() / value - 1) for norm, value in zip(parts[0].norms, exact, strict=True))
    return joined[0].operations, joined[0].bytes, joined[0].worked_s, error


def main() -> int:
    """Print a line for each case."""
    torch.set_num_threads(1)
    for side, count, world in CASES:
        operations, sent, seconds, error = measure(side, count, world)
        print(
            f"{count} of {side} x {side} over {world} ranks: {operations} collectives, {sent:,} bytes, "
            f"{seconds * 1e3:.0f} ms of processor time a rank, error {error:.0e}"
        )
    return 0


def _rows(matrix: Tensor, rank: int, world: int) -> Pieces:
    return Pieces(torch.tensor_split(matrix, world)[rank].clone().unsqueeze(0), matrix.shape[1])


if __name__ == "__main__":
    sys.exit(main())
