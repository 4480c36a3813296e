"""Ranks together take the step of one process: replicas, shards, tensor parallel; on gloo, with 2 and 4 ranks."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.client.optim.gang import Gang

CASES = "tests.client.optim.optim_ranks"
LAYOUTS = ("plain", "replicated", "rows", "columns", "hybrid", "rows_and_columns", "rows_twice")
FEW_LAYOUTS = ("plain", "rows", "rows_and_columns")

SAME = 1e-6
"""Of weights after four steps of 0.05, given the same gradients, in float32 and bfloat16 alike: ranks do one process's
arithmetic on the same numbers, at places alike. Seen: 0 in every case, with torch's vectors and with MKL's of AVX-512,
AVX2 and none, and on the code path that MKL takes on processors that are not Intel's."""

TRAINED = 2e-4
"""As above, after real backward passes, which sum gradients in another order."""

SUMMED = 5e-6
"""Of weights after five steps of 0.01 with a round, whose products ranks sum in another order."""

MATRICES = {
    (16, 16): 2, (5, 7): 1, (13, 6): 1, (3, 5): 1, (2, 6): 1, (4, 4): 3, (8, 8): 1, (2, 8): 2, (8, 5): 1, (4, 5): 6,
    (6, 18): 1,
}  # fmt: skip
"""Of the parameters in `optim_ranks.SHAPES`, by shape."""


@pytest.fixture(scope="module")
def two() -> Iterator[Gang]:
    made = Gang(2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def four() -> Iterator[Gang]:
    made = Gang(4)
    yield made
    made.close()


@pytest.fixture(scope="module", params=["two", "four"])
def gang(request: pytest.FixtureRequest) -> Gang:
    made: Gang = request.getfixturevalue(request.param)
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["float32", "decay", "slow"])
def test_ranks_step_like_one_process(gang, kind, layout):
    for differences in gang.run(CASES, "steps_like_one_process", kind, layout):
        assert max(differences.values()) <= SAME, differences


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
@pytest.mark.parametrize(
    "kind", ["bfloat16", "no_nesterov", "switches", "lr_tensor", "cap", "retract", "none", "initialised", "default"]
)
def test_every_option_is_that_of_one_process(gang, kind, layout):
    for differences in gang.run(CASES, "steps_like_one_process", kind, layout):
        assert max(differences.values()) <= SAME, differences


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "decay"])
def test_ranks_multiply_what_one_process_does_at_places_alike(gang, kind, layout):
    """On this the rounding of a product may depend (`internist.optim.alignment`), if not on every processor."""
    answers = gang.run(CASES, "products", kind, layout)

    alone = answers[0][1]
    assert alone.total() > 0
    assert sum((here for here, _ in answers), Counter()) == alone


@pytest.mark.parametrize("how", ["ddp", "sharded", "hybrid", "tensor", "data_and_tensor"])
@pytest.mark.parametrize("kind", ["float32", "decay"])
def test_real_modules_train_like_one_process(gang, kind, how):
    for differences in gang.run(CASES, "trains_like_one_process", kind, how):
        assert max(differences) <= TRAINED


@pytest.mark.parametrize(("kind", "layout"), [(k, layout) for k in ("float32", "decay") for layout in LAYOUTS])
def test_each_matrix_is_orthogonalised_whole_and_once(gang, kind, layout):
    seen = Counter(shape for rank in gang.run(CASES, "orthogonalised", kind, layout) for shape in rank)

    assert seen == MATRICES


@pytest.mark.parametrize(
    ("kind", "layout", "expected"),
    [
        # agreement; directions, shared; and weights, of the one parameter whose matrices are of several shapes
        ("float32", "plain", {"allreduce_": 1, "_allgather_base_": 2}),
        # agreement; directions there and back; and the weights of that one
        ("float32", "rows", {"allreduce_": 1, "alltoall_base_": 4}),
        # agreement; weights, shared; state
        ("decay", "plain", {"allreduce_": 1, "_allgather_base_": 2}),
        # agreement; directions there, weights there and back; state
        ("decay", "rows_and_columns", {"allreduce_": 1, "alltoall_base_": 3, "_allgather_base_": 1}),
    ],
)
def test_collectives_of_a_step_are_few_whatever_the_number_of_matrices(gang, kind, layout, expected):
    assert all(counts == expected for counts in gang.run(CASES, "collectives", kind, layout))


