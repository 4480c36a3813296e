"""How far a module's output moves on its probe when only its own parameters change: without a second forward where
that is exact."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from internist.measures import updates
from internist.model.roles import is_linear


def own_update(module: nn.Module, probe: Tensor, deltas: Mapping[str, Tensor]) -> Tensor | None:
    """(tokens,) RMS of the change of a module's output on its probe, from its own parameters; None: unknown rule."""
    weight, bias = deltas.get("weight"), deltas.get("bias")
    if isinstance(module, nn.Embedding):
        return None if weight is None else updates.own_embedding(probe, weight)
    if is_linear(module):
        if weight is None and bias is None:
            return None
        if weight is None:
            weight = torch.zeros_like(_parameter(module, "weight"))
        return updates.own_linear(probe, weight if isinstance(module, nn.Linear) else weight.t(), bias)
    normalized = _normalized(module, probe)
    return None if normalized is None or weight is None else updates.own_gain(normalized, weight, bias)


def _normalized(module: nn.Module, probe: Tensor) -> Tensor | None:
    """What a normalisation layer multiplies by its gain; None for layers whose rule is not known."""
    x = probe.float()
    if isinstance(module, nn.LayerNorm):
        return (
            nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
            if len(module.normalized_shape) == 1
            else None
        )
    if isinstance(module, nn.RMSNorm) or type(module).__name__.endswith("RMSNorm"):
        eps = next(
            (v for name in ("eps", "variance_epsilon") if isinstance(v := getattr(module, name, None), float)), None
        )
        return x * torch.rsqrt(
            x.square().mean(-1, keepdim=True) + (torch.finfo(torch.float32).eps if eps is None else eps)
        )
    return None


def _parameter(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value.detach()
