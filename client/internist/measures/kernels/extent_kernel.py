"""The kernel of `internist::extent`: a program takes a few tokens and reads their features once."""

import triton
import triton.language as tl
from torch import Tensor

from internist.measures.kernels.grid import pieces_of, power_of_two

ENTRIES, WIDEST = 2048, 4096
"""Entries that a program holds at once where a token has few features, and the most where it has many."""

ACROSS = 32
"""Tokens and features at once where a token's features do not lie side by side: tokens then do."""


def launch(x: Tensor, out: Tensor, source: Tensor | None, log_z: bool) -> None:
    """Launches it for arguments that the operator has checked."""
    entered = x if source is None else source
    *batches, tokens, features = x.shape
    batch = batches[0] if batches else 1
    x_strides = x.stride() if batches else (0, *x.stride())
    source_strides = x_strides if source is None else source.stride() if batches else (0, *source.stride())
    if batch > 1 and x_strides[0] == tokens * x_strides[1] and source_strides[0] == tokens * source_strides[1]:
        batch, tokens = 1, batch * tokens
    side_by_side = x_strides[2] == 1
    width = min(power_of_two(features), WIDEST if side_by_side else ACROSS)
    height = min(max(1, ENTRIES // width) if side_by_side else ACROSS, power_of_two(tokens))
    pieces = pieces_of(tokens, height)
    _extent[(batch * pieces,)](
        x, entered, out, tokens, features, pieces, *x_strides, *source_strides, out.stride(0),
        HAS_SOURCE=source is not None, LOG_Z=log_z, HEIGHT=height, WIDTH=width,
        num_warps=8 if width == WIDEST else 4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "pieces", "out_row"])
def _extent(
    x,
    source,
    out,
    tokens,
    features,
    pieces,
    x_batch,
    x_token,
    x_feature,
    source_batch,
    source_token,
    source_feature,
    out_row,
    HAS_SOURCE: tl.constexpr,
    LOG_Z: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0)
    batch = (program // pieces).to(tl.int64)
    token = (program % pieces) * HEIGHT + tl.arange(0, HEIGHT)
    is_token = token < tokens
    x += batch * x_batch + token.to(tl.int64)[:, None] * x_token
    source += batch * source_batch + token.to(tl.int64)[:, None] * source_token

    squares = tl.zeros((HEIGHT, WIDTH), tl.float32)
    top = tl.zeros((HEIGHT, WIDTH), tl.float32)
    bad = tl.zeros((HEIGHT, WIDTH), tl.float32)
    added = tl.zeros((HEIGHT, WIDTH), tl.float32)
    stream = tl.zeros((HEIGHT, WIDTH), tl.float32)
    highest = tl.full((HEIGHT,), float("-inf"), tl.float32)
    total = tl.zeros((HEIGHT,), tl.float32)
    for start in range(0, features, WIDTH):
        feature = start + tl.arange(0, WIDTH)
        inside = is_token[:, None] & (feature < features)[None, :]
        place = feature.to(tl.int64)[None, :]
        entry = tl.load(x + place * x_feature, mask=inside, other=0.0)
        bad += tl.where(tl.abs(entry) < float("inf"), 0.0, 1.0)  # before float64 is narrowed; false for NaN
        value = entry.to(tl.float32)
        squares += value * value
        top = tl.maximum(top, tl.abs(value))
        if HAS_SOURCE:
            entered = tl.load(source + place * source_feature, mask=inside, other=0.0).to(tl.float32)
            change = value - entered
            added += change * change
            stream += entered * entered
        if LOG_Z:
            value = tl.where(inside, value, float("-inf"))
            higher = tl.maximum(highest, tl.max(value, 1))
            # an infinite maximum is not subtracted: infinity - infinity would be NaN
            shift = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)
            kept = tl.where(highest == float("-inf"), 0.0, total * tl.exp(highest - shift))
            total = kept + tl.sum(tl.exp(value - shift[:, None]), 1)
            highest = higher

    out += batch * tokens + token
    row = tl.cast(out_row, tl.int64)
    square_sum = tl.sum(squares, 1)
    largest = tl.max(top, 1)
    tl.store(out, tl.sqrt(square_sum / features), mask=is_token)
    # a sum of squares is NaN where an entry is; a maximum may pass over NaN
    tl.store(out + row, tl.where(square_sum != square_sum, square_sum, largest), mask=is_token)
    tl.store(out + 2 * row, tl.sum(bad, 1), mask=is_token)
    if HAS_SOURCE:
        tl.store(out + 3 * row, tl.sum(added, 1), mask=is_token)
        tl.store(out + 4 * row, tl.sum(stream, 1), mask=is_token)
    if LOG_Z:
        shift = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)
        last = tl.where(HAS_SOURCE, 5, 3)
        tl.store(out + last * row, shift + tl.log(tl.where(is_token, total, 1.0)), mask=is_token)
