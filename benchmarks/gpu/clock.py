"""Time and waiting on a device, and the same on a CPU, where there is nothing to wait for."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def finished(device: torch.device) -> float:
    """The time once the device has done all that was asked of it, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long some work takes, host and device together."""
    began = finished(device)
    work()
    return finished(device) - began


def interleaved(works: dict[str, Callable[[], object]], device: torch.device, times: int) -> dict[str, float]:
    """Median seconds of each kind of work, one after another in every round, after two rounds that do not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(times + 2):
        for name, work in works.items():
            took = seconds(work, device)
            if turn >= 2:
                found[name].append(took)
    return {name: statistics.median(took) for name, took in found.items()}


@contextmanager
def synchronisations(device: torch.device) -> Iterator[list[str]]:
    """What waits for the device meanwhile, as torch tells it; nothing is found on a CPU."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{one.filename}:{one.lineno}" for one in told if "synchronizing CUDA operation" in str(one.message)]


def allocated(device: torch.device) -> int:
    """Bytes that tensors take now; from here on the most is noted. None are known of on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def most_allocated(device: torch.device) -> int:
    """The most bytes that tensors took since `allocated`."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
