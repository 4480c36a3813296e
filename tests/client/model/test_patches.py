"""Functions that are listened to: replaced everywhere, passed through exactly, put back whatever happens."""

import gc
import os
import sys
import threading
import types
import weakref

import pytest
import torch
from torch.nn import functional

from internist.model import patches
from internist.model.patches import function, listen_to


def module_of(name, **values):
    module = types.ModuleType(name)
    vars(module).update(values)
    return module


def double(x, *, plus=0):
    """Twice x."""
    return 2 * x + plus


@pytest.fixture
def home(monkeypatch):
    """A module that owns `double`, and another that has bound it under another name."""
    owner = module_of("test_patches_home", double=types.FunctionType(double.__code__, globals(), "double"))
    owner.double.__kwdefaults__ = {"plus": 0}
    user = module_of("test_patches_user", twice=owner.double)
    monkeypatch.setitem(sys.modules, owner.__name__, owner)
    monkeypatch.setitem(sys.modules, user.__name__, user)
    owner.user = user
    return owner


class Hearer:
    def __init__(self):
        self.calls, self.results = [], []

    def hear(self, args, kwargs):
        self.calls.append((args, kwargs))
        return self.results.append


def test_every_name_is_replaced_while_anyone_listens_and_put_back(home):
    original, hearer = home.double, Hearer()
    listening = function(home, "double").listen(hearer.hear)

    assert home.double(3, plus=1) == 7
    assert home.user.twice(4) == 8
    assert hearer.calls == [((3,), {"plus": 1}), ((4,), {})]
    assert hearer.results == [7, 8]
    listening.remove()
    assert home.double is home.user.twice is original


def test_modules_loaded_later_are_found_when_it_is_listened_to_again(home, monkeypatch):
    hearer = Hearer()
    function(home, "double").listen(hearer.hear).remove()
    late = module_of("test_patches_late", mine=home.double)
    monkeypatch.setitem(sys.modules, late.__name__, late)

    listening = function(home, "double").listen(hearer.hear)
    assert late.mine(1) == 2
    assert len(hearer.calls) == 1
    listening.remove()


@pytest.mark.parametrize("first", [0, 1])
def test_listeners_may_leave_in_any_order(home, first):
    original, hearers = home.double, [Hearer(), Hearer()]
    listening = [function(home, "double").listen(each.hear) for each in hearers]
    listening[first].remove()
    home.double(1)

    assert [len(each.calls) for each in hearers] == ([0, 1] if first == 0 else [1, 0])
    listening[1 - first].remove()
    listening[first].remove()
    assert home.double is original


@pytest.mark.parametrize("while_called", [False, True])
def test_a_dead_listener_is_dropped_and_nothing_keeps_it_alive(home, while_called):
    original, hearer = home.double, Hearer()
    function(home, "double").listen(hearer.hear)
    if while_called:
        home.double(1)
    dead = weakref.ref(hearer)
    del hearer
    gc.collect()

    assert dead() is None
    assert home.double is original


def test_what_stands_in_its_place_is_the_same_each_time_and_leaves_nothing_behind(home):
    hearer, record = Hearer(), function(home, "double")
    record.listen(hearer.hear).remove()
    pending = len(weakref.finalize._registry)
    standing = set()
    for _ in range(5):
        listening = record.listen(hearer.hear)
        standing.add(home.double)
        listening.remove()

    assert len(standing) == 1
    assert len(weakref.finalize._registry) == pending


def test_what_a_third_party_put_over_ours_stays(home):
    hearer = Hearer()
    listening = function(home, "double").listen(hearer.hear)
    ours = home.double
    home.double = lambda x: ours(x) + 100
    theirs = home.double
    listening.remove()

    assert home.double is theirs
    assert home.double(1) == 102
    assert not hearer.calls

    listening = function(home, "double").listen(hearer.hear)
    assert home.double(1) == 102
    assert len(hearer.calls) == 1
    listening.remove()
    assert home.double is theirs


def test_ours_put_back_by_a_third_party_after_we_left_does_not_stay(home):
    original, hearer = home.double, Hearer()
    listening = function(home, "double").listen(hearer.hear)
    ours = home.double
    home.double = theirs = lambda x: ours(x)
    listening.remove()
    assert home.double is theirs
    home.double = ours

    assert home.double(1) == 2
    function(home, "double").listen(hearer.hear).remove()
    assert home.double is original


