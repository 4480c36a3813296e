import torch

from internist.record.trail import STEPS, Trail
from internist.schema.wire import Series

RATE, LOSS = Series(0, "learning_rate", "group", "0"), Series(1, "loss", "model", "model")


def test_the_trail_holds_the_last_steps_and_is_taken_once():
    trail = Trail()
    for step in range(STEPS + 10):
        trail.note(step, [(RATE, 0.1 * step)])

    taken = trail.take()

    assert [step for step, *_ in taken] == list(range(10, STEPS + 10))
    assert taken[-1][2] == 0.1 * (STEPS + 9) and trail.take() == []


def test_a_tensor_that_was_written_to_since_is_left_out_and_its_neighbours_stay():
    trail, written, kept = Trail(), torch.tensor(1.0), torch.tensor(2.0)
    trail.note(0, [(LOSS, written), (RATE, 0.5)])
    trail.note(1, [(LOSS, kept)])

    written.mul_(3)

    assert [(step, series, float(value)) for step, series, value in trail.take()] == [(0, RATE, 0.5), (1, LOSS, 2.0)]


def test_memory_that_two_steps_share_tells_of_neither():
    """As the result of a graph that is replayed: it is written without a trace that torch could see."""
    trail, buffer = Trail(), torch.tensor(1.0)
    for step in range(2):
        buffer.numpy()[...] = step
        trail.note(step, [(LOSS, buffer), (RATE, 0.5)])

    assert [(step, series) for step, series, _ in trail.take()] == [(0, RATE), (1, RATE)]


def test_a_kept_tensor_keeps_no_graph_alive():
    trail, weight = Trail(), torch.ones(1, requires_grad=True)
    trail.note(0, [(LOSS, (weight * 2).sum())])

    ((_, _, value),) = trail.take()

    assert isinstance(value, torch.Tensor) and value.grad_fn is None
