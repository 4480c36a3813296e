"""Calls of attention functions, read: from the arguments of each kernel to what decides the logits of its softmax.

Shapes: B batch, H query heads, K key heads, T queries, S keys, D head features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from internist.measures.attention import NOT_MEASURED, MaskMod, ScoreMod, max_logits

Window = tuple[int | None, int | None]
_UNREADABLE = ("block_table", "seqused_k", "qv", "attention_chunk", "q_descale", "k_descale")
"""Arguments of flash attention under which the logits are others than those of its queries and keys."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What decides the logits of one call of attention, in the words of `measures.attention.max_logits`."""

    query: Tensor
    """(..., H, T, D)."""
    key: Tensor
    """(..., K, S, D)."""
    mask: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False
    softcap: float | None = None
    window: Window = (None, None)
    from_end: bool = False
    score_mod: ScoreMod | None = None
    mask_mod: MaskMod | None = None

    @property
    def factor(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else float(self.scale)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors it is about."""
        return (self.query, self.key) if self.mask is None else (self.query, self.key, self.mask)

    def max_logits(self) -> Tensor:
        """(2, H) float32: the largest logit of each head, signed and absolute."""
        return max_logits(
            self.query.detach(),
            self.key.detach(),
            mask=None if self.mask is None else self.mask.detach(),
            is_causal=self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
            softcap=self.softcap,
            window=self.window,
            from_end=self.from_end,
            score_mod=self.score_mod,
            mask_mod=self.mask_mod,
        )


Reader = Callable[..., AttentionCall | None]
"""From a function's arguments; None where they do not say what enters the softmax."""


def read_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """`torch.nn.functional.scaled_dot_product_attention`, with the biases of `torch.nn.attention.bias`."""
    variant = getattr(attn_mask, "variant", None)
    if variant is not None:
        from_end = variant.name == "LOWER_RIGHT"
        return AttentionCall(query, key, None, True, scale, enable_gqa, from_end=from_end)
    return AttentionCall(query, key, attn_mask, is_causal, scale, enable_gqa)


def read_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> AttentionCall:
    """`torch.nn.attention.flex_attention.flex_attention`."""
    return AttentionCall(
        query,
        key,
        scale=scale,
        enable_gqa=enable_gqa,
        score_mod=None if score_mod is None else vectorized_score_mod(score_mod),
        mask_mod=None if block_mask is None else vectorized_mask_mod(block_mask.mask_mod),
    )


def read_flex_eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: Any = None,  # noqa: ARG001
    score_mod_other_buffers: tuple[Any, ...] = (),
    mask_mod_other_buffers: tuple[Any, ...] = (),
) -> AttentionCall:
    """What FlexAttention calls where it is not compiled, whoever holds it by whatever name."""

    def of_score(*args: Tensor) -> Tensor:
        return score_mod(*args, *score_mod_other_buffers)

    def of_pair(*args: Tensor) -> Tensor:
        seen: Tensor = block_mask[-1](*args, *mask_mod_other_buffers)
        return seen

    return AttentionCall(
        query,
        key,
        scale=scale,
        enable_gqa=True,
        score_mod=vectorized_score_mod(of_score),
        mask_mod=vectorized_mask_mod(of_pair),
    )


def read_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    block_table: Tensor | None = None,
    seqused_k: Tensor | None = None,
    **_: Any,
) -> AttentionCall | None:
    """`torch.nn.attention.varlen.varlen_attn`."""
    if block_table is not None or seqused_k is not None or cu_seq_k is None:
        return None
    window = (window_size[0], 0) if is_causal else window_size
    return _packed(query, key, cu_seq_q, cu_seq_k, _longest(max_q, max_k), window, scale, None)


def flash_reader(original: Any) -> Reader:
    """The reader of a function of `flash_attn` of any version: its arguments are told by its own signature."""
    arguments = signature(original)

    def read(*args: Any, **kwargs: Any) -> AttentionCall | None:
        return _read_flash(arguments.bind(*args, **kwargs).arguments)

    return read


