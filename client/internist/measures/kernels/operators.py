"""How a fused kernel is reached: as one operator of torch, which runs Triton's kernel where there is one, and torch's
own operators elsewhere.

An operator has a name in `torch.ops.internist`, so that fake tensors and dispatch modes see one call of it, on
whichever device. Triton is imported when a kernel is first launched, never before.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

NAMESPACE = "internist"

DEVICES = {"cuda", "xpu"}
"""Types of device that Triton compiles for: those of NVIDIA and AMD are both "cuda" to torch."""

INTERPRETER = "TRITON_INTERPRET"
"""A setting of Triton's, read when that is imported: 1 and its kernels are interpreted, slowly, and not compiled."""

INTERPRETED = {"cpu"}
"""Types of device that they then run on."""

OLDEST = (7, 0)
"""The compute capability of the oldest NVIDIA card that Triton compiles for."""

library: Any = torch.library  # untyped
_LIBRARY = library.Library(NAMESPACE, "FRAGMENT")
# an operator made this way costs 3 µs a call over its function, one of torch.library.custom_op 20 µs
_GIVEN_UP: set[str] = set()


def usable(device: torch.device) -> bool:
    """Whether kernels run on tensors of a device. Where Triton interprets and compiles nothing, that is the CPU."""
    return device.type in (INTERPRETED if _interprets() else DEVICES) and _can(device)


def define(
    schema: str,
    *,
    kernel: str,
    takes: Callable[..., bool],
    plain: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
) -> Any:
    """A new operator, `torch.ops.internist.<name>.default`.

    A kernel that fails to compile or to launch is said once in the log and not tried again: torch does its work.

    Args:
        schema: its name, arguments and results, as torch writes them; no argument has a default, which torch would
            leave out. The first is a tensor and says on which device.
        kernel: the module whose function `launch` takes the arguments and launches the kernel; it may import Triton.
        takes: whether the kernel is written for arguments of these types.
        plain: the same by operators of torch.
        check: raises for arguments that the operator does not take.
        fake: the results, without values.
    """
    name = schema.partition("(")[0]

    def run(first: Tensor, *others: Any) -> Any:
        check(first, *others)
        if name not in _GIVEN_UP and usable(first.device) and takes(first, *others):
            try:
                with _current(first):
                    return _loaded(kernel).launch(first, *others)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Triton, a C compiler and a driver each raise what they like
                _GIVEN_UP.add(name)
                logger.warning("kernel %s failed, torch's operators do its work from now on: %r", name, error)
        with torch.no_grad():
            return plain(first, *others)

    def shown(first: Tensor, *others: Any) -> Any:
        check(first, *others)
        return fake(first, *others)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, shown, "Meta")
    _LIBRARY.impl(
        name, library.fallthrough_kernel, "Autograd"
    )  # measures have no gradient, and their results ask for none
    return getattr(getattr(torch.ops, NAMESPACE), name).default


@functools.cache
def _interprets() -> bool:
    return os.environ.get(INTERPRETER) == "1"


@functools.cache
def _can(device: torch.device) -> bool:
    """Whether Triton is installed, and the device not older than what it compiles for."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= OLDEST


@functools.cache
def _loaded(module: str) -> Any:
    return import_module(module)


def _current(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of a tensor the one that kernels are launched on."""
    if not x.is_cuda and not x.is_xpu:
        return nullcontext()
    accelerator: Any = torch.cuda if x.is_cuda else torch.xpu
    guard: AbstractContextManager[Any] = accelerator.device_of(x)
    return guard