@pytest.mark.parametrize("layout", ["rows", "hybrid", "rows_and_columns"])
def test_muon_plus_plus_sends_what_muon_does_but_for_vectors_at_rounds_and_whole_weights_at_the_first(four, layout):
    muon, plus = four.run(CASES, "large_steps", "float32", layout), four.run(CASES, "large_steps", "slow", layout)

    theirs, ours = ([sum(sent) for sent in zip(*(sent for sent, _ in of), strict=True)] for of in (muon, plus))
    assert len(set(theirs[1:])) == 1  # before the first, ranks learn that they multiply alike
    more = [sent - theirs[-1] for sent in ours]
    assert [at for at, sent in enumerate(more, start=1) if sent] == [1, 4]
    assert more[3] < more[0]
    assert max(difference for _, difference in plus) <= SUMMED


@pytest.mark.parametrize("kind", ["no_decay", "decay"])
def test_one_rank_that_looks_at_whole_matrices_costs_no_collective(gang, kind):
    bare = gang.run(CASES, "collectives", kind, "rows")
    answers = gang.run(CASES, "collectives_and_seen", kind, "rows")

    assert [counts for counts, _, _ in answers] == bare
    assert answers[0][1]  # that it owns
    assert not any(seen for _, seen, _ in answers[1:])
    assert not any(left for _, _, left in answers)


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
def test_a_gradient_that_no_rank_has_is_skipped_in_silence(gang, layout):
    for differences, log in gang.run(CASES, "without_gradients", layout, ["square", "heads", "gain"], []):
        assert max(differences.values()) <= SAME
        assert log == []


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
def test_a_gradient_that_some_ranks_lack_steps_nowhere_and_is_told_once(gang, layout):
    for differences, log in gang.run(CASES, "without_gradients", layout, [], ["square", "unequal_heads"]):
        assert max(differences.values()) <= SAME
        assert len(log) == 2
        assert "parameter 'square' of shape (16, 16) has a gradient on" in log[0]


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
def test_a_step_without_any_gradient_changes_nothing(gang, layout):
    assert set(gang.run(CASES, "steps_without_any_gradient", layout)) == {0.0}


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
def test_small_rounds_make_the_same_step(gang, layout):
    for rounds, difference in gang.run(CASES, "in_small_rounds", layout, 60):
        assert rounds > 3
        assert difference <= SAME


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
def test_groups_added_later_get_owners(gang, layout):
    assert max(gang.run(CASES, "with_a_group_added", layout)) <= SAME


def test_gradients_placed_otherwise_than_their_weights_are_brought_there(gang):
    assert max(gang.run(CASES, "with_partial_gradients")) <= SAME


def test_meshes_over_parts_of_the_world_step_apart(four):
    assert max(four.run(CASES, "in_pairs")) <= SAME


@pytest.mark.parametrize("layout", ["plain", "rows"])
@pytest.mark.parametrize("kind", ["float32", "decay"])
def test_each_matrix_is_told_of_by_one_rank(gang, kind, layout):
    told = gang.run(CASES, "told", kind, layout)

    times = Counter(name for rank in told for name in rank)
    assert set(times) == {name for name in times if name not in ("gain", "embedding")}
    assert len(times) == 11
    assert all(count == 1 or name == "experts" for name, count in times.items())
    assert all("optimizer.orthogonality" in metrics for rank in told for metrics in rank.values())


@pytest.mark.parametrize("layout", ["rows", "rows_and_columns"])
def test_momenta_stay_sharded(gang, layout):
    assert all(gang.run(CASES, "momenta_stay_sharded", layout))


@pytest.mark.parametrize("layout", ["plain", "rows", "columns", "hybrid"])
@pytest.mark.parametrize("kind", ["float32", "decay"])
def test_a_checkpoint_of_four_ranks_resumes_on_two(two, four, kind, layout, tmp_path):
    four.run(CASES, "save", kind, layout, str(tmp_path))

    for differences in two.run(CASES, "resume", kind, layout, str(tmp_path)):
        assert max(differences.values()) <= SAME, differences


@pytest.mark.parametrize("size", [1, 3, 8, 13])
def test_regions_are_where_torch_puts_shards(gang, size):
    assert all(gang.run(CASES, "regions_are_torchs", size))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("partial", "ValueError: expected parameters placed by Shard or Replicate, got (Partial"),
        ("sparse", "TypeError: sparse gradients are not supported, got one of shape (4, 4)"),
        ("plain", "TypeError: expected the gradient of a DTensor to be one, got Tensor"),
        ("two_kinds", "ValueError: some ranks multiply matrices in bfloat16 and some in float32"),
    ],
)
def test_what_cannot_be_stepped_is_refused_on_every_rank(gang, what, message):
    for said in gang.run(CASES, "message_of", what):
        assert said.startswith(message)
