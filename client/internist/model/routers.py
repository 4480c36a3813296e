"""Routers of experts: which modules send tokens to experts, to how many, and what of a call says to which.

A layer that is named like one is a router where its model says that there are experts to choose from: by the number
that a token is sent to, or by their name. A gate that is none of this is no router.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from internist.model.plain import PLAIN
from internist.model.roles import is_attention, is_linear, is_router, plain_name, stored_parameter, stored_weight

CHOICES = (
    "top_k",
    "topk",
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "n_activated_experts",
    "moe_top_k",
    "k",
)
"""What models call the number of experts that a token is sent to."""


@dataclass(frozen=True, slots=True)
class Router:
    """A router and the module that it belongs to. Both are the user's, and weakly held."""

    reference: "weakref.ref[nn.Module]"
    parent_reference: "weakref.ref[nn.Module]"
    experts: int

    @property
    def module(self) -> nn.Module:
        """The router itself.

        Raises:
            ReferenceError: it is gone.
        """
        return _alive(self.reference)

    @property
    def parent(self) -> nn.Module:
        """What calls it.

        Raises:
            ReferenceError: it is gone.
        """
        return _alive(self.parent_reference)

    def logits(self, output: Any, source: Tensor | None) -> Tensor | None:
        """(T, E) the logits of a call; None where they cannot be told.

        Those of a linear layer are its output. Other routers return what they make of theirs, so that these are
        computed anew of what entered.
        """
        if is_linear(self.module) and isinstance(output, Tensor):
            return output.reshape(-1, self.experts) if output.shape[-1] == self.experts else None
        weight, bias = stored_weight(self.module), stored_parameter(self.module, "bias")
        if source is None or weight is None or type(weight) not in PLAIN or weight.shape[0] != self.experts:
            return None
        if source.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
            return None
        given = source.reshape(-1, source.shape[-1]).to(weight.dtype)
        found: Tensor = functional.linear(given, weight, bias)
        return found

    def chosen(self, output: Any, tokens: int) -> Tensor | None:
        """(T, K) the experts that a call returns; None where it returns none."""
        for each in output if isinstance(output, tuple | list) else ():
            is_whole = isinstance(each, Tensor) and each.dtype in (torch.int64, torch.int32)
            if is_whole and each.dim() > 1 and each.numel() == tokens * each.shape[-1] <= tokens * self.experts:
                found: Tensor = each.reshape(tokens, -1)
                return found
        return None

    @property
    def per_token(self) -> int | None:
        """How many experts a token is sent to, as the model says it now; None where it does not."""
        return _choices(self.module, self.parent, self.experts)

    @property
    def corrected(self) -> str:
        """The name of what is added to the scores before experts are chosen; empty where there is nothing."""
        for holder in (self.module, self.parent):
            for name, tensor in (*holder._buffers.items(), *holder._parameters.items()):
                is_own_bias = holder is self.module and name == "bias"
                if tensor is not None and tensor.shape == (self.experts,) and "bias" in name and not is_own_bias:
                    return name
        return ""


def routers(root: nn.Module) -> Iterator[Router]:
    """The routers of a model."""
    for parent in root.modules():
        children = dict(parent.named_children())
        for name, module in children.items():
            weight = stored_weight(module)
            if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
                continue
            fan_out, fan_in = weight.shape
            if fan_out < 2 or not is_router(plain_name(name), fan_out, fan_in) or is_attention(parent):
                continue
            if _choices(module, parent, fan_out) is not None or any("expert" in each.lower() for each in children):
                yield Router(weakref.ref(module), weakref.ref(parent), fan_out)


def _alive(reference: "weakref.ref[nn.Module]") -> nn.Module:
    module = reference()
    if module is None:
        raise ReferenceError("a router is gone")
    return module


def _choices(module: nn.Module, parent: nn.Module, experts: int) -> int | None:
    for holder in (module, parent, getattr(module, "config", None), getattr(parent, "config", None)):
        for name in CHOICES:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= experts:
                return value
    return None
