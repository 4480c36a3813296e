"""The gradient norm before clipping, from `clip_grad_norm_` wherever a module has bound it by name."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad


class ClippingCapture:
    """Wraps `clip_grad_norm_` and hands on the norm it returns."""

    def __init__(self, clipped: Callable[[Tensor], None]) -> None:
        self._original = original = clip_grad.clip_grad_norm_

        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
            total_norm = original(*args, **kwargs)
            if not torch.compiler.is_compiling() and isinstance(total_norm, Tensor) and type(total_norm) is Tensor:
                clipped(total_norm)
            return total_norm

        self._wrapper = clip_grad_norm_
        self._places: list[tuple[Any, str]] = []
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", None)
            if isinstance(names, dict):
                self._places += [(module, name) for name, value in list(names.items()) if value is original]
        for module, name in self._places:
            setattr(module, name, clip_grad_norm_)

    def remove(self) -> None:
        """Put the original back wherever ours still stands."""
        for module, name in self._places:
            if getattr(module, name, None) is self._wrapper:
                setattr(module, name, self._original)
        self._places.clear()
