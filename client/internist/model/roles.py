"""What the parts of a model are: blocks, embeddings, the head, norms, linear layers, and the parameters in them.

Read from the module tree alone. The monitor measures by these roles and the optimizer routes by them, so that the two
never disagree.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from internist.schema.wire import Role

Kind = Literal["embedding", "head", "matrix", "vector", "unknown", "none"]
"""What a parameter is. `unknown` is a matrix of unknown orientation, `none` has no known matrix view."""

_WRAPPER_PREFIXES = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
QUERY_NAMES = ("q_proj", "query", "wq", "w_q", "to_q", "q_lin", "query_proj", "q")
KEY_NAMES = ("k_proj", "key", "wk", "w_k", "to_k", "k_lin", "key_proj", "k")
QKV_NAMES = ("qkv", "qkv_proj", "Wqkv", "to_qkv", "c_attn", "query_key_value")
"""What attention's projections are called in the modules that own them: apart, or one for all."""
_PACKED_BY_HEAD = ("query_key_value",)
"""Of those, the ones whose rows go head by head: query, key and value of one, then of the next."""
ROUTER_WORDS = re.compile(r"(router|gate)$", re.IGNORECASE)
"""What the layer is called that sends tokens to experts."""
UP_WORDS = re.compile(r"(up|gate|gate_up|w1|w3|fc1|wi|wi_0|wi_1|c_fc)(_proj|_weight)*$", re.IGNORECASE)
DOWN_WORDS = re.compile(r"(down|w2|fc2|out|output|c_proj|proj_out)(_proj|_weight|_bias)*$", re.IGNORECASE)
"""What parameters are called that lead from a block's stream, and back to it."""
_ATTENTION_WORDS = re.compile(r"attn|attention|MHA|MultiHead", re.IGNORECASE)
_NORM_WORDS = re.compile(r"norm(alization)?(\d+d)?$", re.IGNORECASE)
_HEAD_WORDS = re.compile(r"(^|\.)(lm_head|head|output|classifier|score|unembed\w*|out_proj_vocab)$", re.IGNORECASE)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside wrappers of compilation and data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """A qualified name without the parts that wrappers put in it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PREFIXES) if name else name


def block_names(root: nn.Module) -> set[str]:
    """Names of the repeated blocks: children of a list of at least two modules of one class that have children of
    their own."""
    names: set[str] = set()
    for raw, module in root.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            continue
        name = plain_name(raw)
        if any(name == outer or name.startswith(outer + ".") for outer in names):
            continue  # lists inside blocks (experts) are not the residual stream
        children = list(module.named_children())
        kinds = [type(unwrap(child)) for _, child in children]
        for child_name, child in children:
            child = unwrap(child)
            deep = any(True for _ in child.children()) and any(True for _ in child.parameters())
            if deep and kinds.count(type(child)) >= 2:
                names.add(f"{name}.{child_name}" if name else child_name)
    return names


def block_of(name: str, blocks: set[str]) -> str | None:
    """The block that a module of this name is in or is; None outside the blocks."""
    while name:
        if name in blocks:
            return name
        name = name.rpartition(".")[0]
    return None


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer, by the name of its class."""
    return bool(_NORM_WORDS.search(type(module).__name__))


def is_attention(module: nn.Module) -> bool:
    """A module whose class is named after attention, or that owns projections named like its queries and keys."""
    return bool(_ATTENTION_WORDS.search(type(module).__name__)) or _owns_projections(module)


def _owns_projections(module: nn.Module) -> bool:
    names = {name for name, child in module.named_children() if is_linear(child)}
    names.update(name for name, _ in module.named_parameters(recurse=False))
    apart = not names.isdisjoint(QUERY_NAMES) and not names.isdisjoint(KEY_NAMES)
    return apart or not names.isdisjoint(QKV_NAMES)


def fused_rows(owner: nn.Module, name: str) -> tuple[int, int, int] | None:
    """Output rows of queries, keys and values in a fused projection, in that order; None where the tree tells none.

    Queries have as many as the one other projection of the module that owns it takes, and keys and values share what is
    left. Projections whose names say that rows go head by head, or that share them out unevenly, are not told.

    Args:
        owner: the module that holds the projection.
        name: what it is called there.
    """
    projections = {child_name: child for child_name, child in owner.named_children() if is_linear(child)}
    others = [child for child_name, child in projections.items() if child_name != name]
    if name not in QKV_NAMES or name in _PACKED_BY_HEAD or name not in projections or len(others) != 1:
        return None
    rows, queries = _fans(projections[name])[0], _fans(others[0])[1]
    keys, odd = divmod(rows - queries, 2)
    return (queries, keys, keys) if not odd and 0 < keys <= queries and queries % keys == 0 else None


