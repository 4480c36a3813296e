"""Sentences that are cut over ranks by hand, as for long contexts: a rank counts for as many tokens as it has, and the
merged values are those of one process that has them all."""

import pytest

from tests.stacks import sequence_scripts as scripts
from tests.stacks.merging import merged
from tests.stacks.sequence_scripts import CHOSEN, EXPERTS

ROUNDING = 2e-5
"""Relative: sums of float32 in another order, over some steps of training."""
EXACT = (
    "activation.rms",
    "activation.rms_max",
    "activation.abs_max",
    "activation.nonfinite",
    "block.contribution",
    "attention.max_logit",
    "attention.max_abs_logit",
    "output.log_z",
    "output.log_z_max",
    "router.load",
    "router.entropy",
    "weight.rms",
    "update.rms",
    "gradient.rms",
    "gradient.global_norm",
)


def test_ranks_with_pieces_of_the_sentences_are_merged_to_the_values_of_one_process(ranks):
    group = ranks(2)
    bare = group.run(scripts.__name__, "bare")
    watched = group.run(scripts.__name__, "trained")
    alone = merged([scripts.trained()["parts"]])

    assert [rank["losses"] for rank in watched] == [rank["losses"] for rank in bare]
    found = merged([rank["parts"] for rank in watched])
    seen = set()
    for key, points in alone.items():
        if key[0] in EXACT:
            seen.add(key[0])
            assert found[key] == pytest.approx(points, rel=ROUNDING, abs=1e-7), key
    assert seen == set(EXACT)
    loads = [found["router.load", "blocks.1.mlp.router", expert, "exact"][0] for expert in range(EXPERTS)]
    assert sum(loads) == pytest.approx(CHOSEN, rel=ROUNDING)


def test_probes_are_taken_on_each_rank_and_say_that_they_see_pairs_of_its_own_alone(ranks):
    watched = ranks(2).run(scripts.__name__, "trained")

    alone = merged([scripts.trained()["parts"]])
    found = merged([rank["parts"] for rank in watched])
    for rank in watched:
        told = {series.metric for _, series, _, _ in rank["parts"] if series.subject == "blocks.1"}
        assert {"activation.spread", "activation.lipschitz"} <= told
    for block in ("blocks.0", "blocks.1"):
        key = "activation.spread", block, None, "lower"
        assert all(0 < found[key][step] <= value * (1 + ROUNDING) for step, value in alone[key].items())
