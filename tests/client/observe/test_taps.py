"""Taps stand in front of calls without a hook, and leave no trace in what is copied, saved, traced or compiled."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn

from internist.observe.taps import PLACE, RAISED, Tap, Taps, compiled_call


class Ear:
    """Notes what a tap tells."""

    def __init__(self):
        self.entered, self.left = [], []

    def on(self, module):
        return Tap(module, lambda args, kwargs: self.entered.append((args, kwargs)), self._leave)

    def _leave(self, args, kwargs, output):
        self.left.append((args, kwargs, output))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


def test_a_tap_sees_arguments_and_output_and_changes_neither(model):
    x = torch.ones(1, 3)
    expected, ear = model(x), Ear()
    taps = Taps([ear.on(model[0])])
    taps.install()

    assert torch.equal(model(x), expected)
    assert ear.entered[0][0][0] is x
    assert ear.left[0][2].shape == (1, 3)
    taps.remove()
    assert torch.equal(model(x), expected)
    assert len(ear.entered) == 1
    assert PLACE not in vars(model[0])


def test_a_call_that_raises_is_told_as_one(model):
    ear = Ear()
    Taps([ear.on(model[0])]).install()
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(1, 4))

    assert ear.left[0][2] is RAISED


def test_taps_of_several_monitors_come_and_go_in_any_order(model):
    ears = [Ear() for _ in range(4)]
    taps = [Taps([ear.on(model[0])]) for ear in ears]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        for each in taps:
            each.install()
        standing = set(range(4))
        for place in order:
            before = [len(ear.entered) for ear in ears]
            model(torch.ones(1, 3))
            assert [len(ear.entered) - b for ear, b in zip(ears, before, strict=True)] == [
                int(i in standing) for i in range(4)
            ]
            taps[place].remove()
            standing.remove(place)
        assert PLACE not in vars(model[0])


def test_a_tap_may_be_set_and_taken_away_inside_a_call(model):
    ear = Ear()
    taps = Taps([ear.on(module) for module in model.modules()])
    model[1].register_forward_hook(lambda *_: taps.install() if not taps.installed else taps.remove())
    expected = model(torch.ones(1, 3))

    assert taps.installed
    assert torch.equal(model(torch.ones(1, 3)), expected)
    assert not taps.installed
    assert not any(PLACE in vars(module) for module in model.modules())


def test_copies_and_pickles_carry_nothing(model):
    class Own(nn.Linear):
        def __getstate__(self):
            return self.__dict__.copy()

    model.append(Own(2, 2))
    Taps([Ear().on(module) for module in model.modules()]).install()
    saved = io.BytesIO()
    torch.save(nn.Sequential(*model[:3]), saved)

    assert b"internist" not in saved.getvalue()
    globals()["Own"] = Own
    Own.__qualname__ = "Own"
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(isinstance(vars(module).get(PLACE), Tap) for module in twin.modules())
    assert PLACE not in vars(copy.copy(model))


def test_what_a_class_says_itself_to_be_pickled_has_no_tap_and_loads_by_weights_alone(tmp_path):
    before = nn.LSTM.__getstate__, vars(nn.RNNBase)["__getstate__"]
    model = nn.Sequential(nn.LSTM(3, 3, 2), nn.GRU(3, 3))
    bare, tapped = tmp_path / "bare.pt", tmp_path / "tapped.pt"
    torch.save(model, bare)
    taps = Taps([Ear().on(module) for module in model.modules()])
    taps.install()
    torch.save(model, tapped)

    with torch.serialization.safe_globals([nn.Sequential, nn.LSTM, nn.GRU]):
        loaded = torch.load(tapped, weights_only=True)
    assert not any(PLACE in vars(module) for module in loaded.modules())
    assert [vars(module).keys() for module in loaded] == [
        vars(module).keys() for module in torch.load(bare, weights_only=False)
    ]
    taps.remove()
    del taps
    gc.collect()
    assert (nn.LSTM.__getstate__, vars(nn.RNNBase)["__getstate__"]) == before


def test_a_replica_made_of_a_modules_dictionary_computes_with_its_own_parameters(model):
    ear = Ear()
    linear = model[0]
    Taps([ear.on(linear)]).install()
    replica = linear._replicate_for_data_parallel()
    replica._parameters = {name: p * 2 for name, p in linear._parameters.items()}
    for name, value in replica._parameters.items():
        setattr(replica, name, value) if name not in replica._parameters else None
    x = torch.ones(1, 3)

    assert torch.allclose(replica(x), 2 * linear(x))
    assert len(ear.entered) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiler_sees_no_tap_and_does_not_compile_again_for_one(model, when):
    torch._dynamo.reset()
    taps = Taps([Ear().on(module) for module in model.modules()])
    if when == "before":
        taps.install()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.ones(1, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        expected = compiled(x)
        (taps.remove if when == "before" else taps.install)()

        assert torch.equal(compiled(x), expected)


def test_tracing_and_exporting_a_tapped_model_gives_the_plain_one(model):
    Taps([Ear().on(module) for module in model.modules()]).install()
    x = torch.ones(1, 3)

    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_what_compile_put_in_the_place_is_called_behind_the_taps_and_stays(model):
    calls = []

    def compiled(*args):
        calls.append(args)
        return model[0]._call_impl(*args)

    vars(model[0])[PLACE] = compiled
    ear = Ear()
    taps = Taps([ear.on(model[0])])
    taps.install()
    model(torch.ones(1, 3))
    assert compiled_call(model[0]) is compiled
    taps.remove()

    assert (len(calls), len(ear.entered)) == (1, 1)
    assert vars(model[0])[PLACE] is compiled


def test_a_tapped_model_is_freed_when_its_user_lets_go_of_it():
    import gc
    import weakref

    model = nn.Linear(2, 2)
    taps = Taps([Ear().on(model)])
    taps.install()
    gone = weakref.ref(model)
    del model
    gc.collect()

    assert gone() is None
    taps.remove()
