"""What a model had and has no more counts no longer."""

from internist.observe.coverage import departed
from internist.schema.coverage import share
from internist.schema.wire import CoverageEntry

OLD_HEAD = CoverageEntry("module", "old_head", "measured", "", "activation")
BODY = CoverageEntry("module", "body", "measured", "", "activation")
NEW_HEAD = CoverageEntry("module", "new_head", "silent", "never called", "activation")


def test_a_swapped_head_leaves_the_coverage_of_the_run():
    gone = departed([BODY, OLD_HEAD], [BODY, NEW_HEAD])

    assert [(one.subject, one.family, one.state) for one in gone] == [("old_head", "activation", "excluded")]
    assert share([BODY, NEW_HEAD, *gone]) == share([BODY, NEW_HEAD]) == 0.5


def test_a_family_that_is_asked_for_no_more_leaves_too():
    spectrum = CoverageEntry("parameter", "w", "silent", "not yet its turn", "spectrum")

    assert [one.family for one in departed([spectrum, BODY], [BODY])] == ["spectrum"]


def test_what_only_changes_its_state_stays():
    assert departed([BODY], [CoverageEntry("module", "body", "idle", "not called", "activation")]) == ()
