"""What a model and its base scale by themselves, attention's logits and the head's: a plan adds what is missing.

With heads of r_d times the base's features, logits have to be divided by r_d: queries and keys are aligned once they
have learned (Yang et al. 2021, arXiv:2203.03466, section 4). torch divides by the root of the features, some models by
something of their own: queries are multiplied by what is left.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from internist.model.roles import block_of, plain_name, unwrap
from internist.mup import sample
from internist.mup.planning import Queries
from internist.mup.probe import Heads, Probed, as_it_was, probed
from internist.mup.structure import Structure, block_list

Attention = Literal["own", "scale"]

NEAR_ONE = 1e-3
"""How near to one a factor is taken for one: forwards round."""


@dataclass(frozen=True, slots=True)
class OwnScales:
    """What a forward of model and base told."""

    queries: dict[str, Queries]
    """Module to what its queries are to be multiplied by."""
    logits: float = 1.0
    """By how much the model's own factor of its logits is the base's."""
    notes: tuple[str, ...] = ()


def own_scales(
    shape: Structure,
    base: nn.Module | Sequence[int | None],
    inputs: Any,
    *,
    attention: Attention,
    watched: Sequence[str],
) -> OwnScales:
    """Look at a forward of the model, and of its base.

    Args:
        shape: the model's structure.
        base: as `plan` has it.
        inputs: what both are called with; None: a few tokens or vectors, by the model's first layer.
        attention: `scale`: heads are compared, and every layer of attention has to be told.
        watched: modules that are to be multiplied.

    Raises:
        ValueError: a weight has no storage; the forward failed; a module that is to be multiplied does not answer with
            a tensor; under `scale` the base is a size, or a layer's heads cannot be told; without a base model the
            model's own factor of its logits is not one.
    """
    for name, parameter in shape.root.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name!r} is on the meta device: a forward is looked at, which needs weights")
    head = next(iter(shape.outputs), None)
    if inputs is None:
        with as_it_was(shape.root):
            inputs, _ = sample.batch(shape.root)
    own = probed(shape.root, inputs, head=head, watched=watched)
    _require_tensors(own, shape)
    if not isinstance(base, nn.Module):
        if attention == "scale":
            raise ValueError("attention='scale' compares heads with the base's: give a base model, not its size")
        if own.logits != 1.0:
            raise ValueError(
                f"the model multiplies its logits by {own.logits:.4g} itself, and how that grows is not told by a "
                "base's size: give a base model, or output=False"
            )
        return OwnScales({})
    root = unwrap(base)
    other = probed(root, inputs, head=head)
    growth = own.logits / other.logits
    growth = 1.0 if math.isclose(growth, 1.0, rel_tol=NEAR_ONE) else growth
    queries = _queries(own, other, shape, block_list(root)) if attention == "scale" else {}
    return OwnScales(queries, growth, tuple(_notes(shape.root, queries, own.logits, other.logits)))


def _notes(root: nn.Module, queries: Mapping[str, Queries], own: float, other: float) -> Iterator[str]:
    if not math.isclose(own, other, rel_tol=NEAR_ONE):
        yield (
            f"The model multiplies its logits by {own:.4g} itself, and its base by {other:.4g}: what the plan "
            "multiplies them by is without that."
        )
    modules = {plain_name(raw): module for raw, module in root.named_modules()}
    biased = (name for name in queries if getattr(modules[name], "in_proj_bias", None) is not None)
    for name in biased:
        yield (
            f"{name!r} is torch's own attention, whose queries can be multiplied by their input alone: their bias, "
            "which starts at zero, is not."
        )
        return


def _queries(own: Probed, other: Probed, shape: Structure, base_blocks: Sequence[str]) -> dict[str, Queries]:
    """What each module's queries are multiplied by."""
    for layer, why in own.unread.items():
        raise ValueError(
            f"attention='scale': the heads of {layer!r} are not told: {why}. Let it call "
            "scaled_dot_product_attention (Hugging Face: attn_implementation='sdpa'), or say attention='own' and "
            "divide its logits by the dimension of its heads"
        )
    partners: dict[tuple[str, str], Heads] = {}
    for heads in other.heads:
        partners.setdefault(_kind(heads.layer, base_blocks), heads)
    found = {}
    for heads in own.heads:
        partner = partners.get(_kind(heads.layer, shape.blocks))
        if partner is None:
            raise ValueError(f"the base is of another family: it has no attention like {heads.layer!r}")
        grown = heads.scale / partner.scale
        factor = partner.size / heads.size / grown
        if not math.isclose(factor, 1.0, rel_tol=NEAR_ONE):
            found[heads.queries] = Queries(factor, heads.rows)
    return found


def _kind(layer: str, blocks: Sequence[str]) -> tuple[str, str]:
    """The same for a layer in every block of a list."""
    block = block_of(layer, set(blocks))
    return ("", layer) if block is None else (block.rpartition(".")[0], layer[len(block) :])


def _require_tensors(own: Probed, shape: Structure) -> None:
    for name, kind in own.answers.items():
        say = "output='name' of one" if name in shape.outputs else "roles={...: 'branch'} of another module"
        raise ValueError(
            f"{name!r} is to be multiplied, and its output is a {kind} that does not begin with a tensor: say {say} "
            "whose output is a tensor"
        )
