"""Layers that are cut over ranks: columns, rows, pieces of the sequence, pieces of the vocabulary."""

import pytest

from tests.stacks import sharded_scripts, tensor_scripts
from tests.stacks.merging import merged
from tests.stacks.models import ATTENTIONS, HEADS
from tests.stacks.test_sharded import WHOLE, assert_merged, assert_same

COLUMNS = {f"{branch}.{layer}" for branch in ATTENTIONS for layer in "qkv"} | {"blocks.0.mlp.0", "blocks.1.mlp.0"}
ROWS = {f"{branch}.proj" for branch in ATTENTIONS} | {"blocks.0.mlp.2", "blocks.1.mlp.2"}
OWN = ("update.own", "update.own_mean")


@pytest.fixture(scope="module")
def alone():
    return merged([sharded_scripts.alone("heads")])


@pytest.mark.parametrize(
    ("world", "options"),
    [
        (2, {}),
        (2, {"sequence": True}),
        (2, {"vocabulary": True}),
        (4, {"shards": True, "sequence": True, "vocabulary": True, "reduces": True}),
    ],
    ids=["columns and rows", "pieces of the sequence", "pieces of the vocabulary", "all of it, sharded"],
)
def test_values_of_cut_layers_are_merged_to_those_of_one_process(ranks, alone, world, options):
    bare, watched = (
        ranks(world).run(tensor_scripts.__name__, "tensor_parallel_of", how, options) for how in ("no", "after")
    )

    assert_same(watched, bare)
    found = merged([rank["parts"] for rank in watched])
    is_partial = options.get("sequence") and not options.get("shards")
    told = () if options.get("reduces") else WHOLE
    lacking = assert_merged(found, alone, apart=(*told, *(("gradient.global_norm",) if is_partial else ())))
    if options.get("reduces"):
        assert {key[3] for key in found if key[0] == "weight.spectral_norm"} == {"exact"}
    cut = COLUMNS | ({"head"} if options.get("vocabulary") else set())
    sums = {name for metric, name in lacking if metric in OWN}
    assert ROWS <= sums <= ROWS | {"embed", "position", "head"}, "sums over ranks, and rows of embeddings"
    assert {name for metric, name in lacking if metric == "activation.rms_q99"} == cut
    unread = {name for metric, name in lacking if metric == "gradient.rms"}
    reasons = {subject: why for _, subject, family, _, why in watched[0]["coverage"] if family == "gradient" and why}
    assert unread == set(reasons)
    assert bool(unread) == bool(is_partial)
    assert all("a sum over ranks" in why for why in reasons.values())
    assert {name for metric, name in lacking if metric == "gradient.over_eps"} <= unread
    assert {metric for metric, _ in lacking} <= {*OWN, "activation.rms_q99", "gradient.rms", "gradient.over_eps"}


def test_heads_of_all_ranks_have_numbers_of_their_own(ranks):
    watched = ranks(2).run(tensor_scripts.__name__, "tensor_parallel_of", "after", {})

    heads = [{s.index for _, s, _, _ in rank["parts"] if s.metric == "attention.max_logit"} for rank in watched]
    assert heads == [set(range(HEADS // 2)), set(range(HEADS // 2, HEADS))]
