"""Incidents: what receivers are told of what fires."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from internist.schema.alerts import Silence
from internist_server.alerts.incidents import LONGEST_WAIT_MS, Incident, Policy, decide
from internist_server.alerts.inhibition import TAKEN_IN_STEPS, explained, takes_in
from internist_server.alerts.labels import group_of
from internist_server.alerts.silences import matches, silenced
from tests.server.test_notify import ALERT

POLICY = Policy(resolve_after_ms=15_000, repeat_after_ms=3_600_000)
FLAPS_MS = 25_000
"""As long as a NaN came and went in the run that told its receivers 43 times."""

UPDATE = replace(ALERT, id=1, series=1)
FEATURE = replace(ALERT, id=2, series=2, cause="feature", condition="forward", block="blocks.3", subject="blocks.3")
ATTENTION = replace(
    ALERT, id=3, series=3, cause="weight", condition="attention", subject="blocks.0.attn", module="blocks.0.attn",
    block="blocks.0",
)  # fmt: skip
ORDERS = {1: 20, 2: 30, 3: 1}


@dataclass
class Told:
    """What was told so far, and the incidents that are kept."""

    policy: Policy = POLICY
    open: dict[int, Incident] = field(default_factory=dict)
    ended: list[tuple[str, int]] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    numbers: int = 0

    def look(self, firing, *, now_ms, silenced=(), is_over=False, recent=()):
        moves = self.moves(firing, now_ms=now_ms, silenced=silenced, is_over=is_over, recent=recent)
        for move in moves:
            if move.kind == "open":
                self.numbers += 1
                ends = sum(group == move.group for group, _ in self.ended)
                self.open[self.numbers] = Incident(self.numbers, move.group, now_ms, None, ends)
                self.said.append((move.group, "firing"))
                continue
            known = self.open[move.incident]
            if move.kind == "close":
                del self.open[move.incident]
                self.ended.append((move.group, now_ms))
                self.said.append((move.group, "resolved"))
            elif move.kind == "repeat":
                self.open[move.incident] = replace(known, told_at_ms=now_ms)
                self.said.append((move.group, "again"))
            else:
                self.open[move.incident] = replace(known, calm_since_ms=now_ms if move.kind == "calm" else None)
        return moves

    def moves(self, firing, *, now_ms, silenced=(), is_over=False, recent=()):
        return decide(
            self.open.values(), firing, recent=recent, orders=ORDERS, silenced=silenced, policy=self.policy,
            now_ms=now_ms, is_over=is_over,
        )  # fmt: skip


def test_what_comes_and_goes_for_25_seconds_begins_once_and_ends_once():
    told = Told()

    for now_ms in range(0, FLAPS_MS, 100):
        told.look([UPDATE] if now_ms // 300 % 2 else [], now_ms=now_ms)
    for now_ms in range(FLAPS_MS, FLAPS_MS + 60_000, 1_000):
        told.look([], now_ms=now_ms)

    assert told.said == [("update", "firing"), ("update", "resolved")]


def test_what_comes_back_again_and_again_is_waited_for_longer_each_time():
    told, period_ms = Told(), 40_000

    for now_ms in range(0, 1_800_000, 1_000):
        told.look([UPDATE] if now_ms % period_ms < 2_000 else [], now_ms=now_ms)

    assert told.said == [("update", "firing"), ("update", "resolved")] * 2 + [("update", "firing")]
    assert POLICY.wait_ms(100) == LONGEST_WAIT_MS


def test_the_end_of_a_run_is_told_at_once():
    told = Told()
    told.look([UPDATE], now_ms=0)

    told.look([], now_ms=1, is_over=True)

    assert told.said == [("update", "firing"), ("update", "resolved")]


def test_what_goes_on_is_told_again_unless_somebody_has_seen_or_silenced_all_of_it():
    told, hour = Told(), POLICY.repeat_after_ms
    seen = replace(UPDATE, acknowledged_at_ms=5, acknowledged_by="ada")
    told.look([UPDATE], now_ms=0)

    told.look([UPDATE], now_ms=hour - 1)
    told.look([seen], now_ms=hour)
    told.look([UPDATE], now_ms=hour, silenced={UPDATE.id})
    assert told.said == [("update", "firing")]
    told.look([seen, replace(UPDATE, id=9)], now_ms=hour)
    told.look([UPDATE], now_ms=hour + 1)

    assert told.said == [("update", "firing"), ("update", "again")]


def test_what_is_silenced_is_told_when_the_silence_ends_and_it_still_fires():
    told = Told()

    told.look([UPDATE], now_ms=0, silenced={UPDATE.id})
    assert told.said == []
    told.look([UPDATE], now_ms=1)

    assert told.said == [("update", "firing")]


def test_a_silence_does_not_take_the_end_of_what_was_told():
    told = Told()
    told.look([UPDATE], now_ms=0)

    told.look([UPDATE], now_ms=1, silenced={UPDATE.id})
    for now_ms in (2, 20_000):
        told.look([], now_ms=now_ms)

    assert told.said == [("update", "firing"), ("update", "resolved")]


def test_an_incident_goes_on_while_an_effect_of_it_does():
    told = Told()
    told.look([UPDATE, FEATURE], now_ms=0)

    for now_ms in (1, 16_000, 40_000):
        told.look([FEATURE], now_ms=now_ms, recent=[UPDATE])
    assert told.said == [("update", "firing")]
    for now_ms in (40_001, 56_000):
        told.look([], now_ms=now_ms)

    assert told.said == [("update", "firing"), ("update", "resolved")]


def test_what_leaves_its_band_soon_after_goes_with_it_unless_it_is_louder_or_somebody_hears_it_not():
    later = replace(ATTENTION, pending_step=UPDATE.pending_step + TAKEN_IN_STEPS)
    warning = replace(UPDATE, severity="warning")
    looks = {
        "soon": ([UPDATE, later], ()),
        "late": ([UPDATE, replace(later, pending_step=later.pending_step + 1)], ()),
        "louder": ([warning, later], ()),
        "silenced": ([UPDATE, later], {UPDATE.id}),
    }

    said = {}
    for name, (firing, hushed) in looks.items():
        told = Told()
        told.look(firing[:1], now_ms=0)
        told.look(firing, now_ms=1, silenced=hushed)
        said[name] = [group for group, _ in told.said]

    assert said.pop("soon") == ["update"]
    assert all(groups == ["update", "attention"] for groups in said.values())


def test_each_rule_of_the_users_own_is_an_incident_of_its_own():
    loss = replace(ALERT, id=5, condition="threshold", rule="loss_high", subject="", kind="model", block=None)
    told = Told()

    told.look([loss, replace(loss, id=6, rule="norm_high")], now_ms=0)

    assert told.said == [("loss_high", "firing"), ("norm_high", "firing")]


def test_causes_explain_effects_and_wide_places_what_lies_in_them():
    of_weight = replace(
        ALERT, id=4, condition="spectral_weight", cause="weight", kind="parameter", subject="blocks.2.attn.weight",
        pending_step=430,
    )  # fmt: skip
    elsewhere = replace(of_weight, id=5, module="blocks.0.fc", block="blocks.0", subject="blocks.0.fc.weight")
    jump = replace(ALERT, id=6, condition="learning_rate_jump", cause="learning_rate", kind="group", subject="0")
    lost = replace(ALERT, id=7, condition="run_lost", rule="run_lost", kind=None, subject="", pending_step=None)

    assert explained([UPDATE, of_weight, elsewhere], orders=ORDERS) == {4}
    assert explained([UPDATE, ATTENTION, jump], orders=ORDERS) == {1}
    assert explained([UPDATE, ATTENTION, jump, lost], orders=ORDERS) == {1, 3, 6}
    of_step = replace(elsewhere, id=8, condition="spectral_update", pending_step=UPDATE.pending_step)
    written = replace(of_weight, id=9, condition="weight_jump", cause="own")
    assert explained([UPDATE, of_step], orders=ORDERS) == {8}
    assert explained([replace(UPDATE, pending_step=500), of_step, FEATURE], orders=ORDERS) == {1, 2}
    assert explained([written, FEATURE, ATTENTION], orders={**ORDERS, 1: 20}) == {2}
    assert explained([replace(UPDATE, severity="warning"), of_weight], orders=ORDERS) == set()
    assert explained([replace(UPDATE, pending_step=500), of_weight], orders=ORDERS) == set()


def test_a_number_that_is_none_explains_whatever_comes_of_it_in_the_model():
    nan = replace(ATTENTION, id=10, condition="numeric", cause="own")
    after = [replace(one, pending_step=nan.pending_step + 9) for one in (ATTENTION, replace(FEATURE, block="blocks.0"))]
    earlier = replace(UPDATE, id=11, pending_step=nan.pending_step - 1)
    asked_for = replace(after[0], id=12, condition="threshold", rule="norm_high")

    assert explained([nan, *after, asked_for], orders=ORDERS) == {2, 3}
    assert explained([earlier, nan], orders=ORDERS) == set()


def test_a_silence_matches_by_globs_on_all_of_its_labels():
    labels = {"run": "4f2a", "module": "blocks.2.attn"}

    assert matches({"run": "4f*", "module": "blocks.?.attn"}, labels)
    assert not matches({"run": "4f*", "module": "head"}, labels)
    assert matches({"group": ""}, labels) and not matches({"group": "?*"}, labels)
    assert silenced([UPDATE, ATTENTION], [Silence(1, {"condition": "att*"}, "ada", "on purpose", 0, 1)]) == {3}


GROUPS = [UPDATE, FEATURE, ATTENTION, replace(ALERT, id=4, series=None, condition="run_lost", kind=None, subject="")]
LOOKS = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(-20_000, 40_000)), max_size=30)
"""Which alerts fire, which are silenced, and by how much the clock goes on, or back."""


@settings(max_examples=80, deadline=None)  # a busy machine is no failure
@given(LOOKS)
def test_no_order_of_alerts_silences_and_clock_jumps_opens_twice_or_loses_an_end(looks):
    told, now_ms = Told(), 10**9

    for which, hushed, pause_ms in looks:
        now_ms += pause_ms
        firing = [one for place, one in enumerate(GROUPS) if which >> place & 1]
        quiet = {one.id for place, one in enumerate(GROUPS) if hushed >> place & 1}
        told.look(firing, now_ms=now_ms, silenced=quiet)
        groups = [incident.group for incident in told.open.values()]
        assert len(groups) == len(set(groups))
        assert told.moves(firing, now_ms=now_ms, silenced=quiet) == []  # asked twice, it is told once
        explains_itself = {one.id for one in firing} - explained(firing, orders=ORDERS) - quiet
        of_open = [[one for one in firing if group_of(one) == group] for group in groups]
        for one in firing:
            is_told = group_of(one) in groups or any(takes_in(members, one) for members in of_open)
            assert is_told or one.id not in explains_itself
    told.look([], now_ms=now_ms, is_over=True)

    for group in {group for group, _ in told.said}:
        said = [what for of, what in told.said if of == group and what != "again"]
        assert said == ["firing", "resolved"] * (len(said) // 2)