def _read_flash(given: Mapping[str, Any]) -> AttentionCall | None:
    if any(isinstance(given.get(name), Tensor) or given.get(name) for name in _UNREADABLE):
        return None
    if "qkv" in given:
        q, k = given["qkv"].unbind(-3)[:2]
    else:
        q, k = given["q"], given["k"] if "k" in given else given["kv"].unbind(-3)[0]
    left, right = given.get("window_size") or (-1, -1)
    window = left, 0 if given.get("causal") else right
    scale, softcap, slopes = given.get("softmax_scale"), given.get("softcap") or None, given.get("alibi_slopes")
    starts_q = given.get("cu_seqlens_q", given.get("cu_seqlens"))
    if starts_q is not None:
        if slopes is not None:
            return None
        starts_k = given.get("cu_seqlens_k", starts_q)
        longest = _longest(*(given.get(name) for name in ("max_seqlen", "max_seqlen_q", "max_seqlen_k")))
        return _packed(q, k, starts_q, starts_k, longest, window, scale, softcap)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    linear = None if slopes is None else _alibi(slopes, k.shape[-2] - q.shape[-2])
    return AttentionCall(
        q, k, scale=scale, enable_gqa=True, softcap=softcap, window=window, from_end=True, score_mod=linear
    )


def read_native(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,  # noqa: ARG001
    proj_bias: Tensor,  # noqa: ARG001
    mask: Tensor | None = None,
    need_weights: bool = True,  # noqa: ARG001
    average_attn_weights: bool = True,  # noqa: ARG001
    mask_type: int | None = None,
) -> AttentionCall | None:
    """The fast path of `nn.MultiheadAttention`: queries and keys are projected inside, so they are projected again."""
    if query.is_nested or query.ndim != 3:
        return None

    def heads(x: Tensor, first: int) -> Tensor:
        rows = slice(first, first + embed_dim)
        return functional.linear(x, qkv_weight[rows], qkv_bias[rows]).view(*x.shape[:2], num_head, -1).transpose(1, 2)

    with torch.no_grad():
        q, k = heads(query, 0), heads(key, embed_dim)
    if mask is not None and mask_type == 1:  # of keys, (B, S); 0 is (T, S), 2 is (B, H, T, S)
        mask = mask[:, None, None, :]
    return AttentionCall(q, k, mask if mask is None or mask.is_floating_point() else ~mask)


def read_interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    attention_mask: Any = None,
    dropout: float = 0.0,  # noqa: ARG001
    scaling: float | None = None,
    *,
    states_all: bool = False,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **rest: Any,
) -> AttentionCall | None:
    """An attention function of Hugging Face's registry.

    Args:
        module: the attention module; `is_causal` is read from it where it is not given.
        query: (B, H, T, D); also key (B, K, S, D) and the others as the registry's functions take them.
        states_all: the function hides what the mask hides and no more (eager, FlexAttention). Others are causal, and
            keep to the window, where the mask does not say so already.
    """
    if any(rest.get(name) is not None for name in ("block_table", "k_cache", "cache")):
        return None
    T, S = query.shape[-2], key.shape[-2]
    mask, mask_mod = None, None
    implied = not states_all
    if hasattr(attention_mask, "mask_mod"):
        mask_mod, implied = vectorized_mask_mod(attention_mask.mask_mod), False
    elif isinstance(attention_mask, Tensor) and attention_mask.ndim == 4:
        mask, implied = attention_mask[..., :S], False
    elif isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        mask_mod = _padding(attention_mask.bool(), S - T)
    elif attention_mask is not None:
        return None
    if position_bias is not None:
        mask = _added(position_bias[..., :S], mask)
    causal = implied and T > 1 and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    reach = sliding_window - 1 if implied and sliding_window is not None and sliding_window < S else None
    window: Window = (reach, 0 if causal else reach)
    if implied and attention_mask is None and cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        q, k = (x.transpose(1, 2).flatten(0, 1) for x in (query, key))
        longest = _longest(max_length_q, max_length_k)
        return _packed(q, k, cu_seq_lens_q, cu_seq_lens_k, longest, window, scaling, softcap)
    if implied and attention_mask is None and position_ids is not None and position_ids.numel() == T == S:
        mask_mod = _restarts(position_ids)
    return AttentionCall(
        query,
        key,
        mask,
        scale=scaling,
        enable_gqa=True,
        softcap=softcap,
        window=window,
        from_end=True,
        mask_mod=mask_mod,
    )


