"""Where a rank has come to: measured frames and heartbeats say so, and logged scalars only follow."""

import numpy as np
import pytest

from internist.schema.wire import Facts, Module, Series
from tests.server.sending import Sender, module_series, start_of

MEASURED = [module_series(0, "activation.rms_max", "blocks.0")]
LOGGED = [Series(1, "loss", "model", "", facts=Facts(method="as given"))]
TOKENS = 500_000


def training(api, **changes):
    """A rank that has declared a measured plan (0) and one of a logged loss (1)."""
    sender = Sender(api, start_of(**changes))
    sender.send(sender.declare(MEASURED) + sender.declare(LOGGED))
    return sender


def judged_step(sender):
    return sender.get("/verdicts")["step"]


def test_scalars_logged_by_tokens_do_not_stop_judging(api):
    sender = training(api)

    for step in range(0, 100, 10):
        sender.send([sender.frame(step, [1.0]), sender.frame((step + 1) * TOKENS, [2.0], plan=1)])
        assert judged_step(sender) == step

    sender.send([sender.frame(100, [np.nan])])
    assert sender.get()["verdict"] == "violated"
    assert sender.get()["last_step"] == 100
    sender.send([sender.finish(100)])
    assert (judged_step(sender), sender.get()["last_step"]) == (100, 100)


@pytest.mark.parametrize("beats", [False, True])
def test_scalars_logged_by_tokens_before_anything_is_measured_are_not_believed(sqlite_api, beats):
    sender = Sender(sqlite_api, start_of(modules=() if beats else (Module("blocks.0", "Block", "block"),)))
    if beats:
        sender.beat(0)
    sender.send(sender.declare(LOGGED) + sender.declare(MEASURED))
    sender.send([sender.frame(step * TOKENS, [2.0], plan=0) for step in (1, 2, 3)])

    sender.send([sender.frame(0, [np.nan], plan=1)])

    assert judged_step(sender) == 0
    assert sender.get()["verdict"] == "violated"


def test_a_silent_rank_does_not_make_a_far_scalar_a_step(sqlite_api, clock):
    sender = training(sqlite_api)
    sender.send([sender.frame(0, [1.0]), sender.frame(TOKENS, [2.0], plan=1)])

    clock.advance(100)
    sqlite_api.app.state.services.ingest.tick()
    sender.send([sender.frame(10, [1.0])])

    assert judged_step(sender) == 10


def test_a_far_scalar_leaves_the_time_of_a_step_as_it_is(sqlite_api):
    sender = training(sqlite_api)

    for step in range(0, 100, 10):
        sender.send([sender.frame(step, [1.0]), sender.frame((step + 1) * TOKENS, [2.0], plan=1, at_ms=10**12)])

    assert sender.get()["steps_per_second"] == pytest.approx(10)


def test_a_nan_logged_between_two_measured_frames_is_judged_at_once(api):
    sender = training(api)
    sender.send([sender.frame(0, [1.0])])

    sender.send([sender.frame(5, [np.nan], plan=1), sender.frame(6, [np.nan], plan=1)])

    assert judged_step(sender) == 5
    assert sender.get()["verdict"] == "violated"


def test_a_scalar_beyond_the_next_measured_frame_waits_for_a_heartbeat(sqlite_api):
    """The governor has stretched the cadence: nothing is measured between 0 and 40."""
    sender = training(sqlite_api)
    sender.send([sender.frame(0, [1.0])])
    sender.send([sender.frame(step, [np.nan], plan=1) for step in (21, 22)])
    assert judged_step(sender) == 0

    sender.beat(30)
    sqlite_api.app.state.services.ingest.tick()

    assert judged_step(sender) == 21


def test_a_rank_that_only_logs_is_judged_by_its_scalars(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send(sender.declare(LOGGED))

    sender.send([sender.frame(step, [np.nan], plan=0) for step in (100, 200)])

    assert judged_step(sender) == 100


def test_a_scalar_of_the_users_own_under_a_measured_name_is_a_logged_one(sqlite_api):
    sender = Sender(sqlite_api)
    own = Series(1, "gradient.global_norm", "model", "", facts=Facts(method="as given"))
    sender.send(sender.declare(MEASURED) + sender.declare([own]))

    sender.send([sender.frame(0, [1.0]), *(sender.frame(step * TOKENS, [2.0], plan=1) for step in (1, 2, 3))])
    sender.send([sender.frame(10, [1.0])])

    assert judged_step(sender) == 10


def test_one_measured_frame_far_beyond_all_others_is_not_believed(sqlite_api):
    sender = training(sqlite_api)
    sender.send([sender.frame(0, [1.0])])

    sender.send([sender.frame(1 << 40, [1.0])])
    sender.send([sender.frame(10, [1.0])])

    assert judged_step(sender) == 10


@pytest.mark.parametrize("told", ["frame", "heartbeat"])
def test_a_jump_that_is_told_twice_is_believed(sqlite_api, told):
    """A checkpoint of a far step was loaded after the first steps."""
    sender = training(sqlite_api)
    sender.send([sender.frame(0, [1.0])])
    if told == "heartbeat":
        sender.beat(1 << 40)

    sender.send([sender.frame(1 << 40, [1.0])])
    sender.send([sender.frame((1 << 40) + 10, [1.0])])

    assert judged_step(sender) == (1 << 40) + 10


def test_a_step_in_several_frames_is_complete_with_its_last(api):
    sender = Sender(api)
    two = [*MEASURED, module_series(1, "activation.rms_max", "blocks.1")]
    sender.send(sender.declare(two[:1]) + sender.declare(two[1:]))

    sender.send([sender.frame(0, [1.0], continued=True)])
    assert judged_step(sender) is None
    sender.send([sender.frame(0, [np.nan], plan=1)])

    assert judged_step(sender) == 0
    assert sender.get()["verdict"] == "violated"


def test_the_axis_of_a_scalar_is_kept_with_its_facts(sqlite_api):
    sender = Sender(sqlite_api)

    sender.send(sender.declare([Series(0, "val/loss", "model", "", facts=Facts(method="as given", axis="tokens"))]))

    assert sender.get("/series")["series"][0]["facts"]["axis"] == "tokens"
