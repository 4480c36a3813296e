"""A softmax inside an attention module: whether what enters it are attention's logits, and which of them are of which
head.

Shapes: B batch, H heads, T queries, S keys.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "nhead", "nheads", "heads", "h")
_HEAD_SIZES = ("head_dim", "dim_head", "head_size", "d_head", "attention_head_size")

_PRODUCT = re.compile(r"^(Bmm|Baddbmm)Backward")
_LINEAR = re.compile(
    r"^(Mm|Addmm|Linear|Convolution|Embedding|NativeLayerNorm|FusedRmsNorm|Softmax)Backward|Accumulate"
)
_PASSED = re.compile(
    r"^(Add|Sub|Rsub|Mul|Div|Neg|Pow|Tanh|Clamp\w*|MaskedFill|MaskedFillScalar|Where|ToCopy|View|UnsafeView|Reshape|"
    r"ReshapeAlias|Expand|Transpose|T|Permute|Clone|Alias|Copy\w*|Slice|Select|Split\w*|Unbind|Narrow|Unsqueeze|"
    r"Squeeze|Cat|Stack|ConstantPadNd|Index|AsStrided|Minimum|Maximum)Backward\d*$|^CopySlices$"
)
NODES = 96
"""How many operations are followed back from a softmax at most: from logits to their product there are some ten."""


def logits_of(x: Tensor, dim: int, modules: Sequence[nn.Module]) -> Tensor | None:
    """(B, H, T, S) what enters a softmax over `dim`; None where these are not attention's logits.

    They are where they were made from a product of matrices for each batch and head, as the graph of gradients tells.
    Without a graph (a replay, frozen projections) their shape decides: (B, H, T, S) or (B H, T, S) with the heads that
    the module says it has. Features that pass a softmax (linear attention) and scores of experts come from linear maps.

    Args:
        x: what enters.
        dim: the dimension of the softmax.
        modules: the enclosing attention modules, innermost first.
    """
    if x.ndim < 3 or not x.is_floating_point() or x.numel() == 0:
        return None
    is_last = dim in (-1, x.ndim - 1)
    heads = _number(modules, _HEADS)
    node = x.grad_fn
    if not is_last:
        x = x.movedim(dim, -1)
    is_product = None if node is None else _is_product(node, x.numel() // (x.shape[-2] * x.shape[-1]))
    if is_product is False or (is_product is None and not (is_last and _has_shape(x, heads, modules))):
        return None
    return _by_heads(x, heads)


def _by_heads(x: Tensor, heads: int | None) -> Tensor:
    if x.ndim == 3:
        count = heads if heads is not None and x.shape[0] % heads == 0 else 1
        return x.reshape(-1, count, *x.shape[1:])
    if x.ndim > 4 and heads is not None and x.shape[-3] != heads and x.shape[-4] * x.shape[-3] == heads:
        x = x.flatten(-4, -3)  # key heads, and the query heads that share each
    if heads is not None and x.shape[-3] != heads:  # (B, T, H, S) or (H, B, T, S)
        place = next((dim for dim in (-2, 0) if x.shape[dim] == heads), None)
        x = x if place is None else x.movedim(place, -3)
    return x.flatten(0, -4) if x.ndim > 4 else x


def _has_shape(x: Tensor, heads: int | None, modules: Sequence[nn.Module]) -> bool:
    T, S = x.shape[-2:]
    if x.ndim == 3:
        return T == S or (heads is not None and heads > 1 and x.shape[0] % heads == 0)
    if T != S and _number(modules, _HEAD_SIZES) == S:
        return False
    return heads is None or heads in (x.shape[-3], x.shape[-2], x.shape[-4] * x.shape[-3])


def _is_product(made_by: Any, batch: int) -> bool | None:
    """Whether a node of the graph gives what operations on entries made of batched products; None where the graph does
    not say.

    Args:
        made_by: the node.
        batch: how many matrices it gives.
    """
    waiting: list[Any] = [made_by]
    seen: set[Any] = set()
    is_linear = is_unknown = False
    while waiting and len(seen) < NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().rpartition("::")[2]
        if _PRODUCT.match(name):
            shape = node._input_metadata[0].shape
            if shape[0] > 1:
                return True
            is_unknown, is_linear = is_unknown or batch == 1, True  # one product for all is an einsum with a weight
        elif _LINEAR.match(name):
            is_linear = True
        elif _PASSED.match(name):
            waiting.extend(following for following, _ in node.next_functions)
        else:
            is_unknown = True
    return False if is_linear and not is_unknown else None


def _number(modules: Sequence[nn.Module], names: Sequence[str]) -> int | None:
    """The first whole number of these names in the modules or their configurations, innermost first."""
    for module in modules:
        for holder in (module, getattr(module, "config", None)):
            for name in names:
                value = getattr(holder, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
    return None
