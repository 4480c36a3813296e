"""A probe is one sequence of a micro-batch, whatever the arguments are wrapped in and wherever the batch is."""

import collections
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from internist.observe.batches import Batch, fresh

B, T, D = 4, 16, 8


def cut(
    *args: Any, root: nn.Module | None = None, way: int = 0, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    batch = Batch(args, kwargs, root or nn.Identity())
    return batch.take(batch.cuts()[way])


def ways(*args: Any, **kwargs: Any) -> list[str]:
    return [found.how for found in Batch(args, kwargs, nn.Identity()).cuts()]


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        (torch.ones(B, D), (1, D)),
        (torch.ones(B), (1,)),
        (torch.tensor(0.5), ()),
        (ids(3, B, T), (3, 1, T)),
        (torch.ones(B, 1, T, T), (1, 1, T, T)),
        (torch.ones(1, 1, T, T), (1, 1, T, T)),
        (torch.ones(T, T), (T, T)),
        (torch.ones(T, D), (T, D)),
        (ids(1, T), (1, T)),
        (ids(T), (T,)),
        (torch.ones(2, B, D), (2, 1, D)),
        (torch.ones(D), (D,)),
    ],
    ids=[
        "features", "labels", "a number", "position ids", "mask", "mask of all", "causal mask", "rotary table",
        "positions of all", "positions", "hidden state of an RNN", "weights of classes",
    ],
)  # fmt: skip
def test_what_comes_beside_token_ids_is_cut_along_its_batch(beside, expected):
    (kept, other), _ = cut(ids(B, T), beside)

    assert torch.equal(kept, ids(B, T)[:1])
    assert tuple(other.shape) == expected


def test_position_ids_are_told_from_rows_where_the_batch_is_three():
    (_, positions), _ = cut(ids(3, T), ids(3, 3, T))

    assert positions.shape == (3, 1, T)


def test_position_ids_that_come_first_do_not_lead():
    _, kept = cut(position_ids=ids(1, T), input_ids=ids(B, T))

    assert (kept["position_ids"].shape, kept["input_ids"].shape) == ((1, T), (1, T))


def test_embeddings_and_position_ids_share_their_batch():
    _, kept = cut(position_ids=ids(3, B, T), inputs_embeds=torch.ones(B, T, D))

    assert (kept["position_ids"].shape, kept["inputs_embeds"].shape) == ((3, 1, T), (1, T, D))


def test_sequences_first_are_cut_along_the_second_dimension():
    source, target = torch.ones(T, B, D), torch.ones(T + 1, B, D)
    (kept_source, kept_target), _ = cut(source, target)

    assert (kept_source.shape, kept_target.shape) == ((T, 1, D), (T + 1, 1, D))


def test_a_model_that_says_that_sequences_come_first_is_believed():
    (kept,), _ = cut(torch.ones(T, B, D), root=nn.LSTM(D, D))

    assert kept.shape == (T, 1, D)


def test_packed_sequences_are_taken_whole():
    lengths = torch.tensor([0, 5, 16], dtype=torch.int32)

    assert ways(ids(1, T), cu_seqlens=lengths) == ways(ids(T), cu_seqlens=lengths) == ["the whole micro-batch"]


def test_packed_sequences_of_too_many_tokens_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"shapes \[\(1, 5000\), \(3,\)\] have no batch dimension in common"):
        ways(ids(1, 5_000), cu_seqlens=torch.tensor([0, 5, 5_000]))


def test_a_stream_of_tokens_is_cut_at_its_beginning():
    (inputs, targets), _ = cut(ids(2_048), ids(2_048))

    assert inputs.shape == targets.shape == (128,)


def test_a_graph_whose_edges_are_numbers_of_nodes_is_never_cut():
    assert ways(torch.ones(6, 2), ids(2, 5)) == ["the whole micro-batch"]


def test_images_of_different_sizes_are_cut_by_their_list():
    images = [torch.ones(3, 8, 9), torch.ones(3, 7, 8)]
    targets = [{"boxes": torch.ones(2, 4)}, {"boxes": torch.ones(5, 4)}]
    (kept_images, kept_targets), _ = cut(images, targets)

    assert [i.shape for i in kept_images] == [(3, 8, 9)]
    assert [t["boxes"].shape for t in kept_targets] == [(2, 4)]


