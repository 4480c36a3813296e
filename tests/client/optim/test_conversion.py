"""State of other Muons goes on in ours, and ours in theirs."""

import pytest
import torch

import internist.optim
from internist.optim import Muon, MuonPlusPlus, convert_state
from tests.client.torches import needs_torchs_muon


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(optimizer, weights, seed):
    for index, weight in enumerate(weights):
        weight.grad = gaussian(*weight.shape, seed=seed + index)
    optimizer.step()


def theirs(kind, weights):
    """A state as that kind keeps it: of two steps of the momentum, from gradients of seeds 0 and 10."""
    state = {}
    for index, weight in enumerate(weights):
        momentum = torch.zeros_like(weight)
        for seed in (0, 10):
            gradient = gaussian(*weight.shape, seed=seed + index)
            momentum = 0.95 * momentum + (gradient if kind == "dion" else 0.05 * gradient)
        state[index] = {"momentum" if kind == "dion" else "momentum_buffer": momentum}
    return {"state": state, "param_groups": [{"params": [0, 1], "lr": 0.01, "momentum": 0.95, "weight_decay": 0.1}]}


@pytest.mark.parametrize("kind", ["torch", "keller_jordan", "dion"])
def test_a_run_of_another_muon_goes_on_as_if_it_had_been_ours(kind):
    ours, other = ([torch.nn.Parameter(gaussian(8, 6)), torch.nn.Parameter(gaussian(5, 5))] for _ in range(2))
    whole = Muon(ours, lr=0.01, momentum=0.95, weight_decay=0.1, dtype=torch.float32)
    for seed in (0, 10):
        stepped(whole, ours, seed)
    taken = Muon([{"params": other[:1]}, {"params": other[1:]}], lr=0.5, dtype=torch.float32)
    for weight, own in zip(other, ours, strict=True):
        weight.data.copy_(own.data)
    taken.load_state_dict(convert_state(theirs(kind, other), taken.state_dict(), source=kind))

    stepped(whole, ours, 20)
    stepped(taken, other, 20)

    for weight, own in zip(other, ours, strict=True):
        torch.testing.assert_close(weight.detach(), own.detach(), rtol=0, atol=1e-5)


@needs_torchs_muon
def test_torch_goes_on_from_our_state_and_muon_plus_plus_from_torchs():
    weights = [torch.nn.Parameter(gaussian(8, 6)), torch.nn.Parameter(gaussian(5, 5))]
    plus = MuonPlusPlus(weights, lr=0.01)
    stepped(plus, weights, 0)
    torchs = torch.optim.Muon(weights, lr=0.5)
    torchs.load_state_dict(convert_state(plus.state_dict(), torchs.state_dict(), target="torch"))
    assert torchs.param_groups[0]["lr"] == 0.01
    stepped(torchs, weights, 10)

    again = MuonPlusPlus(weights, initialize=False)
    again.load_state_dict(convert_state(torchs.state_dict(), again.state_dict(), source="torch"))
    stepped(again, weights, 20)
    assert all(weight.isfinite().all() for weight in weights)


def test_kinds_that_are_not_known_and_other_numbers_of_parameters_are_refused():
    state = theirs("torch", [gaussian(8, 6), gaussian(5, 5)])
    like = Muon([torch.nn.Parameter(gaussian(4, 4))]).state_dict()
    for options, message in (
        ({"source": "torhc"}, "torhc"), ({}, "either"), ({"source": "torch", "target": "dion"}, "either"),
        ({"source": "torch"}, "got 2 in the state and 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            convert_state(state, like, **options)


def test_orthogonalize_is_the_function_whatever_was_imported():
    assert callable(internist.optim.orthogonalize)
    with pytest.raises(ModuleNotFoundError):
        __import__("internist.optim.orthogonalize")
    from internist.optim import orthogonalize

    assert callable(orthogonalize)
