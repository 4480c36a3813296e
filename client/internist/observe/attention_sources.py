"""The functions in which attention computes its softmax, wherever a process has them, and how each is read."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch.nn import functional

from internist.model.patches import Function, function
from internist.observe.attention_calls import (
    Reader,
    flash_reader,
    read_flex,
    read_flex_eager,
    read_interface,
    read_native,
    read_sdpa,
    read_varlen,
)

Kind = Literal["kernel", "interface", "softmax"]
"""A kernel's arguments say what enters its softmax. An interface chooses a kernel, and is read where none inside it was
seen. A softmax is seen itself."""

_FLASH_MODULES = ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn_interface", "flash_attn.cute")
_FLASH_FUNCTIONS = tuple(
    f"flash_attn_{packing}func"
    for packing in ("", "kvpacked_", "qkvpacked_", "varlen_", "varlen_kvpacked_", "varlen_qkvpacked_")
)
_EAGER = "eager_attention_forward"


@dataclass(frozen=True, slots=True)
class Source:
    """A function, and how its calls are read."""

    function: Function
    kind: Kind
    read: Callable[..., Any]


def sources() -> Iterator[Source]:
    """Every function of attention that is loaded now."""
    yield Source(function(functional, "scaled_dot_product_attention"), "kernel", read_sdpa)
    yield Source(function(torch, "_native_multi_head_attention"), "kernel", read_native)
    yield from _loaded("torch.nn.attention.flex_attention", "flex_attention", "interface", read_flex)
    yield from _loaded("torch._higher_order_ops.flex_attention", "math_attention", "kernel", read_flex_eager)
    yield from _loaded("torch.nn.attention.varlen", "varlen_attn", "kernel", read_varlen)
    yield from _flash()
    yield from _transformers()
    yield Source(function(torch.Tensor, "softmax"), "softmax", read_softmax)  # `functional.softmax` calls it
    for name in ("softmax", "_softmax"):
        yield Source(function(torch, name), "softmax", read_softmax)
    yield Source(function(torch.special, "softmax"), "softmax", read_softmax)


def read_softmax(input: Any, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, Any]:
    """What enters, and the dimension of the softmax."""
    return input, dim


def _loaded(module: str, name: str, kind: Kind, read: Reader) -> Iterator[Source]:
    home = sys.modules.get(module)
    if home is not None and callable(vars(home).get(name)):
        yield Source(function(home, name), kind, read)


def _flash() -> Iterator[Source]:
    """The functions of `flash_attn`: it shows each in two modules, and one record serves both."""
    known: set[int] = set()
    for module in _FLASH_MODULES:
        home = sys.modules.get(module)
        for name in _FLASH_FUNCTIONS if home is not None else ():
            if not callable(vars(home).get(name)):
                continue
            found = function(home, name)
            if id(found.original) not in known:
                known.add(id(found.original))
                yield Source(found, "kernel", flash_reader(found.original))


def _transformers() -> Iterator[Source]:
    """Hugging Face: each model file's eager attention, and the registry of the others."""
    if "transformers" not in sys.modules:
        return
    for module in _with_eager_attention(len(sys.modules)):
        yield Source(function(module, _EAGER), "interface", partial(read_interface, states_all=True))
    modeling = sys.modules.get("transformers.modeling_utils")
    registry: Any = getattr(modeling, "ALL_ATTENTION_FUNCTIONS", None)
    for entries in (getattr(registry, "_global_mapping", None), getattr(registry, "_local_mapping", None)):
        for name in list(entries) if isinstance(entries, dict) else ():
            states_all = "flex" in name or "eager" in name
            yield Source(function(entries, name), "interface", partial(read_interface, states_all=states_all))


@lru_cache(maxsize=1)
def _with_eager_attention(_: int) -> tuple[Any, ...]:
    """The loaded modules that have an eager attention of their own, as long as no other module is loaded."""
    loaded = [module for module in list(sys.modules.values()) if type(getattr(module, "__dict__", None)) is dict]
    return tuple(module for module in loaded if callable(vars(module).get(_EAGER)))
