"""Scalars: what `log` is given, as numbers, or why it is none."""

import math
from typing import Any

from torch import Tensor

from internist.observe.loss import host_or_device
from internist.schema.wire import MAX_NAME_LENGTH


class NotAScalar(ValueError):  # noqa: N818
    """A name or a value that cannot be recorded; the message says why. It never leaves the monitor."""


def checked_name(name: Any) -> str:
    """The name of a scalar.

    Raises:
        NotAScalar: it cannot be one.
    """
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise NotAScalar(f"expected a name of 1 to {MAX_NAME_LENGTH} printable characters")
    return name


def scalar(value: Any) -> float | Tensor:
    """A value as one number. A tensor on an accelerator stays there, as a 0-d float32 copy.

    Raises:
        NotAScalar: it is no single real number.
    """
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, int):
        return _of_int(value)
    convert = getattr(type(value), "__float__", None)
    if convert is None:
        raise NotAScalar(f"{type(value).__name__} is no single number")
    try:
        return float(value)
    except Exception as error:  # whatever a class of the user's raises when it is asked for a number
        raise NotAScalar(f"{type(value).__name__} is no single number ({type(error).__name__})") from error


def _of_tensor(value: Tensor) -> float | Tensor:
    if value.device.type == "meta":
        raise NotAScalar("a tensor on the meta device holds no number")
    if value.numel() != 1:
        raise NotAScalar(f"a tensor of shape {tuple(value.shape)} is no single number")
    if value.is_complex():
        raise NotAScalar(f"a tensor of {value.dtype} is no single real number")
    try:
        return host_or_device(value)
    except Exception as error:  # sparse, quantised, traced or batched tensors: what they raise differs by kind
        raise NotAScalar(f"{type(value).__name__} cannot be read as a number ({type(error).__name__})") from error


def _of_int(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
