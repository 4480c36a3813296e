"""Tokens of activations: the tensor a call is about, and the few fixed positions of it that make a probe."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

PROBE_TOKENS = 64
"""Tokens of a probe: first, last, the rest strided."""
OWN_TOKENS = 16
"""The same for `update.own`, which is measured ten times as often."""


def first_tensor(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first floating-point tensor of a call or of a structured output; None without one."""
    for value in chain(args, kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                return value
        elif isinstance(value, Mapping):
            found = first_tensor((), value)
            if found is not None:
                return found
        elif isinstance(value, tuple | list):
            found = first_tensor(value, {})
            if found is not None:
                return found
    return None


def version_of(tensor: Tensor) -> int:
    """The tensor's modification counter; inference tensors have none."""
    return -1 if tensor.is_inference() else tensor._version


def positions(tokens: int, device: torch.device, most: int = PROBE_TOKENS) -> Tensor:
    """(min(tokens, most),) int64 indices of the probe tokens: first, last, the rest evenly strided. Not to be written
    to."""
    return (_positions if torch.compiler.is_compiling() else _known_positions)(tokens, device, most)


def _positions(tokens: int, device: torch.device, most: int) -> Tensor:
    count = min(tokens, most)
    if count == tokens:
        return torch.arange(tokens, device=device)
    return torch.arange(count, device=device) * (tokens - 1) // (count - 1)


_known_positions = lru_cache(maxsize=256)(_positions)


def at_positions(tensor: Tensor, axis: int = -1, most: int = PROBE_TOKENS) -> Tensor:
    """(at most `most`, features) the tensor's probe tokens."""
    if axis not in (-1, tensor.dim() - 1):
        tensor = tensor.movedim(axis, -1)
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.shape[0] <= most else flat.index_select(0, positions(flat.shape[0], flat.device, most))


def owned(tokens: Tensor) -> Tensor:
    """Probe tokens in memory of their own; where they were gathered they are already."""
    if torch.compiler.is_compiling():
        return tokens  # what leaves a graph has memory of its own
    return tokens.clone() if tokens._is_view() else tokens


def outside_modes() -> AbstractContextManager[Any]:
    """Leaves dispatch modes that are active around a module (selective checkpointing would hand our tensors to the
    model)."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return nullcontext()
    from torch.utils._python_dispatch import _disable_current_modes

    context: AbstractContextManager[Any] = _disable_current_modes()
    return context
