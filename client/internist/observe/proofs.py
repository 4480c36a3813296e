"""Proofs: whether a module computes what the rule for its own update says, found out once, from its real output."""

import math

import torch
from torch import Tensor, nn

from internist.model.outline import WatchedModule
from internist.observe.faults import Faults
from internist.observe.own import TOLERANCE, Probe, deviation, is_plain
from internist.observe.tokens import OWN_TOKENS, at_positions
from internist.record.transfer import Transfer, Transfers


class Proofs:
    """Verifies modules one by one. Until a module's proof has reached the host its rule is not used."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._factors: dict[int, float | None] = {}
        """By module order: what the module multiplies its rule's output by; None: it has another rule."""
        self._under_way: dict[int, Transfer] = {}

    def factor(self, watched: WatchedModule, module: nn.Module, probe: Probe, output: Tensor) -> float | None:
        """What the module multiplies the output of its rule by; None where the rule is not proven.

        Args:
            watched: the module as it is known.
            module: one that has a rule.
            probe: what it has just received at its probe tokens.
            output: what it has given, whole, features last.
        """
        order = watched.order
        if order not in self._factors:
            if is_plain(module):
                return 1.0
            transfer = self._under_way.get(order)
            if transfer is None:
                found = deviation(module, probe, at_positions(output, -1, OWN_TOKENS))
                transfer = self._under_way[order] = Transfers().begin([found])
            if not transfer.arrived():
                return None
            off, multiple = torch.frombuffer(bytearray(transfer.take()), dtype=torch.float32).tolist()
            del self._under_way[order]
            if not math.isfinite(off):
                return None  # numbers that overflow prove nothing: another call will
            self._factors[order] = multiple if off <= TOLERANCE else None
            if self._factors[order] is None:
                kind = type(module).__name__
                reason = f"{kind} computes something else than its stored weight says (off by {off:.2g})"
                self._faults.note("own update", watched.name, reason, final=True)
        return self._factors[order]
