"""The run's loss, where nobody logs it: from what the root returns, else from what `backward` is called on."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class LossPickup:
    """Gathers the losses of a round's micro-batches."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._number = 0
        self.found = False
        """Whether any forward ever returned a loss."""

    def take(self, output: Any) -> None:
        """Look for a loss in what the root returned from a training forward."""
        loss = loss_of(output)
        if loss is None:
            return
        self.found = True
        value = loss.detach().float().reshape(-1)[0].clone()
        self._sum = value if self._sum is None else self._sum + value.to(self._sum.device)
        self._number += 1

    def mean(self) -> Tensor | None:
        """The mean of the round's losses, and begin anew; None without one."""
        found, number = self._sum, self._number
        self._sum, self._number = None, 0
        return None if found is None else found / number


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a root module returned from a training forward: what is called `loss`, else the only single
    number that wants a gradient: the output itself, or one of a tuple."""
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if _is_number(named):
        return named
    if isinstance(output, Tensor):
        return output if _is_loss(output) else None
    inside: Iterable[Any] = ()
    if isinstance(output, Mapping):
        inside = [value for key, value in output.items() if "loss" in str(key).lower()]
    elif isinstance(output, tuple | list):
        inside = output
    numbers = [each for each in inside if _is_loss(each)]
    return numbers[0] if len(numbers) == 1 else None


def wants_gradient(output: Any) -> bool:
    """Whether any tensor of a forward's output wants a gradient."""
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, Mapping):
        return any(map(wants_gradient, output.values()))
    if isinstance(output, tuple | list):
        return any(map(wants_gradient, output))
    return any(map(wants_gradient, vars(output).values())) if hasattr(output, "__dataclass_fields__") else False


def host_or_device(value: Tensor) -> float | Tensor:
    """A one-element tensor as a number if that needs no waiting, else a copy that stays on its device."""
    value = value.detach()
    return float(value.item()) if value.device.type == "cpu" else value.reshape(-1)[0].float().clone()


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() == 1 and not value.is_meta


def _is_loss(value: Any) -> bool:
    return _is_number(value) and value.requires_grad and value.dim() == 0 and not torch.is_inference(value)
