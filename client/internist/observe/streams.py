"""Streams: in which order an accelerator works, as far as memory is shared by calls."""

from typing import NamedTuple

import torch


class Stream(NamedTuple):
    """A device and the number of the stream that work is put into now; 0 where a device has none."""

    device: torch.device
    number: int


def stream_of(device: torch.device) -> Stream:
    """The stream of a device's work that begins now. Memory that is used again and again belongs to one stream: only
    in one does what was written first come first."""
    if device.type != "cuda":
        return Stream(device, 0)
    return Stream(device, torch._C._cuda_getCurrentRawStream(device.index))


def is_recorded(device: torch.device) -> bool:
    """Whether work is not done now but recorded, to be done again and again: memory that it is given then belongs to
    the recording."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
