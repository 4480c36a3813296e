"""The kernel of `internist::max_logits`: a program takes some queries of a head through all keys that they may see.

Of scale and softcap, both monotonic, only the extremes are taken. Half the products of an attention's forward are made,
no exponential is, and nothing but two numbers a program is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from internist.measures.kernels.grid import pieces_of, power_of_two

ALL = 2**30
"""As many keys before or after as there never are."""

WIDEST = 128
"""Features of a head up to which a program keeps its queries; of more it reads queries and keys in pieces."""

WIDEST_FLOAT32 = 32
"""The same for float32, whose products are unrolled: more would compile for half a minute."""


def launch(
    q: Tensor, k: Tensor, left: int | None, right: int | None, offset: int, scale: float, softcap: float | None
) -> Tensor:
    """Launches it for arguments that the operator has checked."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        q, k = q.float(), k.float()  # Triton's interpreter would multiply their bits as integers
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    is_float32 = q.dtype == torch.float32
    features = max(16, min(power_of_two(D), WIDEST_FLOAT32 if is_float32 else WIDEST))
    queries = 64 if is_float32 else 128
    pieces = pieces_of(T, queries)
    extremes = torch.empty(2, H, B * pieces, dtype=torch.float32, device=q.device)
    _extremes[(B * H * pieces,)](
        q, k, extremes, scale, H, H // K, T, S, pieces, B * pieces, B * H * pieces,
        ALL if left is None else min(left, ALL), ALL if right is None else min(right, ALL), offset,
        *q.stride(), *k.stride(),
        D=D, FEATURES=features, QUERIES=queries, KEYS=64, APART=not is_float32,
        num_warps=4 if is_float32 else 8, num_stages=3,
    )  # fmt: skip
    found = extremes.amax(dim=2)  # NaN where one is
    return found if softcap is None else found.div_(softcap).tanh_().mul_(softcap)


@triton.jit
def _products(
    query, q, k, key, S, q_feature, k_token, k_feature,
    MASKED: tl.constexpr, D: tl.constexpr, FEATURES: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """(QUERIES, KEYS) products of a program's queries and a few keys; those after the last key are zero."""
    feature = tl.arange(0, FEATURES)
    k += key.to(tl.int64)[None, :] * k_token
    products = tl.zeros((QUERIES, KEYS), tl.float32)
    for start in range(0, D, FEATURES):
        of = start + feature
        inside = (of < D)[:, None]
        if MASKED:
            inside = inside & (key < S)[None, :]
        keys = tl.load(k + of[:, None] * k_feature, mask=inside, other=0.0)
        if D > FEATURES:
            query = tl.load(q + of[None, :] * q_feature, mask=(of < D)[None, :], other=0.0)
        products = tl.dot(query, keys, products, input_precision="ieee")
    return products


@triton.jit(do_not_specialize=["scale", "T", "S", "pieces", "row", "plane", "left", "right", "offset"])
def _extremes(
    q, k, extremes, scale, H, G, T, S, pieces, row, plane, left, right, offset,
    q_batch, q_head, q_token, q_feature, k_batch, k_head, k_token, k_feature,
    D: tl.constexpr, FEATURES: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    piece = pieces - 1 - program % pieces  # under causality the last queries see most: they go first
    head, batch = (program // pieces) % H, program // pieces // H
    start = piece * QUERIES
    stop = tl.minimum(start + QUERIES, T)
    token = tl.minimum(start + tl.arange(0, QUERIES), T - 1)  # the last query again where there are no more
    place = token + offset
    feature = tl.arange(0, FEATURES)
    q += batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head + token.to(tl.int64)[:, None] * q_token
    k += batch.to(tl.int64) * k_batch + (head // G).to(tl.int64) * k_head
    query = tl.load(q + feature[None, :] * q_feature, mask=(feature < D)[None, :], other=0.0)

    # keys that some query sees; from and to are those that all queries see, whole pieces of them
    low = tl.maximum(start + offset - left, 0) // KEYS * KEYS
    high = tl.minimum(stop + offset + right, S)
    begin, end = high, high
    if APART:
        begin = tl.maximum(low, tl.cdiv(tl.maximum(stop - 1 + offset - left, 0), KEYS) * KEYS)
        end = tl.maximum(begin, tl.minimum(start + offset + right + 1, S) // KEYS * KEYS)

    top = tl.full((QUERIES, KEYS), float("-inf"), tl.float32)
    bottom = tl.full((QUERIES, KEYS), float("inf"), tl.float32)
    for at in range(begin, end, KEYS):
        key = at + tl.arange(0, KEYS)
        logits = _products(query, q, k, key, S, q_feature, k_token, k_feature, False, D, FEATURES, QUERIES, KEYS)
        top = tl.maximum(top, logits, propagate_nan=tl.PropagateNan.ALL)
        bottom = tl.minimum(bottom, logits, propagate_nan=tl.PropagateNan.ALL)
    before = tl.cdiv(tl.maximum(tl.minimum(begin, high) - low, 0), KEYS)
    after = tl.cdiv(tl.maximum(high - end, 0), KEYS)
    for at in range(before + after):
        key = tl.where(at < before, low + at * KEYS, end + (at - before) * KEYS) + tl.arange(0, KEYS)
        logits = _products(query, q, k, key, S, q_feature, k_token, k_feature, True, D, FEATURES, QUERIES, KEYS)
        seen = (key[None, :] >= (place - left)[:, None]) & (key[None, :] <= (place + right)[:, None])
        seen = seen & (key < S)[None, :]
        top = tl.maximum(top, tl.where(seen, logits, float("-inf")), propagate_nan=tl.PropagateNan.ALL)
        bottom = tl.minimum(bottom, tl.where(seen, logits, float("inf")), propagate_nan=tl.PropagateNan.ALL)

    has_nan = tl.max(tl.max((top != top).to(tl.int32), 1), 0) > 0
    highest = tl.max(tl.max(tl.where(top != top, float("-inf"), top), 1), 0)
    lowest = tl.min(tl.min(tl.where(bottom != bottom, float("inf"), bottom), 1), 0)
    has_none = (highest == float("-inf")) & (lowest == float("inf"))
    one, other = highest * scale, lowest * scale  # the scale may be negative
    signed = tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)
    absolute = tl.maximum(signed, -tl.minimum(one, other), propagate_nan=tl.PropagateNan.ALL)
    signed = tl.where(has_nan, float("nan"), tl.where(has_none, float("-inf"), signed))
    absolute = tl.where(has_nan, float("nan"), tl.where(has_none, float("-inf"), absolute))
    extremes += head.to(tl.int64) * row + batch * pieces + piece
    tl.store(extremes, signed)
    tl.store(extremes + plane, absolute)