def _fans(linear: nn.Module) -> tuple[int, int]:
    """(fan_out, fan_in)."""
    rows, columns = linear.weight.shape  # type: ignore[misc]
    return (int(columns), int(rows)) if is_transposed_linear(linear) else (int(rows), int(columns))


def stored_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter that a module stores under a name; None where it has none, or computes it (parametrizations,
    weight norm): reading that would run the computation, which may have a state."""
    parameters = module._parameters
    return parameters.get(name) if isinstance(parameters, dict) else dict(parameters.items()).get(name)  # TorchScript's


def stored_weight(module: nn.Module) -> nn.Parameter | None:
    """The parameter that a module stores as its `weight`, as `stored_parameter` gives it."""
    return stored_parameter(module, "weight")


def is_linear(module: nn.Module) -> bool:
    """A module that computes x W^T + b with a 2-D `weight`: `nn.Linear` and its heirs, Hugging Face's `Conv1D`."""
    return isinstance(module, nn.Linear) or is_transposed_linear(module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Hugging Face's `Conv1D`, a linear layer whose weight is stored (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and stored_weight(module) is not None


def module_role(name: str, module: nn.Module, blocks: set[str], head: str | None, *, is_root: bool) -> Role:
    """The role of a module of this plain name, given the names of the blocks and of the head."""
    if is_root:
        return "root"
    if head is not None and name == head:
        return "head"
    if name in blocks:
        return "block"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if is_linear(module):
        return "linear"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if is_norm(module):
        return "norm"
    if is_attention(module):
        return "attention"
    return "container" if any(True for _ in module.children()) else "other"


def head_name(
    root: nn.Module, tree: Sequence[tuple[str, nn.Module]], blocks: set[str], output: str | None = None
) -> str | None:
    """The plain name of the output head; None where the model has none.

    The last linear layer outside the blocks that is named like a head, else the last that is tied to an embedding, else
    the last.

    Raises:
        ValueError: `output` names no module.
    """
    if output is not None:
        if output not in {name for name, _ in tree}:
            near = [name for name, _ in tree if name.endswith(output.rpartition(".")[2])] or [name for name, _ in tree]
            raise ValueError(f"output={output!r} names no module of the model; there are {', '.join(near[:8])}")
        return output
    linears = [name for name, module in tree if is_linear(module) and block_of(name, blocks) is None and name]
    named = [name for name in linears if _HEAD_WORDS.search(name)]
    if named:
        return named[-1]
    embeddings = {id(stored_weight(m)) for m in root.modules() if isinstance(m, nn.Embedding)} - {id(None)}
    tied = [name for name, module in tree if name in linears and id(stored_weight(module)) in embeddings]
    return tied[-1] if tied else (linears[-1] if linears else None)


def is_router(owner: str, fan_out: int, fan_in: int) -> bool:
    """Whether a matrix of a block sends tokens to experts, by its module's name and its shape."""
    return bool(ROUTER_WORDS.search(owner)) and fan_out * 2 <= fan_in


def parameter_kind(owner: nn.Module, role: Role, attribute: str, shape: torch.Size) -> tuple[Kind, str]:
    """What a parameter of a module is, and how it is a matrix (or, of an unknown module, a stack of matrices).

    Args:
        owner: the module that holds it.
        role: the module's role.
        attribute: its name in the module.
        shape: of the whole parameter.

    Returns:
        The kind, and of heads and matrices the view: `(fan_out, fan_in)`, `transposed` (stored the other way round),
        `convolution` or `convolution, N groups`; else an empty string.
    """
    if len(shape) <= 1:
        return "vector", ""
    if attribute == "weight" and isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding", ""
    if attribute == "weight" and (role == "head" or is_linear(owner)) and len(shape) == 2:
        view = "transposed" if is_transposed_linear(owner) else "(fan_out, fan_in)"
        return "head" if role == "head" else "matrix", view
    if isinstance(owner, nn.MultiheadAttention) and attribute.endswith("proj_weight"):
        return "matrix", "(fan_out, fan_in)"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase) and attribute.startswith("weight_") and len(shape) == 2:
        return "matrix", "(fan_out, fan_in)"
    if isinstance(owner, nn.modules.conv._ConvNd) and attribute == "weight":
        if owner.transposed and owner.groups > 1:
            return "none", ""
        return "matrix", f"convolution, {owner.groups} groups" if owner.groups > 1 else "convolution"
    is_stack = len(shape) == 3 and shape[0] > 1 and min(shape[1:]) > 1
    return ("unknown" if len(shape) == 2 or is_stack else "none"), ""
