"""How long a step is, by the shape of its matrix: the published scale rules of the Muon family, by name.

A rule gives the factor alpha in `W <- W - lr * alpha * D`, where D is the orthogonalised direction, whose singular
values are near one. So `lr * alpha` is the spectral norm of the step.
"""

import math
from collections.abc import Callable
from difflib import get_close_matches


def none(fan_out: int, fan_in: int) -> float:  # noqa: ARG001 - every rule has the same arguments
    """1: the spectral norm of the step is the learning rate. The first Muon had no factor."""
    return 1.0


def original(fan_out: int, fan_in: int) -> float:
    """sqrt(max(1, fan_out / fan_in)).

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; torch.optim.Muon's
    `adjust_lr_fn="original"`. Su 2026, kexue.fm 11772, derives it for isotropic inputs.
    """
    return math.sqrt(max(1.0, fan_out / fan_in))


def match_rms_adamw(fan_out: int, fan_in: int) -> float:
    """0.2 * sqrt(max(fan_out, fan_in)): the RMS of the step is 0.2 lr, which is that of AdamW in steady state.

    Jordan's coefficients leave singular values below one, and the RMS then comes out near 0.18 lr.

    Source: Liu et al. 2025 (Moonlight), arXiv:2502.16982; torch.optim.Muon's `adjust_lr_fn="match_rms_adamw"`.
    """
    return 0.2 * math.sqrt(max(fan_out, fan_in))


def spectral_mup(fan_out: int, fan_in: int) -> float:
    """sqrt(fan_out / fan_in): the step has RMS-to-RMS operator norm lr at every width.

    Source: Yang, Simon & Bernstein 2023, arXiv:2310.17813 (the condition on updates). Dion calls the rule
    `spectral_norm`, Megatron-LM and NeMo `unit_rms_norm`.
    """
    return math.sqrt(fan_out / fan_in)


def unit_rms(fan_out: int, fan_in: int) -> float:
    """sqrt(max(fan_out, fan_in)): the RMS of the step is lr.

    Source: Megatron-LM's and NeMo's `spectral` mode without its extra scale (Megatron-LM pull request 3715). Its
    operator norm grows with the square root of the width, so a learning rate does not transfer from width to width.
    """
    return math.sqrt(max(fan_out, fan_in))


def dynamic(fan_out: int, fan_in: int, *, tau: float) -> float:
    """sqrt(max(tau, fan_out / fan_in)): between `original` (tau 1) and `spectral_mup` (tau 0).

    Early in training inputs are nearly isotropic and tau 1 fits; later they are not, and tau 0 does. The schedule of
    tau is the caller's: set the group's "tau" as a scheduler sets its "lr".

    Source: Su 2026, kexue.fm 11772.
    """
    return math.sqrt(max(tau, fan_out / fan_in))


SCALES: dict[str, Callable[..., float]] = {
    "none": none,
    "original": original,
    "match_rms_adamw": match_rms_adamw,
    "spectral_mup": spectral_mup,
    "unit_rms": unit_rms,
    "dynamic": dynamic,
}
"""The rules by name. Each takes (fan_out, fan_in) of one matrix; `dynamic` also takes tau."""


def scale(rule: str, fan_out: int, fan_in: int, *, tau: float = 1.0) -> float:
    """The factor of a rule for one matrix.

    Args:
        rule: a name in SCALES.
        fan_out: rows of the matrix, at least 1.
        fan_in: columns of the matrix, at least 1.
        tau: read by `dynamic` alone, from 0 to 1.

    Raises:
        ValueError: no rule has that name.
    """
    if rule == "dynamic":
        return dynamic(fan_out, fan_in, tau=tau)
    return SCALES[known_scale(rule)](fan_out, fan_in)


def known_scale(rule: str) -> str:
    """The rule itself.

    Raises:
        ValueError: no rule has that name.
    """
    if rule in SCALES:
        return rule
    near = get_close_matches(str(rule), SCALES, n=1, cutoff=0.0)
    raise ValueError(f"no scale rule {rule!r}; did you mean {near[0]!r}? There are {', '.join(SCALES)}")
