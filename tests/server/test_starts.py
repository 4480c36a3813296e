"""A first step that the client learns only after it has introduced itself."""

from dataclasses import replace

import pytest

from internist.schema.wire import Series
from tests.server.sending import Sender, module_series, start_of


def first_step(sender):
    return sender.get()["attempts"][0]["start_step"]


def corrected(sender, step):
    sender.start = replace(sender.start, start_step=step)
    return sender


def measured(sender):
    return sender.declare([module_series(0, "activation.rms", "blocks.0")])


def by_start(sender, step):
    corrected(sender, step).post_start()


def by_segment(sender, step):
    sender.send([sender.record(start=corrected(sender, step).start)])


@pytest.mark.parametrize("again", [by_start, by_segment])
def test_a_larger_first_step_replaces_the_one_that_was_told_before(api, again):
    sender = Sender(api)

    again(sender, 1000)

    assert first_step(sender) == 1000


@pytest.mark.parametrize("again", [by_start, by_segment])
def test_a_smaller_first_step_changes_nothing(sqlite_api, again):
    sender = Sender(sqlite_api, start_of(start_step=1000))

    again(sender, 0)

    assert first_step(sender) == 1000


@pytest.mark.parametrize("again", [by_start, by_segment])
def test_with_a_measured_step_below_it_the_first_step_stays(sqlite_api, again):
    sender = Sender(sqlite_api)
    sender.send([*measured(sender), sender.frame(0, [1.0])])

    again(sender, 1000)

    assert first_step(sender) == 0


def test_a_measured_step_of_the_same_request_keeps_the_first_step(sqlite_api):
    sender = Sender(sqlite_api)
    records = [*measured(sender), sender.frame(0, [4.0])]

    sender.send([*records, sender.record(start=corrected(sender, 1000).start)])

    assert first_step(sender) == 0


def test_a_scalar_logged_before_the_correction_does_not_hinder_it(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send([*sender.declare([Series(0, "loss", "model", "")]), sender.frame(0, [3.0])])

    by_segment(sender, 1000)

    assert first_step(sender) == 1000


def test_a_resumed_attempt_continues_its_parent_up_to_its_corrected_first_step(sqlite_api):
    parent = Sender(sqlite_api, start_of(attempt="one"))
    parent.send([*measured(parent), *(parent.frame(step, [1.0]) for step in (0, 500, 1500))])
    child = Sender(sqlite_api, start_of(attempt="two", parent="one", started_at_ms=parent.start.started_at_ms + 1))

    by_start(child, 1000)
    child.send([*measured(child), child.frame(1000, [4.0])])

    assert dict(child.points("activation.rms")) == {0: 1.0, 500: 1.0, 1000: 2.0}
