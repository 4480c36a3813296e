"""Whole matrices of parameters that ranks hold pieces of: owners have them during a step, and nobody else ever does.

Whoever asks before a step (`MatrixOptimizer.request_whole`) is shown them there. Ranks need not ask alike.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

Side = Literal["weight", "update"]
BOTH: frozenset[Side] = frozenset(("weight", "update"))
CHANGE: frozenset[Side] = frozenset(("update",))
NEITHER: frozenset[Side] = frozenset()


class Whole(NamedTuple):
    """A parameter of which this rank has all, for as long as it is shown."""

    parameter: Tensor
    weight: Tensor | None
    """As the step leaves it, of the parameter's whole shape; None where the owner has the update alone."""
    update: Tensor
    """What the step adds to it, in float32 or wider."""


Viewer = Callable[[Sequence[Whole]], None]
"""Looks at whole matrices in the middle of a step. It must not raise, change or keep them."""


class Views:
    """What of one step is to be shown to whom, and what was."""

    def __init__(self, parameters: Iterable[Tensor], viewer: Viewer) -> None:
        self._wanted = {id(parameter) for parameter in parameters}
        self._viewer = viewer
        self._shown: dict[Tensor, tuple[frozenset[Side], Tensor, tuple[int, int]]] = {}
        """With what this rank holds of each, and the versions of both when the step had written it."""

    def wants(self, parameter: Tensor) -> bool:
        """Whether somebody asked for a parameter."""
        return id(parameter) in self._wanted

    def show(self, owned: Sequence[Whole]) -> None:
        """Show what this rank owns of what was asked for."""
        if owned:
            self._viewer(owned)

    def note(self, parameter: Tensor, sides: frozenset[Side], held: Tensor) -> None:
        """A parameter has been shown, here or on another rank, and the step has written what this rank holds of it."""
        if sides:
            self._shown[parameter] = sides, held, _versions(parameter, held)

    def shown(self) -> dict[Tensor, frozenset[Side]]:
        """What has been shown of which parameters, but of those that were written to since (a clip, an average)."""
        return {
            parameter: sides
            for parameter, (sides, held, versions) in self._shown.items()
            if versions == _versions(parameter, held)
        }


def _versions(parameter: Tensor, held: Tensor) -> tuple[int, int]:
    """A write to a DTensor is counted there, and one to what is held of it here."""
    return parameter._version, held._version
