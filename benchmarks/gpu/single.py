"""What is timed by itself: optimizers on matrices of three widths, and attention's largest logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu.clock import interleaved, synchronisations
from benchmarks.gpu.rows import Row
from internist.measures.attention import max_logits
from internist.optim import Muon, MuonPlusPlus

LR = 0.001
AUDIT_EVERY = 10
"""Steps between audits, so that some are among those whose synchronisations are counted."""


def optimizers(
    section: str, width: int, layers: int, bar: float | None, bar_plus: float, device: torch.device, *, times: int = 12
) -> list[Row]:
    """`Muon` over torch's, `MuonPlusPlus` over `Muon`, and what of ours waits for the device.

    Args:
        section: the name of the rows' section.
        width: of the blocks, whose four matrices are stepped.
        layers: how many blocks.
        bar: the most of `Muon` over torch's; None: for information.
        bar_plus: the most of `MuonPlusPlus` over `Muon`.
        device: where.
        times: steps that are timed.
    """
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "Muon": lambda matrices: Muon(matrices, lr=LR),
        "MuonPlusPlus": lambda matrices: MuonPlusPlus(matrices, lr=LR, audit_every=AUDIT_EVERY),
    }
    if hasattr(torch.optim, "Muon"):
        makers["torch"] = lambda matrices: torch.optim.Muon(matrices, lr=LR)
    made = {name: make(_matrices(width, layers, device)) for name, make in makers.items()}
    took = interleaved({name: optimizer.step for name, optimizer in made.items()}, device, times)
    waits = 0
    for name in ("Muon", "MuonPlusPlus"):
        with synchronisations(device) as found:
            for _ in range(2 * AUDIT_EVERY):
                made[name].step()
        waits += len(found)
    what = f"{4 * layers} matrices, d = {width}"
    theirs = took.get("torch")
    return [
        Row(section, f"Muon / torch's, {what}", None if theirs is None else took["Muon"] / theirs, bar),
        Row(section, f"MuonPlusPlus / Muon, {what}", took["MuonPlusPlus"] / took["Muon"], bar_plus),
        Row(section, f"Muon, {what}", 1e3 * took["Muon"], None, "ms"),
        Row(section, f"synchronisations, {what}", float(waits) if device.type == "cuda" else None, 0.0, ""),
    ]


def largest_logits(
    section: str,
    context: int,
    bar: float,
    device: torch.device,
    *,
    heads: int = 32,
    key_heads: int = 32,
    times: int = 8,
) -> list[Row]:
    """Attention's largest logits over the forward of torch's attention, causal, in bfloat16, D = 128."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, count, context, 128, device=device, generator=generator).bfloat16()
        for count in (heads, key_heads, key_heads)
    )
    shared = heads != key_heads

    def forward() -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)

    def ours() -> Tensor:
        return max_logits(q, k, is_causal=True, enable_gqa=shared)

    with torch.no_grad():
        took = interleaved({"forward": forward, "ours": ours}, device, times)
    what = f"S = {context:,}, {heads} heads, {key_heads} of keys"
    return [
        Row(section, f"MaxLogit / SDPA forward, {what}", took["ours"] / took["forward"], bar),
        Row(section, f"MaxLogit, {what}", 1e3 * took["ours"], None, "ms"),
    ]


def _matrices(width: int, layers: int, device: torch.device) -> list[nn.Parameter]:
    """Gaussian matrices of a GPT's blocks, with Gaussian gradients."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers
    matrices = []
    for shape in shapes:
        matrix = nn.Parameter(torch.randn(shape, device=device, generator=generator) * shape[1] ** -0.5)
        matrix.grad = torch.randn(shape, device=device, generator=generator)
        matrices.append(matrix)
    return matrices
