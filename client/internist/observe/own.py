"""How far a module's output moves on its probe when only its own parameters change: without a second forward where
that is exact."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from internist.measures import updates
from internist.model.roles import is_linear, is_transposed_linear, stored_parameter, stored_weight
from internist.model.shards import is_cut, is_sharded, local
from internist.observe.tokens import OWN_TOKENS, at_positions, owned

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CORNER = 16
"""Pixels of each side of the corner of an image that is a convolution's probe."""
PRODUCT_ENTRIES = 1 << 22
"""Entries of a weight that are widened to float64 at a time."""
LAYER_NORM_EPS = 1e-5
"""`nn.LayerNorm`'s own, which layers that write it into their forward have, too."""
TOLERANCE = 0.02
"""Of the largest entry: how far a module's real output may be from its rule's. bfloat16 products of a few thousand
terms stay below half of it, and a layer that computes something else is off by far more."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a module received at the probe tokens of a step's first micro-batch."""

    tokens: Tensor
    """(tokens, features); token ids of an embedding; (1, channels, *space) of a convolution."""
    factor: float = 1.0
    """What hooks of the module multiply its output by."""


@dataclass(frozen=True, slots=True)
class Normalization:
    """How a normalisation layer normalises a token."""

    centred: bool
    """Whether the mean is taken off first."""
    eps: float


def has_rule(module: nn.Module) -> bool:
    """Whether it is known how a module's output depends on its own parameters, and they are stored as such."""
    if isinstance(module, nn.Embedding):
        return stored_weight(module) is not None and module.max_norm is None
    if isinstance(module, CONVOLUTIONS):
        return is_plain(module) and module.padding_mode == "zeros"
    if isinstance(module, BATCH_NORMS):
        return is_plain(module)
    if is_linear(module):
        return stored_weight(module) is not None
    return _is_known_norm(module) and ("weight" in module._parameters or "bias" in module._parameters)


def probe_of(module: nn.Module, source: Tensor, axis: int) -> Tensor | None:
    """What of a module's input is kept as its probe; None where it has none: a few tokens, of a convolution's input a
    corner of the first image, of a batch norm's input tokens as they are when normalised by the whole batch."""
    if isinstance(module, BATCH_NORMS):
        by_batch = module.training or module.running_mean is None
        normalized = nn.functional.batch_norm(
            source.detach(),
            None if by_batch else module.running_mean,
            None if by_batch else module.running_var,
            training=by_batch,
            eps=module.eps,
        )
        return owned(at_positions(normalized, axis, OWN_TOKENS))
    if isinstance(module, CONVOLUTIONS):
        if source.dim() != 2 + len(module.kernel_size):
            return None
        corner = (slice(0, 1), slice(None), *(slice(0, CORNER) for _ in module.kernel_size))
        return source[corner].detach().clone()
    return owned(at_positions(source, axis, OWN_TOKENS))


def own_update(module: nn.Module, probe: Probe, deltas: Mapping[str, Tensor]) -> Tensor | None:
    """(tokens,) RMS of the change of a module's output on its probe, from its own parameters; None: unknown rule."""
    change = _change(module, probe.tokens, deltas)
    return change if change is None or probe.factor == 1.0 else change * abs(probe.factor)


def normalization(module: nn.Module) -> Normalization | None:
    """How a layer normalises what it multiplies by its gain; None for layers whose rule is not known.

    Somebody's own layer is taken by the name of its class, and held to that by its output (`deviation`). One that is
    called a layer norm and has no word of a bias, not even that it wants none, is T5's: it takes no mean off.
    """
    if not _is_known_norm(module):
        return None
    if isinstance(module, nn.LayerNorm):
        return Normalization(centred=True, eps=module.eps)
    centred = _is_called(module, "LayerNorm") and hasattr(module, "bias")
    told = (getattr(module, name, None) for name in ("eps", "variance_epsilon"))
    usual = LAYER_NORM_EPS if centred else torch.finfo(torch.float32).eps
    return Normalization(centred=centred, eps=next((value for value in told if isinstance(value, float)), usual))


def normalized_by(kind: Normalization, tokens: Tensor) -> Tensor:
    """(..., features) float32 tokens as a normalisation layer normalises them."""
    x = tokens.float()
    if kind.centred:
        return nn.functional.layer_norm(x, x.shape[-1:], eps=kind.eps)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + kind.eps)


def shows_all(module: nn.Module) -> bool:
    """Whether every rank has all of a module's own parameters, as the module shows them now."""
    return not any(p is not None and is_sharded(p) and is_cut(p) for p in module._parameters.values())