def vectorized_score_mod(score_mod: Callable[..., Tensor]) -> ScoreMod:
    """FlexAttention's function of one score, for all scores at once."""

    def modified(scores: Tensor, *places: Tensor) -> Tensor:
        return _over_indices(score_mod, (0,))(scores, *(place.flatten() for place in places))

    return modified


def vectorized_mask_mod(mask_mod: Callable[..., Tensor]) -> MaskMod:
    """FlexAttention's function of one pair of query and key, for all pairs at once."""

    def seen(*places: Tensor) -> Tensor:
        return _over_indices(mask_mod, ())(*(place.flatten() for place in places))

    return seen


def _over_indices(function: Callable[..., Tensor], before: tuple[int, ...]) -> Callable[..., Tensor]:
    """A function of scalar indices of batch, head, query and key over vectors of them, as torch does it itself: scalars
    that index tensors are gathered."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    for place in (3, 2, 1, 0):
        dims: tuple[int | None, ...] = tuple(0 if place == own else None for own in range(4))
        function = torch.vmap(function, in_dims=before + dims)

    def call(*args: Tensor) -> Tensor:
        with TransformGetItemToIndex():
            return function(*args)

    return call


def _packed(
    q: Tensor,
    k: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest: int,
    window: Window,
    scale: float | None,
    softcap: float | None,
) -> AttentionCall:
    """Sequences one after another in one dimension, (tokens, heads, D): queries see keys of their own sequence."""
    q, k = q.transpose(0, 1).unsqueeze(0), k.transpose(0, 1).unsqueeze(0)
    left, right = (None if one is None or one < 0 else one for one in window)
    sequence_q, place_q = _sequences(starts_q, q.shape[-2])
    sequence_k, place_k = _sequences(starts_k, k.shape[-2])
    lengths = starts_k.diff() - starts_q.diff()
    own_q = place_q + functional.pad(lengths, (0, 1))[sequence_q]
    count = len(starts_q) - 1

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        ahead = place_k[key] - own_q[query]
        together = (sequence_q[query] == sequence_k[key]) & (sequence_q[query] < count)
        if left is not None:
            together = together & (ahead >= -left)
        return together if right is None else together & (ahead <= right)

    near: Window = (None, None)
    if starts_q is starts_k and longest > 0:  # no key of the same sequence is farther than it is long
        near = longest - 1 if left is None else min(left, longest - 1), longest - 1 if right is None else right
    return AttentionCall(q, k, scale=scale, enable_gqa=True, softcap=softcap, window=near, mask_mod=seen)


def _longest(*lengths: object) -> int:
    """The largest of the lengths that are known on the host; 0: none is, and none is waited for."""
    return max((each for each in lengths if isinstance(each, int)), default=0)


def _sequences(starts: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Of each token, the number of its sequence (as many as there are: of none) and its place in it."""
    token = torch.arange(tokens, device=starts.device, dtype=starts.dtype)
    sequence = torch.searchsorted(starts[1:].contiguous(), token, right=True)
    return sequence, token - starts[sequence]


def _restarts(position_ids: Tensor) -> MaskMod:
    """Sequences begin where positions begin at 0 again."""
    sequence = (position_ids.reshape(-1) == 0).cumsum(0)
    return lambda _b, _h, query, key: sequence[query] == sequence[key]


def _padding(holds_BS: Tensor, offset: int) -> MaskMod:
    """Padding neither sees nor is seen."""
    return lambda b, _h, query, key: holds_BS[b, key] & holds_BS[b, (query + offset).clamp(min=0)]


def _alibi(slopes: Tensor, offset: int) -> ScoreMod:
    """Logits fall with the distance of the key by each head's slope, (H,) or (B, H)."""
    of = slopes.float().unsqueeze(0) if slopes.ndim == 1 else slopes.float()

    def modified(scores: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return scores - of[b if len(of) > 1 else 0, h] * (query + offset - key).abs()

    return modified


def _added(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    return torch.where(mask, bias, NOT_MEASURED) if mask.dtype == torch.bool else bias + mask
