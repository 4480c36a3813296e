"""How what is wrong came about."""

from dataclasses import replace

from internist_dashboard import sentence, story
from tests.dashboard.test_alert_groups import opened
from tests.dashboard.test_sentence import RUN, board, text

LOSS = replace(opened(9, step=2_920, block=None), metric="loss", subject="")
UPDATE = replace(
    opened(1, step=400, block="blocks.2", condition="update", state="resolved"), closed_step=460, worst_ratio=31.0,
    basis="baseline",
)  # fmt: skip


def test_what_is_not_finite_says_where_it_began_and_what_it_reached():
    lost = [LOSS, opened(2, step=2_800, block="layers.23"), opened(3, step=2_860, block="layers.22")]

    assert story.told(lost, condition="numeric") == "It reached 1 more block and the loss at step 2\u2009920."
    beside = story.told(lost, condition="update")
    assert beside.startswith("NaN began in layers.23.mlp.down at step 2\u2009800 and reached 1 more block and the loss")
    assert story.told(lost[1:2], condition="numeric") == ""


def test_a_cause_that_is_over_stays_in_the_sentence_while_what_came_of_it_lasts():
    said = "Before it, update of blocks.2 was 31× its baseline at steps 400 to 460."

    assert story.told([UPDATE, LOSS], condition="numeric") == ""  # long before: nothing says that it was the cause
    near = replace(LOSS, pending_step=500, opened_step=500)
    assert story.told([UPDATE, near], condition="numeric") == said
    assert said in text(sentence.of_run(RUN, board("violated"), [UPDATE, near]))
    assert said not in text(sentence.of_run(RUN, board("ok"), [UPDATE, near]))
    assert story.told([UPDATE], condition="update") == ""


def test_what_lasted_until_the_run_ended_was_closed_with_it_and_what_went_before_is_told():
    lasted = replace(opened(2, step=448, block="blocks.2", condition="depth", state="resolved"), closed_step=640)

    assert story.told([UPDATE, lasted], condition="spectral") == ""
    assert story.told([UPDATE, lasted], condition="spectral", ended=640).startswith("Before it, update of blocks.2")
    finished = replace(RUN, state="finished", last_step=640)
    assert "Before it, update of blocks.2" in text(sentence.of_run(finished, board("violated"), [UPDATE, lasted]))
