"""The governor: what the monitor takes stays within its share at every moment, on simulated machines."""

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internist.observe.costs import CostMeter
from internist.observe.governor import KEPT_ROUNDS, START_ROUNDS, START_S, Account, Governor
from internist.observe.sampling import UNSTRETCHED, Due, Powers, due
from internist.observe.stopwatch import NO_TIME, Spent

EVERY, LIMIT = 10, 0.01
ONE_SAMPLE = 1.0
"""By so much of the dearest sample an account may be overdrawn: what one costs is known when it is over."""


@dataclass
class Machine:
    """A training run in which samples take what they are said to, and pauses and hiccups come as they do."""

    plain: float = 0.02
    light: float = 0.004
    heavy: float = 0.06
    matrices: float = 0.03
    quarter: float = 0.012
    noise: float = 0.0
    """A round's length varies by this share, and one in fifty is ten times as long."""
    pause_every: int = 0
    rotating: float = 0.0
    """Share of a light sample's cost that falls with the modules' turns."""
    behind_the_host: bool = False
    loads: float = 0.0
    """Seconds more that the first sample takes."""
    limit: float = LIMIT
    start: int = 0
    governor: Governor = field(init=False)
    samples: dict[int, Due] = field(default_factory=dict)
    spent: float = 0.0
    wall: float = 0.0
    worst: float = 0.0
    """By how much the account was overdrawn at the most."""

    def __post_init__(self):
        self.governor = Governor(self.limit, EVERY, rotates=self.rotating > 0)
        self._random = random.Random(0)

    def parts(self, sample: Due) -> Spent:
        if not sample.light:
            return NO_TIME
        light = self.light * (1 - self.rotating + self.rotating / sample.turns)
        matrices = 0.0 if sample.matrices is None else self.matrices if sample.matrices < 0 else self.quarter
        return Spent(light + (0.0 if self.spent else self.loads), self.heavy * sample.heavy, matrices)

    def cost(self, sample: Due) -> float:
        return self.parts(sample).total

    def run(self, rounds: int):
        first = self.start + len(self.samples)
        for step in range(first, first + rounds):
            sample = self.samples[step] = self.governor.decide(step)
            parts = self.parts(sample)
            cost = parts.total
            length = self.plain * (1 + self.noise * self._random.random())
            if self.noise and self._random.random() < 0.02:
                length *= 10
            if self.pause_every and step % self.pause_every == self.pause_every - 1:
                length += 500 * self.plain
            length += cost
            self.spent, self.wall = self.spent + cost, self.wall + length
            allowance = max(START_S, 1_000 * self.limit * self.plain * (1 + self.noise))
            self.worst = max(self.worst, self.spent - self.limit * self.wall - allowance)
            known = NO_TIME if self.behind_the_host else parts
            self.governor.observe(sample, known, length)
            self.governor.observe_length(sample, length, known)
        return self


