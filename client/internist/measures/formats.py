"""How numbers lie in the range of their format, and of the next narrower one: what underflows there, what saturates.

All of it is counts of entries under five edges, so that many tensors cost a handful of operators.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from internist.measures import host

SAMPLED_ENTRIES = 1024
"""Of a larger tensor about so many entries are looked at, evenly strided."""
EDGES = 5
"""Of a pair of formats: see `edges`."""


@dataclass(frozen=True, slots=True)
class Format:
    """The range of a number format, rounding to nearest with ties to even."""

    name: str
    normal: float
    """Smallest normal number: what is smaller has fewer bits than the format."""
    largest: float
    lost: float
    """Largest number that rounds to zero."""
    kept: float
    """Numbers smaller than this round to a finite one, and this too where `keeps_tie`."""
    keeps_tie: bool


def format_of(dtype: torch.dtype) -> Format:
    """The range of a floating dtype."""
    about = torch.finfo(dtype)
    half_step = math.ldexp(about.eps, math.frexp(about.max)[1] - 2)
    is_even = (about.max / half_step / 2) % 2 == 0  # its last bit is, so that a tie goes to it and not beyond
    smallest = about.smallest_normal * about.eps
    return Format(
        str(dtype).removeprefix("torch."),
        about.smallest_normal,
        about.max,
        smallest / 2,  # a tie goes to zero, which is even
        about.max + half_step,
        is_even,
    )


def narrower(dtype: torch.dtype, *, is_gradient: bool) -> torch.dtype:
    """The next narrower format: of 32 bits float16 (bfloat16 has their range), of 16 bits float8, for gradients the one
    of more range.

    Raises:
        ValueError: the dtype is none of those that are measured.

    Source: of float8, Micikevicius et al. 2022, arXiv:2209.05433: E4M3 for weights and activations, E5M2 for gradients.
    """
    if dtype == torch.float64:
        return torch.float32
    if dtype == torch.float32:
        return torch.float16
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float8_e5m2 if is_gradient else torch.float8_e4m3fn
    raise ValueError(f"expected float64, float32, bfloat16 or float16, got {dtype}")


def pair_of(dtype: torch.dtype, *, is_gradient: bool) -> str:
    """A format and its next narrower one, in words."""
    return f"{format_of(dtype).name}, then {format_of(narrower(dtype, is_gradient=is_gradient)).name}"


def is_known(dtype: torch.dtype) -> bool:
    """Whether a format has a next narrower one."""
    return dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def shares(entries: Tensor, *, is_gradient: bool = False) -> Tensor:
    """What of each row underflows, and what saturates.

    Args:
        entries: (rows, entries) floating, of the format in use.
        is_gradient: whether they are of gradients.

    Returns:
        (4, rows) float32: what underflows in the format in use and in the next narrower one, what saturates in them.
        Underflow: not zero, and in the format in use smaller than its smallest normal number, in the narrower one
        rounded to zero. Saturation: as large as the format's largest number or larger, in the narrower one rounded
        past it; NaN and infinities are among them.
    """
    wide = entries if entries.dtype == torch.float64 else entries.float()
    if len(wide) == 1 and host.can_count(wide):
        counts = host.under(wide, _edges_on(entries.dtype, is_gradient, wide.device)).unsqueeze(1)
    else:
        counts = _below(wide, entries.dtype, is_gradient).sum(-1, dtype=torch.float32)
    return _of_counts(counts.div_(entries.shape[-1]))


def ragged_shares(samples: Sequence[Tensor], *, is_gradient: bool) -> Tensor:
    """The same of each of several vectors of one dtype, on one device, of any lengths.

    Args:
        samples: (entries,) each, one entry at least.
        is_gradient: whether they are of gradients.
    """
    lengths, device = tuple(len(sample) for sample in samples), samples[0].device
    first, ends, counts = _bounds(lengths, samples[0].dtype, device)
    below = _below(torch.cat([first, *samples]), samples[0].dtype, is_gradient)
    at_ends = below.cumsum(-1).index_select(-1, ends)  # of integers, so exact and the same every time
    return _of_counts((at_ends[:, 1:] - at_ends[:, :-1]) / counts)


def sample(tensor: Tensor) -> Tensor:
    """(entries,) at most SAMPLED_ENTRIES of a tensor, evenly strided over all of its columns; where its strides allow
    it a view."""
    flat = tensor.detach().reshape(-1)
    step = -(-flat.numel() // SAMPLED_ENTRIES)
    while math.gcd(step, tensor.shape[-1] if tensor.dim() else 1) > 1:  # else it would see some columns only
        step += 1
    return flat[::step]


def edges(dtype: torch.dtype, *, is_gradient: bool) -> Tensor:
    """(EDGES,) float32, float64 of float64: what is under the first is zero, under the second not normal, under the
    third rounds to zero in the narrower format; under the fourth below its largest number, under the fifth finite in
    the narrower format."""
    own, other = format_of(dtype), format_of(narrower(dtype, is_gradient=is_gradient))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = [own.normal * torch.finfo(dtype).eps, own.normal, other.lost, own.largest, other.kept]
    limits = torch.tensor(found, dtype=torch.float64, device="cpu").to(wide)
    beyond = torch.nextafter(limits, torch.full_like(limits, torch.inf))
    is_inclusive = torch.tensor([False, False, True, False, other.keeps_tie], device="cpu")
    return torch.where(is_inclusive, beyond, limits)


def _below(entries: Tensor, dtype: torch.dtype, is_gradient: bool) -> Tensor:
    """(EDGES, ...) whether each entry is under each edge; NaN is under none."""
    wide = entries if dtype == torch.float64 else entries.float()
    limits = _edges_on(dtype, is_gradient, entries.device).view(EDGES, *(1,) * wide.dim())
    return wide.abs() < limits


def _of_counts(below: Tensor) -> Tensor:
    """From the shares under each edge."""
    return torch.cat((below[1:3] - below[:1], 1.0 - below[3:]))


@lru_cache(maxsize=64)
def _edges_on(dtype: torch.dtype, is_gradient: bool, device: torch.device) -> Tensor:
    """The edges on a device; a copy that nobody waits for, made once."""
    return _copied(edges(dtype, is_gradient=is_gradient), device)


@lru_cache(maxsize=64)
def _bounds(lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """One entry to stand before all others, the place of each vector's last entry behind it, and their lengths."""
    counts = torch.tensor(lengths, dtype=torch.float32, device="cpu")
    ends = torch.tensor((0, *lengths), dtype=torch.int64, device="cpu").cumsum(0)
    return torch.ones(1, dtype=dtype, device=device), _copied(ends, device), _copied(counts, device)


def _copied(host: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        host = host.pin_memory()
    with torch.inference_mode(mode=False):
        return host.to(device, non_blocking=True)
