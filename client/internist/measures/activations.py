"""What one module call says about its activations: sizes, outliers, dependency on the input.

A token is any position of an activation other than its feature dimension. Every function takes tensors of any
floating dtype, computes in float32 on their device, and returns 0-d or small float32 tensors there.
"""

import math

import torch
from torch import Tensor, linalg
from torch.nn import functional

from internist.measures import host

Value = Tensor | float
"""A 0-d tensor, or a float where the host has the number already."""

LEFT_OUT = 1e-3
"""Pairs of tokens closer than this share of the largest distance say more about rounding than about the module."""

CHUNK_CPU = 2**17
"""Entries per piece of a reduction on the CPU: 512 kB of float32, so that a piece stays in the cache."""

CHUNK_ACCELERATOR = 2**26
"""The same elsewhere: 256 MB of float32 bounds the temporary memory, and few launches do the work."""


def token_rms(x: Tensor, *, channel_dim: int = -1) -> Tensor:
    """RMS over the features of each token.

    Args:
        x: an activation of at least one dimension, floating.
        channel_dim: the feature dimension; 1 for the output of a convolution, whose tokens are then pixels.

    Returns:
        (tokens,) float32. A token that holds NaN gives NaN. One that holds an infinity, or whose squares sum to
        more than 3e38, gives infinity.

    Raises:
        ValueError: x is empty, has no dimension, or is not floating.
    """
    _require_activation(x)
    features = x.shape[channel_dim]
    norm: Tensor
    if x.stride(channel_dim) == 1:
        norm = linalg.vector_norm(_narrow(x), dim=channel_dim, dtype=torch.float32)
    else:  # over such a stride vector_norm takes 3 to 14 times as long on the CPU
        norm = x.float().square().sum(dim=channel_dim).sqrt_()
    return norm.div_(math.sqrt(features)).flatten()


def extent(x: Tensor, *, channel_dim: int = -1) -> tuple[Tensor, Value, Value]:
    """`token_rms`, `abs_max` and `nonfinite` of an activation, with as few passes over its memory and as few operators
    as the device allows: a module's output is small, and on the CPU each operator costs as much as 100 kB read.

    Args:
        x: an activation of at least one dimension, floating.
        channel_dim: the feature dimension.

    Returns:
        (tokens,) float32, and two numbers, as those three give them; on the CPU, which has computed them when the
        call returns, the two are floats.

    Raises:
        ValueError: x is empty, has no dimension, or is not floating.
    """
    _require_activation(x)
    rows = CHUNK_CPU // x.shape[-1]
    if x.device.type != "cpu" or channel_dim not in (-1, x.ndim - 1) or rows == 0:
        norms = token_rms(x, channel_dim=channel_dim)
        top = abs_max(x)
        return norms, top, nonfinite(x, top)
    tokens = _narrow(x).reshape(-1, x.shape[-1])
    norms, ends = host.scan(tokens, rows) if host.can_scan(tokens) else _scan(tokens, rows)
    norms.div_(math.sqrt(x.shape[-1]))
    if all(map(math.isfinite, ends)):
        return norms, max(ends), 0.0
    largest = math.nan if any(map(math.isnan, ends)) else math.inf
    return norms, largest, float(nonfinite(x, torch.tensor(largest, device="cpu")))


def _scan(tokens: Tensor, rows: int) -> tuple[Tensor, list[float]]:
    """`host.scan`, of any dtype and by torch alone."""
    pieces = torch.split(tokens, rows) if tokens.numel() > 2 * CHUNK_CPU else (tokens,)
    norms, ends = [], []
    for piece in pieces:
        norms.append(linalg.vector_norm(piece, dim=-1, dtype=torch.float32))
        ends += [piece.amax().item(), -piece.amin().item()]
    return torch.cat(norms) if len(norms) > 1 else norms[0], ends


