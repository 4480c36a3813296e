"""Gradients as optimizers receive them: each parameter's RMS, and the norm of all together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from internist.measures import weights
from internist.model.outline import WatchedParameter
from internist.model.plain import PLAIN
from internist.model.shards import is_partial, is_sharded, local, shard_of
from internist.record.recorder import Recorder


class GradientCapture:
    """Reads the gradients of one round.

    The global norm counts every gradient of a watched model that an optimizer is about to use, also of parameters of
    which nothing else is measured; a parameter that two optimizers step counts once.

    Args:
        wants: whether a metric is measured.
    """

    def __init__(self, wants: Callable[..., bool]) -> None:
        self._wants = wants
        self._squares: list[Tensor] = []
        self._counted: set[int] = set()
        self._is_incomplete = False
        """Whether some gradient of the round could not be read."""
        self._sizes: dict[tuple[int, ...], Tensor] = {}
        self.measured_now: set[int] = set()
        """Orders of parameters whose gradient was read in this round."""
        self.unread: dict[int, str] = {}
        """By parameter order: why a gradient could not be read."""

    def read(
        self, parameters: Sequence[WatchedParameter], optimizer: Any, recorder: Recorder
    ) -> tuple[list[WatchedParameter], Tensor, list[int]] | None:
        """Mean squares of the gradients that an optimizer is about to use.

        Args:
            parameters: those it steps, unsupported ones too.
            optimizer: it; None where there is none.

        Returns:
            The parameters that have a gradient and are supported, (n,) float32, and the number of entries of each;
            None if there is none.
        """
        given = [(p, grad) for p in parameters if p.order not in self._counted and (grad := gradient_of(p)) is not None]
        given = [(p, grad) for p, grad in given if grad.numel() and not grad.is_meta]
        local = [(p, grad) for p, grad in given if type(grad) in PLAIN and _is_number(grad)]
        self._is_incomplete = self._is_incomplete or len(local) < len(given)
        if len(local) < len(given):
            self.unread |= {
                p.order: _obstacle(grad) for p, grad in given if not (type(grad) in PLAIN and _is_number(grad))
            }
        if not local:
            return None
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            recorder.add_flag(found_inf.detach().float())
        scale = getattr(optimizer, "grad_scale", None)
        chosen, squares = [p for p, _ in local], self._mean_squares(local)
        if isinstance(scale, Tensor):
            squares = squares / scale.to(squares.device, torch.float32).square()
        counts = [p.local.numel() for p in chosen]
        if self._wants("gradient.global_norm"):
            self._squares.append((squares * self._entries(chosen, counts, squares.device)).sum())
        self._counted.update(p.order for p in chosen)
        supported = [i for i, p in enumerate(chosen) if not p.unsupported and not p.excluded]
        self.measured_now.update(chosen[i].order for i in supported)
        if len(supported) < len(chosen):
            squares = squares[supported]
        return [chosen[i] for i in supported], squares, [counts[i] for i in supported]

    def global_norm_squared(self) -> Tensor | None:
        """() float32 sum of squares of all gradients of the round; None without one, or where one could not be read."""
        if not self._squares or self._is_incomplete:
            return None
        if len(self._squares) == 1:
            return self._squares[0]
        home = self._squares[0].device
        return torch.stack([squares.to(home) for squares in self._squares]).sum()

    def reset(self) -> None:
        """Forget the round."""
        self._squares.clear()
        self._counted.clear()
        self._is_incomplete = False
        self.measured_now = set()

    def _mean_squares(self, given: Sequence[tuple[WatchedParameter, Tensor]]) -> Tensor:
        """(n,) means over all entries of the parameter: of a sparse gradient the entries it does not hold are zero."""
        dense = [_entries(grad) for _, grad in given]
        if all(part is grad for part, (_, grad) in zip(dense, given, strict=True)):
            return weights.mean_squares(dense)
        means = [
            weights.mean_squares([part])[0] * (part.numel() / p.local.numel())
            if part.numel()
            else dense[0].new_zeros(())
            for part, (p, _) in zip(dense, given, strict=True)
        ]
        return torch.stack([mean.float() for mean in means])

    def _entries(self, chosen: Sequence[WatchedParameter], counts: Sequence[int], device: torch.device) -> Tensor:
        """Entries of each parameter, on its device; made once, since a copy to the device would wait."""
        key = tuple(p.order for p in chosen)
        known = self._sizes.get(key)
        if known is None or known.device != device:
            known = self._sizes[key] = torch.tensor(counts, dtype=torch.float32, device="cpu").to(device)
        return known


def gradient_of(p: WatchedParameter) -> Tensor | None:
    """The gradient of what this rank holds of a parameter. One that is not laid out as the parameter is stays what it
    is: it is a sum that has not been taken yet, or pieces of another cut."""
    tensor = p.tensor
    grad = tensor.grad
    if grad is None or not is_sharded(grad):
        return grad
    if not is_sharded(tensor) or is_partial(grad):
        return grad
    if grad.placements == tensor.placements:  # type: ignore[attr-defined]
        return local(grad)
    if all(placement.is_replicate() for placement in grad.placements):  # type: ignore[attr-defined]
        piece = shard_of(tensor)
        return local(grad)[tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.shape, strict=True))]
    return grad


def _obstacle(grad: Tensor) -> str:
    """Why a gradient cannot be read."""
    if not is_sharded(grad):
        return f"its gradient is a {type(grad).__name__} of {grad.dtype}"
    if is_partial(grad):
        return "its gradient is a sum over ranks that is not taken before the optimizer does"
    return "its gradient is cut over ranks in another way than it is itself"


def _is_number(grad: Tensor) -> bool:
    return grad.is_floating_point() or grad.is_complex()


def _entries(grad: Tensor) -> Tensor:
    """The numbers of a gradient; of complex ones both parts."""
    held = grad.coalesce().values() if grad.is_sparse else grad
    return torch.view_as_real(held.resolve_conj()) if held.is_complex() else held