def test_prompts_and_lengths_in_lists_are_cut_with_their_rows():
    _, kept = cut(
        input_ids=ids(3, T), prompts=["a", "b", "c"], lengths=[3, 2, 1], scale=[1.0, 2.0], name="x", none=None
    )

    assert (kept["prompts"], kept["lengths"]) == (["a"], [3])
    assert (kept["scale"], kept["name"], kept["none"]) == ([1.0, 2.0], "x", None)


Named = collections.namedtuple("Named", "ids mask")


@dataclass
class Data:
    ids: Tensor
    mask: Tensor


class Plain:
    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        self.ids, self.mask, self.store = ids, mask, {"again": ids}


@pytest.mark.parametrize("wrap", [Named, Data, Plain])
def test_wrapped_arguments_keep_their_class_and_what_they_share(wrap):
    (kept,), _ = cut(wrap(ids(B, T), torch.ones(B, T)))

    assert type(kept) is wrap
    assert (kept.ids.shape, kept.mask.shape) == ((1, T), (1, T))
    assert not isinstance(kept, Plain) or kept.store["again"] is kept.ids


def test_user_dicts_and_nested_mappings_are_cut():
    batch = collections.UserDict(ids=ids(B, T), more=collections.OrderedDict(mask=torch.ones(B, T)))
    (kept,), _ = cut(batch)

    assert type(kept) is collections.UserDict and type(kept["more"]) is collections.OrderedDict
    assert (kept["ids"].shape, kept["more"]["mask"].shape) == ((1, T), (1, T))
    assert batch["ids"].shape == (B, T)


def test_batches_and_caches_of_transformers_are_cut():
    transformers = pytest.importorskip("transformers")
    cache = transformers.DynamicCache()
    cache.update(torch.ones(B, 2, 3, D), torch.ones(B, 2, 3, D), 0)
    batch = transformers.BatchEncoding({"input_ids": ids(B, T), "attention_mask": torch.ones(B, T)})
    (kept,), kwargs = cut(batch, past_key_values=cache)

    assert kept["input_ids"].shape == (1, T)
    assert kwargs["past_key_values"].layers[0].keys.shape == (1, 2, 3, D)
    assert cache.layers[0].keys.shape == (B, 2, 3, D)


def test_every_forward_gets_copies_of_its_own():
    generator = torch.Generator().manual_seed(3)
    arguments = cut(ids(B, T), {"cache": [torch.ones(B, D)]}, generator=generator)
    (first, cache), kwargs = fresh(arguments)
    first.fill_(7)
    cache["cache"].append("more")
    torch.rand((), generator=kwargs["generator"])
    (second, again), others = fresh(arguments)

    assert torch.equal(second, ids(B, T)[:1]) and len(again["cache"]) == 1
    assert torch.equal(others["generator"].get_state(), generator.get_state())


def test_inputs_that_want_a_gradient_and_those_of_a_graph_can_be_taken():
    leaf, inner = torch.ones(B, D, requires_grad=True), torch.ones(B, D, requires_grad=True) * 2
    (kept_leaf, kept_inner), _ = fresh(cut(leaf, inner))

    assert kept_leaf.requires_grad and kept_leaf is not leaf and not kept_inner.requires_grad


def test_modules_among_the_arguments_are_shared_and_their_parameters_are_no_batch():
    head = nn.Linear(D, 3)
    (_, kept), _ = fresh(cut(torch.ones(B, D), head))

    assert kept is head


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ((x for x in [torch.ones(2)]), "generator, which a forward uses up"),
        ("text", "no tensor argument"),
        (torch.tensor(1.0), "no tensor argument"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_reason(argument, reason):
    with pytest.raises(ValueError, match=reason):
        cut(argument)


def test_a_probe_that_would_be_felt_is_refused(monkeypatch):
    monkeypatch.setattr("internist.observe.batches.PROBE_BYTES", 1_000)

    with pytest.raises(ValueError, match="a probe of 0 MiB is larger"):
        cut(ids(B, T), torch.ones(T, T))


def test_packed_sequences_of_an_rnn_are_taken_whole():
    packed = nn.utils.rnn.pack_padded_sequence(torch.ones(3, 5, 2), torch.tensor([5, 4, 2]), batch_first=True)
    (kept,), _ = cut(packed)

    assert type(kept) is type(packed) and torch.equal(kept.data, packed.data)


def test_the_whole_micro_batch_is_the_last_resort_where_it_is_small():
    assert ways(ids(B, T))[:2] == ["the first row along dimension 0", "the whole micro-batch"]
    assert "the whole micro-batch" not in ways(ids(B, 4_096))