MACHINES = {
    "a GPU": Machine(),
    "a GPU, noisy, with evaluations": Machine(noise=0.2, pause_every=100),
    "a slow monitor": Machine(light=0.035, heavy=0.1, matrices=0.38, quarter=0.1),
    "a tiny model": Machine(plain=0.0005, light=0.003, heavy=0.01, matrices=0.005, quarter=0.002),
    "a large model": Machine(plain=0.5, light=0.004, heavy=0.1, matrices=0.1, quarter=0.03),
    "many modules": Machine(plain=0.03, light=0.1, heavy=0.2, matrices=0.4, quarter=0.1, rotating=0.7),
    "resumed": Machine(start=100_000),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_share_is_kept_at_every_moment_beyond_the_starts_allowance(machine):
    machine.run(6_000)

    assert machine.worst <= ONE_SAMPLE * machine.cost(Due(True, True, -1))


@settings(deadline=None, max_examples=30)
@given(
    plain=st.floats(1e-3, 1.0),
    light=st.floats(1e-4, 0.3),
    heavy=st.floats(0, 1.0),
    matrices=st.floats(0, 1.0),
    noise=st.sampled_from((0.0, 0.3)),
    pause_every=st.sampled_from((0, 37)),
)
def test_whatever_samples_cost_the_share_is_kept(plain, light, heavy, matrices, noise, pause_every):
    machine = Machine(plain, light, heavy, matrices, matrices / 3, noise, pause_every).run(2_000)

    # three samples may pass before anything is known of their costs
    assert machine.worst <= 3 * machine.cost(Due(True, True, -1))


@pytest.mark.parametrize("machine", [Machine(), Machine(noise=0.2, pause_every=100)], ids=["quiet", "noisy"])
def test_when_the_start_is_over_every_thousand_steps_keep_the_share(machine):
    machine.run(3_000)
    for _ in range(5):
        spent, wall = machine.spent, machine.wall
        machine.run(1_000)
        assert machine.spent - spent <= LIMIT * (machine.wall - wall) + machine.cost(Due(True, True, -1))


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_from_the_hundredth_step_on_the_share_is_kept_at_every_moment(machine):
    machine = replace(machine, samples={}, spent=0.0, wall=0.0).run(START_ROUNDS)
    spent, wall = machine.spent, machine.wall
    for _ in range(1_900):
        machine.run(1)
        kept = LIMIT * KEPT_ROUNDS * machine.governor.meter.plain
        assert machine.spent - spent <= (LIMIT * (machine.wall - wall) + kept) * (1 + 1e-9)


def test_cheap_samples_are_never_thinned():
    machine = Machine(plain=1.0, light=0.004, heavy=0.02, matrices=0.02, quarter=0.005).run(8_000)

    assert all(sample == due(step, EVERY) for step, sample in machine.samples.items())
    assert machine.governor.powers == UNSTRETCHED
    assert machine.governor.share == pytest.approx(0.00065, rel=0.1)


def test_heavy_samples_are_stretched_further_than_light_ones_where_they_cost_more():
    machine = Machine(heavy=0.2, matrices=0.001, quarter=0.001, light=0.001).run(5_000)

    assert machine.governor.powers.light + 3 <= machine.governor.powers.heavy


def test_modules_take_turns_before_light_samples_are_stretched():
    machine = Machine(light=0.006, heavy=0.0, matrices=0.0, quarter=0.0, rotating=0.8).run(6_000)

    assert machine.governor.powers.turns == 3
    assert machine.governor.powers.light == 0


def test_a_device_that_works_behind_the_hosts_back_is_seen():
    machine = Machine(behind_the_host=True).run(6_000)
    share = machine.spent / machine.wall
    spent, wall = machine.spent, machine.wall
    machine.run(2_000)

    assert machine.governor.asked_share() == pytest.approx(0.056, rel=0.15)
    assert machine.spent - spent <= LIMIT * (machine.wall - wall) + machine.cost(Due(True, True, -1))
    assert share > LIMIT


def test_device_times_that_come_late_are_booked_when_they_come():
    governor = Governor(LIMIT, EVERY)
    sample = Due(True, True, -1)
    for _ in range(10):
        governor.observe(sample, Spent(0.001), 0.02)
    before = governor.share
    for _ in range(10):
        governor.observe_device(sample, Spent(0.001), Spent(0.2, 0.2, 0.1))

    assert governor.share > 10 * before
    assert governor.decide(32) == Due()  # the account is overdrawn


def test_sampling_grows_denser_again_when_samples_become_cheap():
    machine = Machine().run(4_000)
    assert machine.governor.powers != UNSTRETCHED
    machine.light, machine.heavy, machine.quarter = 1e-4, 1e-4, 1e-4
    machine.run(40_000)

    assert machine.governor.powers == UNSTRETCHED


def test_what_is_loaded_for_the_first_sample_leaves_something_to_the_others():
    machine = Machine(loads=5.0).run(40)

    assert sum(sample.light for sample in machine.samples.values()) > 10


def test_without_a_limit_nothing_is_thinned():
    machine = Machine(light=1.0, limit=0.0).run(1_500)

    assert all(sample == due(step, EVERY) for step, sample in machine.samples.items())


def test_what_another_rank_asks_for_is_followed_and_not_told_as_ones_own():
    governor = Governor(0.0, EVERY)
    governor.told = Powers(light=2, heavy=2, matrices=2)

    assert [s for s in range(100_000, 100_160) if governor.decide(s).light] == list(range(100_000, 100_160, 40))
    assert (governor.powers, governor.in_force) == (UNSTRETCHED, governor.told)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), max_size=50))
def test_an_account_saves_no_more_than_the_allowance(rounds):
    account = Account(LIMIT)
    for spent, wall in rounds:
        account.book(spent, wall)

    assert account.left <= START_S
    assert account.left >= START_S - sum(spent for spent, _ in rounds)


def test_from_the_second_sample_on_what_each_part_costs_is_known():
    meter = CostMeter()
    meter.spent(Due(True, True, -1), Spent(3.0, 3.0, 3.0), 9.2)
    assert meter.costs().light[0] == meter.costs().heavy == 0.0
    assert meter.of(Due(True, True, -1)) == pytest.approx(3 * 3 * 0.2)  # as much as three rounds each, at the most
    meter.spent(Due(True, True, -1), Spent(0.01, 0.05, 0.04), 0.2)

    costs = meter.costs()
    assert (costs.light[0], costs.heavy, costs.matrices, costs.quarter) == pytest.approx((0.01, 0.05, 0.04, 0.01))
    assert meter.of(Due(True, False, 2)) == pytest.approx(0.02)


def test_turns_that_were_not_measured_are_hoped_to_save_and_not_relied_on():
    meter = CostMeter()
    for _ in range(2):
        meter.spent(Due(True), Spent(0.1), 0.2)

    assert meter.costs().light[3] < 0.03
    assert meter.of(Due(True, turns=8)) == 0.1
    meter.spent(Due(True, turns=8), Spent(0.05), 0.2)
    assert meter.of(Due(True, turns=8)) == 0.05


def test_what_other_threads_do_for_samples_counts_as_theirs():
    governor = Governor(LIMIT, EVERY)
    sampled = 0
    for step in range(400):
        sample = Due(step % 10 == 0)
        governor.observe(sample, Spent(0.001) if sample.light else NO_TIME, 0.1, behind_s=0.004 * sampled)
        sampled = sample.light

    assert governor.meter.of(Due(True)) == pytest.approx(0.005)
    assert governor.share == pytest.approx(0.005, rel=0.1)


def test_a_pause_between_two_steps_is_no_cost_of_the_monitors():
    meter = CostMeter()
    for step in range(100):
        length = 100.0 if step % 25 == 0 else 1.0
        sample = Due(light=step % 10 == 0)
        work = Spent(0.01 if sample.light else 0.0)
        meter.spent(sample, work, length)
        meter.length(sample, length, work)

    assert meter.costs().light[0] == pytest.approx(0.01)