def test_what_stands_at_home_is_listened_to_even_if_another_put_it_there_first(home):
    record = function(home, "double")
    original, hearer = home.double, Hearer()
    home.double = theirs = lambda x: original(x) + 100
    listening = record.listen(hearer.hear)

    assert home.double(1) == 102
    assert len(hearer.calls) == 1
    listening.remove()
    assert home.double is theirs


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_exception_of_a_listener_reaches_the_caller(home, when):
    class Failing:
        def hear(self, *_):
            if when == "before":
                raise ValueError("a fault of ours")
            return self.fail

        def fail(self, _):
            raise ValueError("a fault of ours")

    failing, hearer = Failing(), Hearer()
    listening = listen_to([(function(home, "double"), failing.hear), (function(home, "double"), hearer.hear)])

    assert home.double(2) == 4
    assert hearer.results == [4]
    for each in listening:
        each.remove()


def test_the_functions_own_exceptions_pass_and_listeners_hear_of_none(home):
    hearer = Hearer()
    listening = function(home, "double").listen(hearer.hear)

    with pytest.raises(TypeError):
        home.double(None)
    assert hearer.results == [None]
    listening.remove()


def test_an_attribute_of_a_class_and_an_entry_of_a_dictionary_are_put_back():
    hearer, table = Hearer(), {"double": double}
    listening = listen_to([(function(torch.Tensor, "softmax"), hearer.hear), (function(table, "double"), hearer.hear)])

    functional.softmax(torch.zeros(2), dim=0)
    table["double"](1)
    assert len(hearer.calls) == 2
    for each in listening:
        each.remove()
    assert "softmax" not in vars(torch.Tensor)
    assert table["double"] is double


def test_tensors_that_override_torchs_functions_know_them_by_identity():
    known = []

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            known.append(func is functional.scaled_dot_product_attention)
            return super().__torch_function__(func, types, args, kwargs or {})

    hearer, q = Hearer(), torch.randn(1, 1, 2, 2).as_subclass(Own)
    record = function(functional, "scaled_dot_product_attention")
    listening = record.listen(hearer.hear)
    functional.scaled_dot_product_attention(q, q, q)

    assert known[0] is True
    assert len(hearer.calls) == 1
    assert record.is_replaced
    listening.remove()
    assert not record.is_replaced


@pytest.mark.filterwarnings("ignore:`torch.jit")  # dynamo imports what uses it
def test_compiled_code_calls_the_function_itself():
    hearer = Hearer()
    listening = function(functional, "scaled_dot_product_attention").listen(hearer.hear)
    q = torch.randn(1, 2, 3, 4)
    compiled = torch.compile(
        lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True), fullgraph=True, backend="eager"
    )
    out = compiled(q)

    assert not hearer.calls
    listening.remove()
    torch.testing.assert_close(out, functional.scaled_dot_product_attention(q, q, q, is_causal=True))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_form_of_a_function_is_heard_by_eager_callers(home):
    home.user.fast = compiled = torch.compile(home.double, backend="eager")
    hearer = Hearer()
    listening = function(home, "double").listen(hearer.hear)

    assert home.user.fast(2) == 4
    assert len(hearer.calls) == 1
    listening.remove()
    assert home.user.fast is compiled


def test_threads_may_listen_call_and_leave_at_once(home):
    original, failures, begin = home.double, [], threading.Barrier(8)

    def work():
        begin.wait()
        for _ in range(50):
            hearer = Hearer()
            listening = function(home, "double").listen(hearer.hear)
            if home.double(2) != 4 or not any(result == 4 for result in hearer.results):
                failures.append(hearer.calls)
            listening.remove()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert home.double is original


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # that is what is tried
def test_a_forked_copy_can_let_go_whatever_another_thread_was_doing():
    held, forking = threading.Event(), threading.Event()

    def hold():
        with patches._lock:
            held.set()
            forking.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    os.register_at_fork(before=forking.set)
    child = os.fork()
    if child == 0:
        os._exit(0 if patches._lock.acquire(timeout=5) else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    other.join(10)

    assert status == 0
