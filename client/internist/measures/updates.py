"""What one optimizer step changed: in the weights as stored, in a module's own output, in the features.

`own_*` answer how far a module's output moves when only its own parameters change and its input stays: for layers
that are linear in their parameters this is exact and needs no second forward.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, linalg
from torch.nn import functional

from internist.measures import host
from internist.measures.precision import full_precision
from internist.measures.weights import mean_squares

SMALL = 2**15
"""Up to this many entries one call costs less than any care for how it runs."""
PIECE = 2**17
"""Entries compared at a time on the CPU, in a float32 buffer of 512 kB that fits its cache. `count_nonzero` branches on
every entry, and took 21 ms where this took 2 (4.7 M entries, half of them zero, one core)."""
LARGE = 2**15
"""Above this many entries a weight on the CPU is worked through in pieces."""


def differences(after: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """Weight changes `after - before`, each float32 in new memory. Low precision is widened before subtracting.

    Raises:
        ValueError: the lists, or two tensors of a pair, do not match.
    """
    _require_pairs(after, before)
    return [torch.sub(a.float(), b.float()) for a, b in zip(after, before, strict=True)]


def differences_(after: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """Weight changes `after - before` in float32, written over `before` where that is float32 already.

    For snapshots that are not needed again: without new memory it takes two thirds of the time of `differences`.

    Raises:
        ValueError: the lists, or two tensors of a pair, do not match.
    """
    _require_pairs(after, before)
    return [
        torch.sub(a, b, out=b) if a.dtype == b.dtype == torch.float32 else torch.sub(a.float(), b.float())
        for a, b in zip(after, before, strict=True)
    ]


def stored_(after: Sequence[Tensor], before: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """What one step did to parameters, as stored: the changes, written over `before` where they fit, and statistics.

    Large tensors are worked through in pieces that stay in the cache.

    Args:
        after: parameters after the step, on the CPU.
        before: their copies from before it; not needed again.

    Returns:
        The differences in float32, and (3, n) float32: mean squares of the parameters, mean squares of the differences,
        shares of entries that did not move.

    Raises:
        ValueError: the lists are empty, or two tensors of a pair do not match.
    """
    _require_pairs(after, before)
    _require_filled(*after)
    large = [i for i, (a, b) in enumerate(zip(after, before, strict=True)) if can_stream(a, b)]
    small = sorted(set(range(len(after))) - set(large))
    deltas: dict[int, Tensor] = {}
    columns: dict[int, Tensor] = {}
    for i in large:
        columns[i] = _stored_in_pieces(after[i].view(-1), before[i].view(-1))
        deltas[i] = before[i]
    for group in ([i for i in small if after[i].numel() <= SMALL], [i for i in small if after[i].numel() > SMALL]):
        if group:
            chosen = [after[i] for i in group]
            changes = differences_(chosen, [before[i] for i in group])
            block = torch.stack((mean_squares(chosen), mean_squares(changes), unchanged(changes)))
            deltas.update(zip(group, changes, strict=True))
            columns.update(zip(group, block.unbind(1), strict=True))
    order = range(len(after))
    return [deltas[i] for i in order], torch.stack([columns[i] for i in order], dim=1)


def streamed_linear(
    after: Tensor, before: Tensor, probe: Tensor, delta_bias: Tensor | None = None
) -> tuple[tuple[float, float, float], Tensor]:
    """`stored_` and `own_linear` of one large weight on the CPU, in one pass over memory that keeps no difference.

    Args:
        after: (fan_out, fan_in) float32, contiguous: the weight after the step.
        before: its copy from before the step; stays as it is.
        probe: (tokens, fan_in), inputs of the layer.
        delta_bias: (fan_out,), the bias's change, if there is a bias.

    Returns:
        Three numbers as a column of `stored_`'s statistics, and (tokens,) float32 as `own_linear`.

    Raises:
        ValueError: shapes do not fit or a tensor is empty.
    """
    _require_pairs([after], [before])
    _require_filled(after, probe)
    if after.ndim != 2 or probe.shape[-1] != after.shape[1]:
        shapes = f"{tuple(after.shape)} and {tuple(probe.shape)}"
        raise ValueError(f"expected (fan_out, fan_in) and (tokens, fan_in), got {shapes}")
    fan_out, fan_in = after.shape
    rows = min(fan_out, max(1, PIECE // fan_in))
    scratch = torch.empty(rows, fan_in, dtype=torch.float32, device="cpu")
    inputs = probe.reshape(-1, fan_in).float().t()
    change = torch.empty(fan_out, inputs.shape[1], dtype=torch.float32, device="cpu")
    weight = update = still = 0.0
    with full_precision(inputs):
        for start in range(0, fan_out, rows):
            a, b = after[start : start + rows], before[start : start + rows]
            delta = torch.sub(a, b, out=scratch[: len(a)])
            torch.mm(delta, inputs, out=change[start : start + rows])
            weight += host.square_sum(a)
            update += host.square_sum(delta)
            still += delta.eq_(0).sum().item()
    if delta_bias is not None:
        change += _vector(delta_bias, fan_out).unsqueeze(1)
    size = after.numel()
    return (weight / size, update / size, still / size), change.square_().sum(0).div_(fan_out).sqrt_()


def unchanged(differences: Sequence[Tensor]) -> Tensor:
    """Share of the entries of each difference that did not move.

    Args:
        differences: as `differences` gives them, on the CPU; `many.unchanged` is for elsewhere.

    Returns:
        (n,) float32 in [0, 1]. A NaN entry has moved.

    Raises:
        ValueError: there is no difference, or one is empty.
    """
    if not differences or any(difference.numel() == 0 for difference in differences):
        raise ValueError("expected non-empty differences")
    sizes = [difference.numel() for difference in differences]
    if max(sizes) <= SMALL:
        moved = torch.stack(torch._foreach_norm(list(differences), 0))  # the 0-norm counts what is not zero
        return 1 - moved.float() / torch.tensor(sizes, device="cpu")
    zeros = [_zeros(difference) for difference in differences]
    torch._foreach_div_(zeros, sizes)
    return torch.stack(zeros)


def own_linear(probe: Tensor, delta: Tensor, delta_bias: Tensor | None = None) -> Tensor:
    """How far a linear layer's output moves on the probe when only its own parameters change.

    Args:
        probe: (tokens, fan_in), what entered the layer; leading dimensions of any shape are tokens.
        delta: (fan_out, fan_in), the weight's change.
        delta_bias: (fan_out,), the bias's change.

    Returns:
        (tokens,) float32: each token's RMS of `probe @ delta.T + delta_bias`. Never above R(delta) times the largest
        token RMS of the probe plus the RMS of delta_bias. NaN in, NaN out.

    Raises:
        ValueError: shapes do not fit or a tensor is empty.
    """
    if delta.ndim != 2 or probe.ndim == 0 or probe.shape[-1] != delta.shape[1]:
        raise ValueError(
            f"expected (tokens, fan_in) and (fan_out, fan_in), got {tuple(probe.shape)} and {tuple(delta.shape)}"
        )
    _require_filled(probe, delta)
    bias = None if delta_bias is None else _vector(delta_bias, delta.shape[0])
    with full_precision(probe):
        return _rms(functional.linear(probe.float(), delta.float(), bias))


def own_embedding(ids: Tensor, delta: Tensor) -> Tensor:
    """How far an embedding's output moves on the probe.

    Args:
        ids: integer token ids of any shape, each below the number of rows.
        delta: (rows, features), the weight's change.

    Returns:
        (tokens,) float32: each token's RMS of the change. NaN in, NaN out.

    Raises:
        ValueError: delta is not a matrix, ids are not integers, or a tensor is empty.
    """
    if delta.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"expected integer ids and a (rows, features) matrix, got {ids.dtype} and {tuple(delta.shape)}"
        )
    _require_filled(ids, delta)
    return _rms(delta[ids.flatten()].float())


def own_gain(normalized: Tensor, delta_gain: Tensor | None, delta_bias: Tensor | None = None) -> Tensor:
    """How far a normalisation layer's output moves on the probe: `normalized * delta_gain + delta_bias` by element.

    Args:
        normalized: (tokens, features), the layer's input after normalising and before its gain.
        delta_gain: (features,), the gain's change; None for a layer without one.
        delta_bias: (features,), the bias's change; None for a layer without one.

    Returns:
        (tokens,) float32: each token's RMS of the change. Never above the largest absolute change of the gain times
        the largest token RMS plus the RMS of delta_bias. NaN in, NaN out.

    Raises:
        ValueError: shapes do not fit, a tensor is empty, or neither change is given.
    """
    if normalized.ndim == 0 or (delta_gain is None and delta_bias is None):
        raise ValueError(f"expected (tokens, features) and a change, got {tuple(normalized.shape)} and none")
    _require_filled(normalized)
    features = normalized.shape[-1]
    if delta_gain is None:
        assert delta_bias is not None
        return _rms(_vector(delta_bias, features).expand(normalized.shape))
    gain = _vector(delta_gain, features)
    if delta_bias is None:
        return _rms(normalized.float() * gain)
    return _rms(torch.addcmul(_vector(delta_bias, features), normalized.float(), gain))


def own_convolution(
    probe: Tensor,
    delta: Tensor,
    delta_bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """How far a convolution's output moves on the probe when only its own parameters change.

    Args:
        probe: (batch, fan_in, *space) with one to three spatial dimensions; a padding mode other than zeros is
            applied by the caller, with padding 0 here.
        delta: (fan_out, fan_in / groups, *kernel), the weight's change.
        delta_bias: (fan_out,), the bias's change.
        stride: as the module's.
        padding: as the module's.
        dilation: as the module's.
        groups: as the module's.

    Returns:
        (pixels,) float32: each pixel's RMS over channels of the change. NaN in, NaN out.

    Raises:
        ValueError: shapes do not fit or a tensor is empty.
    """
    convolutions = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
    if probe.ndim not in convolutions or probe.ndim != delta.ndim or probe.shape[1] != delta.shape[1] * groups:
        raise ValueError(f"expected a batch and a kernel that fit, got {tuple(probe.shape)} and {tuple(delta.shape)}")
    _require_filled(probe, delta)
    bias = None if delta_bias is None else _vector(delta_bias, delta.shape[0])
    with full_precision(probe):
        change = convolutions[probe.ndim](probe.float(), delta.float(), bias, stride, padding, dilation, groups)
    return _rms(change.movedim(1, -1))


def feature_change(after: Tensor, before: Tensor) -> Tensor:
    """How far the features moved in one step, everything having changed.

    Args:
        after: (tokens, features) of the probe with the new weights; leading dimensions of any shape are tokens.
        before: the same tokens with the old weights.

    Returns:
        (tokens,) float32: each token's RMS of the difference. NaN in, NaN out.

    Raises:
        ValueError: shapes differ or the tensors are empty.
    """
    if after.shape != before.shape or after.ndim == 0:
        raise ValueError(f"expected two tensors of one shape, got {tuple(after.shape)} and {tuple(before.shape)}")
    _require_filled(after)
    return _rms(torch.sub(after.float(), before.float()))


def moved(token_rms: Tensor) -> Tensor:
    """What is kept of how far a probe's tokens moved.

    Args:
        token_rms: (..., tokens) float32, as the `own_*` functions and `feature_change` give them; leading dimensions
            are summarised each on its own.

    Returns:
        (..., 2) float32: maximum over tokens, mean of squares. NaN in, NaN out.
    """
    return torch.stack((token_rms.amax(dim=-1), token_rms.square().mean(dim=-1)), dim=-1)


def can_stream(after: Tensor, before: Tensor) -> bool:
    """Whether a weight is worth working through in pieces: large, float32, contiguous, on the CPU."""
    return (
        after.numel() > LARGE  # first, since most parameters are small
        and after.device.type == "cpu"
        and after.dtype == before.dtype == torch.float32
        and after.is_contiguous()
        and before.is_contiguous()
    )


def _stored_in_pieces(after: Tensor, before: Tensor) -> Tensor:
    """(3,) as `stored_`; `before` becomes the difference."""
    equal = torch.empty(min(PIECE, after.numel()), dtype=torch.float32, device="cpu")
    weight = update = still = 0.0
    for a, b in _paired(after, before, PIECE):
        torch.sub(a, b, out=b)
        weight += linalg.vector_norm(a).item() ** 2
        update += linalg.vector_norm(b).item() ** 2
        still += torch.eq(b, 0, out=equal[: b.numel()]).sum().item()
    return torch.tensor((weight, update, still), dtype=torch.float32, device="cpu").div_(after.numel())


def _paired(after: Tensor, before: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(after, rows), torch.split(before, rows), strict=True)


def _zeros(difference: Tensor) -> Tensor:
    """() float32 number of exact zeros."""
    pieces = torch.split(difference.reshape(-1), PIECE)
    equal = torch.empty(min(PIECE, difference.numel()), dtype=torch.float32, device="cpu")
    return torch.stack([torch.eq(piece, 0, out=equal[: piece.numel()]).sum() for piece in pieces]).sum()


def _rms(change: Tensor) -> Tensor:
    """(tokens,): RMS over the last dimension."""
    norms: Tensor = linalg.vector_norm(change, dim=-1)
    return norms.div_(math.sqrt(change.shape[-1])).flatten()


def _vector(vector: Tensor, length: int) -> Tensor:
    if vector.shape != (length,):
        raise ValueError(f"expected a vector of {length} entries, got {tuple(vector.shape)}")
    return vector.float()


def _require_filled(*tensors: Tensor) -> None:
    if any(tensor.numel() == 0 for tensor in tensors):
        raise ValueError(f"expected non-empty tensors, got {[tuple(tensor.shape) for tensor in tensors]}")


def _require_pairs(after: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    if [tensor.shape for tensor in after] != [tensor.shape for tensor in before]:
        raise ValueError(f"expected pairs of one shape, got {len(after)} tensors after and {len(before)} before")
