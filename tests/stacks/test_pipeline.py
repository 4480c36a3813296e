"""Stages of a pipeline: every rank tells of its own layers, under names that are those of the whole model."""

from typing import Any

import pytest

from tests.client.optim.gang import Gang
from tests.stacks import pipeline_scripts, sharded_scripts
from tests.stacks.merging import merged
from tests.stacks.test_sharded import WHOLE, assert_merged, assert_same

OF_THE_FIRST_PIECE = ("update.own", "update.own_mean")
"""Of a step's first micro-batch, which one process does not cut."""


@pytest.fixture(scope="module")
def alone():
    return merged([sharded_scripts.alone("deep")])


def trained(group: Gang, schedule: str, watched: str, **options: Any) -> list[dict[str, Any]]:
    return group.run(pipeline_scripts.__name__, "pipeline_of", schedule, watched, options)


@pytest.mark.parametrize(
    ("world", "schedule", "shards"),
    [(2, "GPipe", False), (2, "1F1B", False), (4, "1F1B", True)],
    ids=["GPipe", "1F1B", "1F1B of sharded stages"],
)
def test_stages_make_one_model_with_the_values_of_one_process(ranks, alone, world, schedule, shards):
    bare, watched = (trained(ranks(world), schedule, how, shards=shards) for how in ("no", "after"))

    assert_same(watched, bare)
    found = merged([rank["parts"] for rank in watched])
    assert not assert_merged(found, alone, apart=(*OF_THE_FIRST_PIECE, *(WHOLE if shards else ())))
    subjects = {subject for metric, subject, *_ in found if metric.startswith("update.")}
    output_of_first_stage = {"model"}
    assert subjects <= {s for metric, s, *_ in alone if metric.startswith("update.")} | output_of_first_stage
    assert [found["learning_rate", group, None, "exact"][0] for group in ("0", "pp1.0")] == pytest.approx([0.01] * 2)


def test_each_stage_answers_for_its_own_layers(ranks):
    watched = trained(ranks(2), "GPipe", "after")

    covered = [{subject for kind, subject, *_ in rank["coverage"] if kind == "parameter"} for rank in watched]
    assert not covered[0] & covered[1]
    assert {name for name in covered[1] if name.startswith("blocks.")} == {
        name.replace("blocks.0", "blocks.2").replace("blocks.1", "blocks.3")
        for name in covered[0]
        if name.startswith("blocks.")
    }
    places = [{s.facts.order for _, s, _, _ in rank["parts"] if s.metric == "weight.rms"} for rank in watched]
    assert max(places[0]) < min(places[1])
    reasons = {reason for _, _, family, _, reason in watched[1]["coverage"] if family == "update.feature" and reason}
    assert reasons == {"it is a later stage of a pipeline: what enters it has changed too"}


def test_stages_that_are_interleaved_make_one_model_too(ranks, alone):
    bare, watched = (ranks(2).run(pipeline_scripts.__name__, "interleaved", how) for how in ("no", "after"))

    assert_same(watched, bare)
    found = merged([rank["parts"] for rank in watched])
    lacking = assert_merged(found, alone, apart=OF_THE_FIRST_PIECE)
    of_blocks = {f"blocks.{n}{inner}" for n in range(4) for inner in ("", ".mlp")}
    lacking = {(metric, subject) for metric, subject in lacking if subject not in of_blocks}
    assert not lacking, sorted(lacking)