def rms_summary(token_rms: Tensor) -> Tensor:
    """What is kept of the tokens' RMS: the mean of squares, the maximum and the 99 % quantile.

    The quantile is the smallest token RMS that at least 99 % of the tokens do not exceed, so one of the values
    given, never an interpolation.

    Args:
        token_rms: (..., tokens) float32; leading dimensions are summarised each on its own.

    Returns:
        (..., 3) float32: mean of squares, maximum, quantile. NaN in any token makes all three NaN.

    Raises:
        ValueError: there is no token.
    """
    if token_rms.ndim == 0 or token_rms.numel() == 0:
        raise ValueError(f"expected (..., tokens) with at least one token, got {tuple(token_rms.shape)}")
    largest = token_rms.topk(token_rms.shape[-1] // 100 + 1, dim=-1).values  # NaN sorts above everything
    maximum = largest[..., 0]
    quantile = torch.where(maximum.isnan(), maximum, largest[..., -1])
    return torch.stack((token_rms.square().mean(dim=-1), maximum, quantile), dim=-1)


def abs_max(x: Tensor) -> Tensor:
    """Largest absolute entry.

    Returns:
        () float32. NaN if any entry is NaN.

    Raises:
        ValueError: x is empty or not floating.
    """
    _require_floating(x)
    return torch.maximum(x.amax(), x.amin().neg()).float()  # on the CPU a third faster than aminmax


def nonfinite(x: Tensor, abs_max: Tensor) -> Tensor:
    """Number of NaN and infinite entries.

    On the CPU a finite largest entry proves that there is none, and x is not read; elsewhere that shortcut would make
    the host wait for the device.

    Args:
        x: an activation.
        abs_max: its `abs_max`.

    Returns:
        () float32, exact up to 2**24 and rounded above.

    Raises:
        ValueError: x is empty or not floating.
    """
    _require_floating(x)
    if x.device.type == "cpu" and math.isfinite(float(abs_max)):
        return torch.zeros((), dtype=torch.float32, device="cpu")
    return torch.count_nonzero(x - x).float()  # finite - finite is 0, everything else NaN: faster than isfinite


def contribution(output: Tensor, input: Tensor, input_rms: Tensor | None = None) -> tuple[Value, Value]:
    """What a residual block adds to its stream, and the stream: two sums of squares.

    The root of their ratio is the metric. Sums are what calls and ranks can add up: the ratio of the sums is that of
    all tokens together, which no mean of ratios is.

    Args:
        output: what left the block.
        input: what entered it, of the same shape.
        input_rms: the input's `token_rms` if it is known, which saves reading the input once more.

    Returns:
        Sum of squares of (output - input), and of the input: floats on the CPU, () float32 elsewhere. NaN in, NaN out.

    Raises:
        ValueError: the tensors are empty, not floating, or differ in shape.
    """
    _require_floating(output)
    if output.shape != input.shape:
        raise ValueError(f"expected output and input of one shape, got {tuple(output.shape)} and {tuple(input.shape)}")
    known = _narrow(input) if input_rms is None else input_rms
    features = input.numel() / known.numel()
    norm = linalg.vector_norm(known, dtype=torch.float32)
    if norm.device.type == "cpu":
        return _distance_squared(output, input), norm.item() ** 2 * features
    added = linalg.vector_norm(_narrow(output - input), dtype=torch.float32)
    return added.square(), norm.square() * features


def pair_distances(tokens: Tensor) -> Tensor:
    """RMS distances of all pairs of tokens, from explicit differences in float32: the Gram route loses near-equal ones.

    Args:
        tokens: (tokens, features) of the probe, at most 64 tokens by design: the work grows with their square.

    Returns:
        (pairs,) float32 in the order (0, 1), (0, 2), ..., (1, 2), ...

    Raises:
        ValueError: tokens is empty, not floating, or no matrix.
    """
    _require_floating(tokens)
    if tokens.ndim != 2:
        raise ValueError(f"expected (tokens, features), got {tuple(tokens.shape)}")
    return functional.pdist(tokens.float().contiguous()).div_(math.sqrt(tokens.shape[1]))


def spread(between: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How far apart modules put different tokens, and how much they stretch the distance between two.

    Pairs whose inputs are equal, or closer than `LEFT_OUT` of the largest input distance, are left out of all three
    values.

    Args:
        between: (..., pairs) `pair_distances` of outputs, one row a module.
        apart: the same of the inputs that made them; None where a distance has no meaning (token ids). Then every
            pair counts and the ratio is not measured.

    Returns:
        (..., 3) float32: largest RMS distance of two outputs, their mean RMS distance, largest ratio of RMS output
        distance to RMS input distance. NaN in, NaN out. And (..., 3) bool: False where no pair is left to measure.

    Raises:
        ValueError: the two differ in shape.
    """
    if apart is not None and apart.shape != between.shape:
        raise ValueError(f"expected as many inputs as outputs, got {tuple(apart.shape)} and {tuple(between.shape)}")
    rows = between.shape[:-1]
    if between.shape[-1] == 0:
        return between.new_zeros(*rows, 3), torch.zeros(*rows, 3, dtype=torch.bool, device=between.device)
    if apart is None:
        values = torch.stack((between.amax(dim=-1), between.mean(dim=-1), torch.zeros_like(between[..., 0])), dim=-1)
        known = torch.ones_like(values, dtype=torch.bool)
        known[..., 2] = False
        return values, known
    left_out = (apart < LEFT_OUT * apart.amax(dim=-1, keepdim=True)).logical_or_(apart == 0)  # NaN is not left out
    kept = left_out.logical_not().sum(dim=-1)
    mean = between.masked_fill(left_out, 0.0).sum(dim=-1) / kept
    values = torch.stack(
        (
            between.masked_fill(left_out, -torch.inf).amax(dim=-1),
            mean,
            (between / apart).masked_fill_(left_out, -torch.inf).amax(dim=-1),
        ),
        dim=-1,
    )
    return values, (kept > 0).unsqueeze(-1).expand(*rows, 3)


def log_z(logits: Tensor) -> Tensor:
    """Mean and maximum over tokens of the logsumexp of the output head's logits.

    Args:
        logits: (..., vocabulary); worked through in pieces, so that temporary memory stays bounded.

    Returns:
        (2,) float32 in nats. NaN in, NaN out.

    Raises:
        ValueError: logits is empty, has no dimension, or is not floating.
    """
    log_zs = _log_zs(logits)
    return torch.stack((log_zs.mean(), log_zs.amax()))


def log_z_of_piece(logits: Tensor) -> Tensor:
    """The same of a rank's piece of the vocabulary, and what bounds the mean of the whole from above.

    With n pieces, `mean + log n`, averaged over the pieces, is never above the mean of the whole, since logsumexp is
    convex; `log_mean + log n`, the largest over the pieces, is never below it, since the logarithm is concave. The
    largest of the whole lies between `maximum` and `maximum + log n`.

    Args:
        logits: (..., piece of the vocabulary).

    Returns:
        (3,) float32 in nats: mean, maximum, and the logarithm of the mean of the exponentials. NaN in, NaN out.

    Raises:
        ValueError: as `log_z`.
    """
    log_zs = _log_zs(logits)
    return torch.stack((log_zs.mean(), log_zs.amax(), log_zs.logsumexp(0) - math.log(len(log_zs))))


def _log_zs(logits: Tensor) -> Tensor:
    """(tokens,) float32."""
    _require_activation(logits)
    rows = logits.reshape(-1, logits.shape[-1])
    entries = CHUNK_CPU if rows.device.type == "cpu" else CHUNK_ACCELERATOR
    pieces = torch.split(rows, max(1, entries // rows.shape[-1]))
    return torch.cat([piece.float().logsumexp(dim=-1) for piece in pieces])


def _distance_squared(a: Tensor, b: Tensor) -> float:
    """Sum of squares of (a - b), in pieces that stay in a CPU's cache."""
    if a.numel() <= CHUNK_CPU or a.ndim < 2:
        return float(linalg.vector_norm(_narrow(a - b), dtype=torch.float32)) ** 2
    rows = max(1, CHUNK_CPU // a.shape[-1])
    pieces = zip(torch.split(a.flatten(0, -2), rows), torch.split(b.flatten(0, -2), rows), strict=True)
    return sum(float(linalg.vector_norm(_narrow(p - q), dtype=torch.float32)) ** 2 for p, q in pieces)


def _narrow(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float64 else x  # vector_norm widens to float32 itself, but does not narrow


def _require_activation(x: Tensor) -> None:
    _require_floating(x)
    if x.ndim == 0:
        raise ValueError("expected an activation with a feature dimension, got a single number")


def _require_floating(x: Tensor) -> None:
    if not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"expected a non-empty floating tensor, got {x.dtype} of shape {tuple(x.shape)}")
