import numpy as np

from internist.schema.wire import Facts
from internist_server.judge.series import JudgedSeries
from internist_server.judge.verdicts import Judge

EVERY = 10
FACTS = Facts(group=0, parameters=100, cadence=EVERY)


def group(number, metric, kind="group"):
    return JudgedSeries(number, metric, kind, "0" if kind == "group" else "model", None, "exact", FACTS)


RATE, MULTIPLIER, RISE = (
    group(1, "learning_rate"),
    group(2, "schedule.multiplier"),
    group(3, "schedule.rise", "model"),
)


def run(rates, declared, *, rises=None):
    """Alerts of a run with these rates at every tenth step, and its judge."""
    series = [RATE, MULTIPLIER] + ([RISE] if rises is not None else [])
    judge, found = Judge(series, mup=False, every=EVERY), []
    for place, rate in enumerate(rates):
        values = [rate, declared[place]] + ([rises[place]] if rises is not None else [])
        present = np.isfinite(np.array(values))
        found += judge.judge(place * EVERY, np.array(values, np.float32), present).transitions
    return [t for t in found if t.condition == "learning_rate_jump"], judge


FLAT = [1.0] * 30


def test_a_rise_that_was_declared_is_no_jump_and_the_same_undeclared_is():
    rises = [*FLAT, *[8.0] * 10]

    assert run(rises, rises)[0] == []
    assert [t.state for t in run(rises, [1.0] * 40)[0]][:1] == ["firing"]
    assert [t.state for t in run(rises, [np.nan] * 40)[0]][:1] == ["firing"]


def test_a_rate_that_does_not_follow_its_declared_rise_by_far_is_told():
    """Declared to rise fourfold, and it rises sixteenfold."""
    found, _ = run([*FLAT, *[16.0] * 5], [*FLAT, *[4.0] * 5])

    assert [t.state for t in found][:1] == ["firing"]


def test_a_declared_fall_to_nothing_is_well_and_an_undeclared_one_is_not():
    falls = [*FLAT, 0.0, 0.0]

    assert run(falls, falls)[0] == []
    assert [t.state for t in run(falls, [1.0] * 32)[0]] == ["firing"]


def test_a_rise_to_what_it_was_is_a_restart_unless_the_run_says_that_none_was_meant():
    """Divided by ten, and ten times as large again for a while."""
    rates = [*FLAT, *[0.1] * 10, *[1.0] * 5]

    assert run(rates, [np.nan] * 45)[0] == []
    assert run(rates, rates)[0] == []
    found, _ = run(rates, [*FLAT, *[0.1] * 15])
    assert [(t.state, t.step) for t in found][:1] == [("firing", 40 * EVERY)]


def test_a_schedule_that_says_it_rises_no_more_ends_the_warm_up_at_once():
    rates = [0.5, 1.0, 1.0]

    _, told = run(rates, rates, rises=[2.0, 1.0, 1.0])
    _, untold = run(rates, rates)

    assert not told._memory.schedule.is_warming_up and untold._memory.schedule.is_warming_up


def test_what_was_declared_survives_in_the_state():
    _, judge = run(FLAT, FLAT)
    again = Judge([RATE, MULTIPLIER], mup=False, every=EVERY, state=judge.state())

    said = again.judge(300, np.array([8.0, 8.0], np.float32), np.ones(2, bool))

    assert said.transitions == []
