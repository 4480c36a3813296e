"""Sums over ranks on process groups of the monitor's own, beside those of the training: gloo, on the host, and every
operation ends within a time."""

import hashlib
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

PATIENCE_S = 100.0
"""How long a rank is waited for; under what a closed step waits for values to come (`record.recorder.LATE_S`)."""


class Ranks:
    """Some ranks, and what they work out together. One thread uses it.

    Args:
        store: where they find each other: a store of this thread's own, since a wait blocks it for all others.
        key: what they call this meeting, alike.
        ranks: global ranks, in order.
        me: this one.
        patience_s: how long each operation may take.

    Raises:
        RuntimeError: they did not all come.
    """

    def __init__(self, store: Any, key: str, ranks: Sequence[int], me: int, patience_s: float) -> None:
        from torch import distributed

        name = hashlib.blake2b(repr(tuple(ranks)).encode(), digest_size=8).hexdigest()
        # not by `new_group`, which counts the groups of all of the process: the training may make some meanwhile
        c10d: Any = distributed
        self._group: Any = c10d.ProcessGroupGloo(
            c10d.PrefixStore(f"{key}/{name}", store), list(ranks).index(me), len(ranks), timedelta(seconds=patience_s)
        )
        self._sum, self._largest = c10d.AllreduceOptions(), c10d.AllreduceOptions()
        self._sum.reduceOp, self._largest.reduceOp = c10d.ReduceOp.SUM, c10d.ReduceOp.MAX
        self.operations = self.bytes = 0
        self.waited_s = 0.0

    def total(self, flat: Tensor) -> Tensor:
        """The sum over ranks, on the CPU."""
        return self._over(flat, self._sum)

    def largest(self, flat: Tensor) -> Tensor:
        """The largest of each entry over ranks, on the CPU. Of numbers."""
        return self._over(flat, self._largest)

    def agree(self, told: Sequence[int]) -> list[tuple[int, int]]:
        """The least and the largest of what all ranks tell, number by number."""
        numbers = torch.tensor([*told, *(-number for number in told)], dtype=torch.int64, device="cpu")
        most: list[int] = self._over(numbers, self._largest).tolist()
        return [(-least, largest) for least, largest in zip(most[len(told) :], most[: len(told)], strict=True)]

    def _over(self, flat: Tensor, options: Any) -> Tensor:
        here = flat.detach().to("cpu", copy=True).contiguous()
        if not here.numel():
            return here
        began = time.perf_counter()
        self._group.allreduce([here], options).wait()
        self.waited_s += time.perf_counter() - began
        self.operations += 1
        self.bytes += here.numel() * here.element_size()
        return here
