"""Streams: in which order an accelerator works, as far as memory is shared by calls."""

from typing import NamedTuple

import torch


class Stream(NamedTuple):
    """A device and the number of the stream that work is put into now; 0 where a device has none."""

    device: torch.device
    number: int


class Streams:
    """Those of one device, looked up at every call. Memory that is used again and again belongs to one stream: only in
    one does what was written first come first."""

    def __init__(self) -> None:
        self._last: Stream | None = None

    def now(self, device: torch.device) -> Stream:
        """The stream of the device's work that begins now."""
        number = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
        last = self._last
        if last is None or last.number != number:
            last = self._last = Stream(device, number)
        return last


def is_recorded(device: torch.device) -> bool:
    """Whether work is not done now but recorded, to be done again and again: memory that it is given then belongs to
    the recording."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
