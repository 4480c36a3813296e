"""Multipliers: hooks that multiply what a branch or a head adds, or attention's queries, and leave classes and state as
they are."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internist.model.heads import HeadRows


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A forward hook that returns the module's output times a factor.

    A module may answer with a tensor or a tuple that begins with one, as attention modules do.
    """

    factor: float
    after_bias: bool = True
    """False: the module is linear, and its bias is not multiplied: factor · W x + b."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG002 - a forward hook's arguments
        """The output multiplied.

        Raises:
            TypeError: the output does not begin with a tensor.
        """
        if isinstance(output, Tensor):
            return self._of(module, output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            parts = (self._of(module, output[0]), *output[1:])
            return type(output)(*parts) if hasattr(output, "_fields") else parts
        raise TypeError(
            f"a {type(module).__name__} has a multiplier and answered with a {type(output).__name__}: expected a "
            "tensor, or a tuple that begins with one. Name another module: output= where it was taken for the head, "
            "roles={...: 'branch'} where its output was taken for what the stream gets"
        )

    def _of(self, module: nn.Module, output: Tensor) -> Tensor:
        bias = None if self.after_bias else getattr(module, "bias", None)
        scaled = output * self.factor
        return scaled if bias is None else scaled + bias * (1.0 - self.factor)


@dataclass(frozen=True, slots=True)
class QueryMultiplier:
    """A forward hook that returns a module's output with its queries times a factor; of torch's own attention a hook
    before its forward, that multiplies the input that its queries are made of, and so not their bias."""

    factor: float
    rows: HeadRows | None = None
    """Which of the outputs are queries; None: all."""

    def __call__(self, module: nn.Module, args: Any, other: Any) -> Any:
        """The output, or (positional arguments, keywords) of torch's own attention, with its queries multiplied."""
        if not isinstance(module, nn.MultiheadAttention):
            return self._of(other)
        if args:
            return (args[0] * self.factor, *args[1:]), other
        return args, {**other, "query": other["query"] * self.factor}

    def _of(self, output: Tensor) -> Tensor:
        if self.rows is None:
            return output * self.factor
        factors = output.new_ones(output.shape[-1])
        self.rows.spread(torch.full_like(factors[: self.rows.groups * self.rows.per], self.factor), factors)
        return output * factors


def multiply_queries(module: nn.Module, factor: float, rows: HeadRows | None = None) -> None:
    """Give a module this multiplier of queries in place of any that it has. A factor of one takes it away."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, QueryMultiplier)]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    if factor == 1.0:
        return
    if isinstance(module, nn.MultiheadAttention):
        module.register_forward_pre_hook(QueryMultiplier(factor), with_kwargs=True)
    else:
        module.register_forward_hook(QueryMultiplier(factor, rows))


def multiply(module: nn.Module, factor: float, *, after_bias: bool = True) -> None:
    """Give a module this multiplier in place of any that it has. A factor of one takes it away."""
    forward_hooks = module._forward_hooks
    for key in [key for key, hook in forward_hooks.items() if isinstance(hook, Multiplier)]:
        del forward_hooks[key]
    if factor != 1.0:
        module.register_forward_hook(Multiplier(factor, after_bias))


def multiplier_of(module: nn.Module) -> float:
    """The product of a module's multipliers, one where it has none."""
    product = 1.0
    for hook in module._forward_hooks.values():
        if isinstance(hook, Multiplier):
            product *= hook.factor
    return product
