"""Numbers on their way from a device to the host, which nobody waits for."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


class News:
    """A copy of a vector of numbers, asked for at one step and read at a later one, once it has arrived.

    On a CPU it is there at once. Of tensors without numbers nothing ever arrives.
    """

    def __init__(self, numbers: Tensor) -> None:
        """Start the copy of (n,) numbers as they are now."""
        self.numbers = numbers.clone()
        """Where they came from."""
        self._host: Tensor | None = self.numbers if numbers.is_cpu else None
        self._event: torch.Event | None = None
        if not numbers.is_cpu and has_numbers(numbers):
            pinned = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
            self._host = pinned.copy_(self.numbers, non_blocking=True)
            self._event = torch.Event(numbers.device)
            self._event.record()

    def arrived(self) -> list[float] | None:
        """The numbers; None while they are under way."""
        if self._host is None or not has_numbers(self._host) or not (self._event is None or self._event.query()):
            return None
        found: list[float] = self._host.tolist()
        return found


def has_numbers(tensor: Tensor) -> bool:
    """Whether there is anything to read: not of a meta tensor, nor of a fake one, which plans stand in for tensors."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))
