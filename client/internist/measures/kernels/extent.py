"""What one pass over an activation says of each of its tokens: the operator `internist::extent`."""

import torch
from torch import Tensor, linalg

from internist.measures.kernels.operators import define

RMS, ABS_MAX, NONFINITE = 0, 1, 2
"""Rows of the result that are always there."""

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What the kernel reads."""

ENTRIES = 2**26
"""Entries that operators of torch take at once: 256 MB of float32 bounds their temporary memory."""


def extent(x: Tensor, out: Tensor, source: Tensor | None = None, log_z: bool = False) -> None:
    """Writes what each token of an activation says into `out`, by one launch where there is a kernel.

    Args:
        x: (tokens, features) or (batch, tokens, features), floating, not empty, of any strides: it is not copied.
        out: (rows(source, log_z), tokens of all batches) float32 on the same device, the tokens of a row one after
            another in memory, as in a slice of an arena. Its rows, in this order: the RMS over a token's features; its
            largest absolute entry; how many of its entries are NaN or infinite; with a source the sums of squares of
            x - source and of the source, taken in float32; with log_z the logsumexp of its entries.
        source: what entered the block that x left, of the same shape, any floating dtype and strides.
        log_z: whether x are logits of the output head.

    A token that holds NaN has NaN for its RMS, largest entry and logsumexp; one whose squares sum to more than 3e38
    has an infinite RMS.

    Raises:
        ValueError: shapes, types or devices do not fit.
    """
    _operator(x, out, source, log_z)


def rows(source: Tensor | None = None, log_z: bool = False) -> int:
    """How many rows the result has."""
    return 3 + (0 if source is None else 2) + int(log_z)


def _takes(x: Tensor, out: Tensor, source: Tensor | None, log_z: bool) -> bool:  # noqa: ARG001
    return x.dtype in TYPES and (source is None or source.dtype in TYPES)


def _plain(x: Tensor, out: Tensor, source: Tensor | None, log_z: bool) -> None:
    tokens = x.reshape(-1, x.shape[-1])
    sources = None if source is None else source.reshape(tokens.shape)
    step = max(1, ENTRIES // x.shape[-1])
    for start in range(0, len(tokens), step):
        piece = slice(start, start + step)
        _piece(tokens[piece], out[:, piece], None if sources is None else sources[piece], log_z)


def _piece(x: Tensor, out: Tensor, source: Tensor | None, log_z: bool) -> None:
    narrow = x.float() if x.dtype == torch.float64 else x
    torch.div(linalg.vector_norm(narrow, dim=1, dtype=torch.float32), x.shape[1] ** 0.5, out=out[RMS])
    out[ABS_MAX].copy_(torch.maximum(x.amax(dim=1), x.amin(dim=1).neg()))
    out[NONFINITE].copy_(torch.count_nonzero(x - x, dim=1))  # finite - finite is 0, everything else NaN
    if source is not None:
        entered = source.float()
        torch.sum((x.float() - entered).square_(), dim=1, out=out[3])
        torch.sum(entered.square(), dim=1, out=out[4])
    if log_z:
        torch.logsumexp(x.float(), dim=1, out=out[-1])


def _check(x: Tensor, out: Tensor, source: Tensor | None, log_z: bool) -> None:
    if x.ndim not in (2, 3) or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"expected a floating ([batch,] tokens, features), got {x.dtype} of shape {tuple(x.shape)}")
    if source is not None and (source.shape != x.shape or not source.is_floating_point()):
        raise ValueError(f"expected a floating source {tuple(x.shape)}, got {source.dtype} {tuple(source.shape)}")
    height, tokens = rows(source, log_z), x.numel() // x.shape[-1]
    if out.ndim != 2 or out.shape != (height, tokens) or out.dtype != torch.float32 or out.stride(1) != 1:
        raise ValueError(f"expected out to be float32 rows {(height, tokens)}, got {out.dtype} {tuple(out.shape)}")
    device = x.device
    if out.device != device or (source is not None and source.device != device):
        other = out.device if source is None or out.device != device else source.device
        raise ValueError(f"expected all tensors on {device}, got one on {other}")


def _fake(x: Tensor, out: Tensor, source: Tensor | None, log_z: bool) -> None:
    """Nothing is returned, so there is nothing to show."""


_operator = define(
    "extent(Tensor x, Tensor(a!) out, Tensor? source, bool log_z) -> ()",
    kernel="internist.measures.kernels.extent_kernel",
    takes=_takes,
    plain=_plain,
    check=_check,
    fake=_fake,
)