def output_of(module: nn.Module, tokens: Tensor) -> Tensor:
    """(tokens, features) float32: what a module's rule makes of its probe with the weights that it shows now, or with
    this rank's piece of them.

    Args:
        module: one that `has_rule`.
        tokens: what it received.
    """
    weight, bias = stored_weight(module), stored_parameter(module, "bias")
    if isinstance(module, CONVOLUTIONS):
        assert weight is not None
        offset = None if bias is None else bias.detach().float()
        given: Tensor = module._conv_forward(tokens.float(), weight.detach().float(), offset)
        return given.movedim(1, -1).flatten(0, -2)
    if isinstance(module, BATCH_NORMS):
        return tokens.float() * (1.0 if weight is None else weight.detach().float()) + (
            0.0 if bias is None else bias.detach().float()
        )
    return _forward(module, tokens)


def deviation(module: nn.Module, probe: Probe, output: Tensor) -> Tensor:
    """(2,) float32: how far a module's real output is from a multiple of what its rule makes of the probe, as a share
    of the largest entry; and that multiple.

    A layer may scale what it gives (embeddings by the root of their width). One whose weight is computed (weight norm,
    orthogonal parametrisations), whose forward is overridden, or that is changed by a hook, has another rule: its own
    update cannot be told from its parameters' changes.

    Args:
        module: one that `has_rule`, and no convolution or batch norm: of these only torch's own have one.
        probe: what it received.
        output: (tokens, features) what it gave.
    """
    expected, output = _forward(module, probe.tokens) * probe.factor, output.float()
    tiny = torch.finfo(torch.float32).tiny
    multiple = (output * expected).sum() / expected.square().sum().clamp(min=tiny)
    off = (output - multiple * expected).abs().amax() / output.abs().amax().clamp(min=tiny)
    return torch.stack((off, multiple))


def is_plain(module: nn.Module) -> bool:
    """Whether a module is torch's own, with nothing that changes what it computes: its rule needs no proof."""
    return (
        type(module) in (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, *CONVOLUTIONS, *BATCH_NORMS)
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and stored_weight(module) is not None
    )


def _change(module: nn.Module, tokens: Tensor, deltas: Mapping[str, Tensor]) -> Tensor | None:
    weight, bias = deltas.get("weight"), deltas.get("bias")
    if isinstance(module, nn.Embedding):
        return None if weight is None else updates.own_embedding(tokens, weight)
    if is_linear(module):
        if weight is None and bias is None:
            return None
        if weight is None:
            stored = stored_weight(module)
            if stored is None:
                return None
            weight = torch.zeros_like(local(stored))
        return updates.own_linear(tokens, weight.t() if is_transposed_linear(module) else weight, bias)
    if isinstance(module, CONVOLUTIONS):
        if weight is None:
            return None
        return updates.own_convolution(
            tokens,
            weight,
            bias,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
        )
    normalized = tokens if isinstance(module, BATCH_NORMS) else _normalized(module, tokens)
    return None if normalized is None or weight is None else updates.own_gain(normalized, weight, bias)


def _forward(module: nn.Module, tokens: Tensor) -> Tensor:
    stored, stored_bias = stored_weight(module), stored_parameter(module, "bias")
    weight = None if stored is None else local(stored)
    bias = None if stored_bias is None else local(stored_bias)
    offset = 0.0 if bias is None else bias.detach().float()
    if isinstance(module, nn.Embedding):
        assert weight is not None
        return weight.detach()[tokens].float()
    if is_linear(module):
        assert weight is not None
        matrix = weight.detach()
        return _product(tokens, matrix if is_transposed_linear(module) else matrix.t()) + offset
    normalized = _normalized(module, tokens)
    assert normalized is not None
    return normalized * (1.0 if weight is None else weight.detach().float()) + offset


def _product(tokens: Tensor, matrix: Tensor) -> Tensor:
    """(tokens, fan_out) float32 product, also where the run lets products be rounded: two of them are subtracted."""
    if torch.get_float32_matmul_precision() == "highest":
        return tokens.float() @ matrix.float()
    wide = tokens.double()
    pieces = torch.split(matrix, max(1, PRODUCT_ENTRIES // matrix.shape[0]), dim=1)
    return torch.cat([(wide @ piece.double()).float() for piece in pieces], dim=1)


def _is_known_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    if isinstance(module, nn.RMSNorm) or _is_called(module, "RMSNorm"):
        return True
    weight = stored_weight(module)
    return _is_called(module, "LayerNorm") and weight is not None and weight.dim() == 1


def _is_called(module: nn.Module, name: str) -> bool:
    return type(module).__name__.endswith(name)


def _normalized(module: nn.Module, tokens: Tensor) -> Tensor | None:
    """What a normalisation layer multiplies by its gain; None for layers whose rule is not known."""
    kind = normalization(module)
    return None if kind is None else normalized_by(kind, tokens)
