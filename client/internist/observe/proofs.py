"""Proofs: whether a module computes what the rule for its own update says, found out once, from its real output."""

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
        self._held: dict[int, bool] = {}
        """By module order: the outcome."""
        self._under_way: dict[int, Transfer] = {}

    def holds(self, watched: WatchedModule, module: nn.Module, probe: Probe, output: Tensor) -> bool:
        """Whether the module's rule is proven.

        Args:
            watched: the module as it is known.
            module: one that has a rule.
            probe: what it has just received at its probe tokens.
            output: what it has given, whole, features last.
        """
        order = watched.order
        if order not in self._held:
            if is_plain(module):
                return True
            transfer = self._under_way.get(order)
            if transfer is None:
                given = at_positions(output, -1, OWN_TOKENS)
                found = deviation(module, probe, given)
                transfer = self._under_way[order] = Transfers().begin([found])
            if not transfer.arrived():
                return False
            (value,) = torch.frombuffer(bytearray(transfer.take()), dtype=torch.float32).tolist()
            del self._under_way[order]
            self._held[order] = value <= TOLERANCE
            if not self._held[order]:
                reason = (
                    f"{type(module).__name__} computes something else than its stored weight says (off by {value:.2g})"
                )
                self._faults.note("own update", watched.name, reason, final=True)
        return self._held[order]
