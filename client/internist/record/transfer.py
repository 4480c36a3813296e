"""Transfers: copies of device values to the host that nobody waits for."""

import ctypes
import threading
from collections.abc import Callable

import torch
from torch import Tensor

HOST = torch.device("cpu")
PINNED_KEPT = 8


class Transfer:
    """One copy under way."""

    def __init__(self, host: Tensor, event: "torch.cuda.Event | None", give_back: Callable[[Tensor], None]) -> None:
        self._host, self._event, self._give_back = host, event, give_back

    def arrived(self) -> bool:
        """Whether the values are on the host."""
        query: Callable[[], bool] = bool if self._event is None else self._event.query
        return self._event is None or query()

    def take(self) -> bytes:
        """The little-endian float32 bytes, once they have arrived; the buffer is free for the next copy."""
        raw = _bytes_of(self._host)
        if self._event is not None:
            self._give_back(self._host)
        return raw


class Transfers:
    """Starts copies. The training thread and the sender's may both ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pinned: list[Tensor] = []

    def begin(self, tensors: list[Tensor]) -> Transfer:
        """Copy these, flattened and one behind the other: to the host from the first device that is another."""
        home = next((t.device for t in tensors if t.device.type != "cpu"), HOST)
        flat = [_flat(tensor) for tensor in tensors]
        if home.type == "cpu":
            return Transfer(torch.cat(flat), None, _keep_none)
        flat = [t if t.device == home else t.to(home, non_blocking=True) for t in flat]
        source = torch.cat(flat)
        host = self._buffer(source.numel(), pinned=home.type == "cuda")
        host.copy_(source, non_blocking=True)
        if home.type != "cuda":
            return Transfer(host.clone(), None, _keep_none)
        new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
        event = new_event()
        event.record()
        return Transfer(host, event, self._keep)

    def _buffer(self, size: int, *, pinned: bool) -> Tensor:
        with self._lock:
            if pinned and self._pinned and self._pinned[-1].numel() >= size:
                return self._pinned.pop()[:size]
        return torch.empty(size + size // 4, dtype=torch.float32, device="cpu", pin_memory=pinned)[:size]

    def _keep(self, host: Tensor) -> None:
        whole = host._base if host._base is not None else host
        with self._lock:
            if len(self._pinned) < PINNED_KEPT:
                self._pinned.append(whole)


def _flat(tensor: Tensor) -> Tensor:
    """(entries,) float32, by no operator where it is that already."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    tensor = tensor if tensor.dim() == 1 else tensor.reshape(-1)
    return tensor if tensor.dtype == torch.float32 else tensor.float()


def _keep_none(_: Tensor) -> None:
    """Ordinary memory is not kept."""


def _bytes_of(host: Tensor) -> bytes:
    """The bytes of a contiguous float32 tensor on the host (torch does not bring NumPy)."""
    return ctypes.string_at(host.data_ptr(), host.numel() * 4) if host.numel() else b""
