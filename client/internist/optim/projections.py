"""Where an attention layer's queries and keys come from: which rows of which projection make which head."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from internist.model.heads import HeadRows
from internist.model.roles import (
    KEY_NAMES,
    QKV_NAMES,
    QUERY_NAMES,
    is_attention,
    is_linear,
    is_transposed_linear,
    plain_name,
)

Arrangement = Literal["blocks", "interleaved", "grouped"]

_NORMS = re.compile(r"^(q|k|qk|query|key)_?(norm|layernorm|ln)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Separate:
    """One projection for queries and one for keys, heads in order. Fewer key heads than query heads are GQA."""

    query: str
    key: str


@dataclass(frozen=True, slots=True)
class Fused:
    """One projection for queries, keys and values.

    `blocks`: all queries, all keys, all values. `interleaved`: query, key and value of one head after another.
    `grouped`: the queries of a key head, its key, its value, one key head after another. None is read from the
    first forward.
    """

    weight: str
    arrangement: Arrangement | None = None


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: per head, `nope` content features, then `rope` rotary ones.

    `query` makes both of every head; `key` makes the content features and the values, the rotary key is shared by all
    heads and left alone.
    """

    query: str
    key: str
    nope: int
    rope: int


Projections = Separate | Fused | Latent


@dataclass(frozen=True, slots=True)
class Projected:
    """A projection's weight and bias in the module that holds them, looked up each time: sharding replaces them."""

    module: nn.Module
    weight: str
    bias: str
    name: str
    """The weight's plain name in the model."""
    bias_first: int = 0
    """Where its rows begin in the bias."""

    @property
    def rows(self) -> int:
        """Output features."""
        return int(self.tensor.shape[1 if self.transposed else 0])

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored (in, out)."""
        return is_transposed_linear(self.module)

    @property
    def tensor(self) -> nn.Parameter:
        """The weight."""
        weight = getattr(self.module, self.weight, None)
        if not isinstance(weight, nn.Parameter) or parametrize.is_parametrized(self.module, self.weight):
            raise ValueError(f"expected {self.name!r} to be a parameter of its own, got {type(weight).__name__}")
        return weight

    @property
    def offset(self) -> Tensor | None:
        """(rows,) the bias, if there is one."""
        bias = getattr(self.module, self.bias, None)
        if not isinstance(bias, Tensor) or bias.shape[0] == self.rows:
            return bias
        return bias[self.bias_first : self.bias_first + self.rows]


@dataclass(slots=True)
class AttentionLayer:
    """An attention layer as it was found: its module, what makes its queries and keys, and from where."""

    name: str
    module: nn.Module
    projections: Projections
    sources: list[Projected]
    skipped: str = ""
    """Why it is not clipped; empty where it is."""


def attention_layers(
    root: nn.Module, given: Mapping[str, Projections], exclude: Sequence[str] = ()
) -> list[AttentionLayer]:
    """The attention layers of a model, read from the names of its modules or as given.

    Args:
        root: the model.
        given: regular expression that a layer's whole name matches, to its projections, named from the layer.
        exclude: the same, of layers to leave out.

    Raises:
        ValueError: an attention module whose projections have none of the known names, a pattern that matches
            nothing, a named projection that does not exist or is not linear, or no layer at all.
    """
    tree = [(plain_name(raw), module) for raw, module in root.named_modules()]
    names = [name for name, _ in tree]
    for pattern in (*given, *exclude):
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"{pattern!r} matches no module's whole name; there are {', '.join(names[:8])}, ...")
    left_out = {name for name in names if any(re.fullmatch(pattern, name) for pattern in exclude)}
    layers: dict[str, AttentionLayer] = {}
    for name, module in tree:
        if name in left_out:
            continue
        asked = next((spec for pattern, spec in given.items() if re.fullmatch(pattern, name)), None)
        projections = asked or _read(module)
        if projections is not None:
            layers[name] = _layer(name, module, projections)
    for name, module in tree:
        if is_attention(module) and not _covered(name, {*layers, *left_out}) and any(True for _ in module.parameters()):
            known = ", ".join((*QUERY_NAMES[:4], *QKV_NAMES[:2]))
            raise ValueError(
                f"the query and key projections of {name!r} ({type(module).__name__}) are not known: it holds "
                f"{', '.join(n for n, _ in module.named_children()) or 'no modules'}, and none is named like {known}. "
                f"Give them: projections={{{name!r}: Separate(query=..., key=...)}}, or leave the layer out: exclude"
            )
    if not any(not layer.skipped for layer in layers.values()):
        why = "; ".join(sorted({layer.skipped for layer in layers.values()})) or "none was found"
        raise ValueError(f"the model has no attention layer to clip ({why}); give projections={{name: Separate(...)}}")
    return list(layers.values())


def arrangements(layer: AttentionLayer, heads: int, features: int) -> Iterator[tuple[HeadRows, ...]]:
    """The ways in which the layer's rows can make this many heads of this many features, likeliest first. Of each the
    first entry is where the queries come from.

    Raises:
        ValueError: there is none.
    """
    spec, sources = layer.projections, layer.sources
    whole, half = 1.0, 0.5
    found = False
    if isinstance(spec, Latent):
        _expect(layer, spec.nope + spec.rope == features, f"nope + rope of {features}, the features of its queries")
        _expect(layer, sources[0].rows == heads * features, f"{heads * features} query rows, got {sources[0].rows}")
        _expect(layer, sources[1].rows % heads == 0 and sources[1].rows >= heads * spec.nope, f"{heads} heads of keys")
        yield (
            HeadRows(0, heads, 0, 1, spec.nope, half),
            HeadRows(0, heads, spec.nope, 1, spec.rope, whole),
            HeadRows(1, heads, 0, 1, spec.nope, half),
        )
        return
    if isinstance(spec, Separate):
        _expect(layer, sources[0].rows == heads * features, f"{heads * features} query rows, got {sources[0].rows}")
        rows = sources[1].rows
        groups = rows // features
        _expect(layer, rows % features == 0 and groups > 0 and heads % groups == 0, f"key rows for {heads} heads")
        if groups < heads:
            yield (HeadRows(0, 1, 0, heads, features, whole),)
        else:
            yield HeadRows(0, 1, 0, heads, features, half), HeadRows(1, 1, 0, heads, features, half)
        return
    rows = sources[0].rows
    total = rows // features
    keys = (total - heads) // 2
    fits = rows % features == 0 and keys > 0 and heads + 2 * keys == total and heads % keys == 0
    _expect(layer, fits, f"rows for {heads} queries of {features} features and as many keys as values, got {rows}")
    power = half if keys == heads else whole
    if spec.arrangement in (None, "blocks"):
        query = HeadRows(0, 1, 0, heads, features, power)
        found = True
        yield (query, HeadRows(0, 1, heads * features, heads, features, half)) if keys == heads else (query,)
    if spec.arrangement in (None, "interleaved") and keys == heads:
        found = True
        yield HeadRows(0, heads, 0, 1, features, half), HeadRows(0, heads, features, 1, features, half)
    if spec.arrangement in (None, "grouped") and keys < heads:
        found = True
        yield (HeadRows(0, keys, 0, heads // keys, features, whole),)
    _expect(layer, found, f"an arrangement for {keys} key and {heads} query heads, got {spec.arrangement!r}")


def _read(module: nn.Module) -> Projections | None:
    """The projections of a module with known names in it; None without."""
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is None:
            return Separate("q_proj_weight", "k_proj_weight")
        return Fused("in_proj_weight", "blocks")
    children = {name: child for name, child in module.named_children() if is_linear(child)}
    query = next((name for name in QUERY_NAMES if name in children), None)
    key = next((name for name in KEY_NAMES if name in children), None)
    if query is not None and key is not None:
        return Separate(query, key)
    fused = next((name for name in QKV_NAMES if name in children), None)
    return None if fused is None else Fused(fused)


def _layer(name: str, module: nn.Module, projections: Projections) -> AttentionLayer:
    wanted = (projections.weight,) if isinstance(projections, Fused) else (projections.query, projections.key)
    norms = [child for child, found in module.named_children() if _NORMS.match(child) and not _is_identity(found)]
    skipped = f"{norms[0]} bounds its logits, and they do not scale with its projections" if norms else ""
    return AttentionLayer(name, module, projections, [_projected(name, module, one) for one in wanted], skipped)


def _projected(layer: str, module: nn.Module, wanted: str) -> Projected:
    full = f"{layer}.{wanted}" if layer else wanted
    if isinstance(module, nn.MultiheadAttention) and wanted.endswith("proj_weight"):
        if module.bias_k is not None:
            raise ValueError(
                f"{layer!r} appends a learned key (add_bias_kv), which does not scale with its projections"
            )
        return Projected(module, wanted, "in_proj_bias", full, module.embed_dim if wanted == "k_proj_weight" else 0)
    try:
        found = module.get_submodule(wanted)
    except AttributeError:
        there = ", ".join(name for name, _ in module.named_children())
        raise ValueError(f"{layer!r} has no module {wanted!r}; it holds {there}") from None
    if not is_linear(found):
        raise ValueError(f"expected {full!r} to be a linear layer, got {type(found).__name__}")
    return Projected(found, "weight", "bias", f"{full}.weight")


def _covered(name: str, known: set[str]) -> bool:
    """Whether a module is one of these, in one or around one."""
    return not name or any(name == one or name.startswith(one + ".") or one.startswith(name + ".") for one in known)


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


def _expect(layer: AttentionLayer, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"attention {layer.name!r} with {layer.projections}: expected {what}")
