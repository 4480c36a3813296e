"""MuonClip is Muon, then QK-Clip."""

import copy

import pytest
import torch

from internist.demo.model import ByteGPT
from internist.optim.groups import split_parameters
from internist.optim.muon import Muon
from internist.optim.muon_clip import MuonClip
from internist.optim.qk_clip import QKClip


def loud_gpt(seed=0):
    torch.manual_seed(seed)
    model = ByteGPT(width=32, depth=2, heads=2, context=16)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:64] *= 20
    return model


def train(model, optimizer, steps=5):
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(steps):
        ids = torch.randint(256, (2, 17), generator=generator)
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_it_takes_the_steps_of_muon_followed_by_the_clip():
    one, two = loud_gpt(), loud_gpt()
    optimizer = MuonClip(one, lr=0.02, clip_tau=0.5, momentum=0.9)
    muon = Muon(split_parameters(two), lr=0.02, momentum=0.9)
    clip = QKClip(two, muon, tau=0.5)

    assert train(one, optimizer) == train(two, muon)
    assert same(one, two)
    assert sum(int(c.sum()) for c in clip.counts().values()) > 0
    assert {k: v.tolist() for k, v in optimizer.clip.counts().items()} == {
        k: v.tolist() for k, v in clip.counts().items()
    }


def test_without_firing_it_is_muon_and_so_it_is_after_removal():
    one, two, three = loud_gpt(), loud_gpt(), loud_gpt()
    removed = MuonClip(three, lr=0.02, clip_tau=0.5)
    removed.remove_clip()
    losses = train(two, Muon(split_parameters(two), lr=0.02))

    assert train(one, MuonClip(one, lr=0.02, clip_tau=1e6)) == losses
    assert train(three, removed) == losses
    assert same(one, two) and same(three, two)


def test_a_checkpoint_resumes_it_with_its_counts():
    model = loud_gpt()
    optimizer = MuonClip(model, lr=0.02, clip_tau=0.5)
    train(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    resumed = copy.deepcopy(model)
    other = MuonClip(resumed, lr=0.02, clip_tau=0.5)
    other.load_state_dict(state)

    assert train(model, optimizer, 3) == train(resumed, other, 3)
    assert same(model, resumed)
    assert other.clip.steps == optimizer.clip.steps == 8
    assert all(torch.equal(c, other.clip.counts()[name]) for name, c in optimizer.clip.counts().items())


def test_it_loads_what_muon_saved():
    model = loud_gpt()
    muon = Muon(split_parameters(model))
    train(model, muon)
    optimizer = MuonClip(model)
    optimizer.load_state_dict(muon.state_dict())

    assert optimizer.clip.steps == 0
    assert optimizer.state[model.blocks[0].attn.qkv.weight]["step"].item() == 5


def test_diagnostics_are_of_both():
    model = loud_gpt()
    optimizer = MuonClip(model, lr=0.02, clip_tau=0.5)
    optimizer.request_diagnostics()
    train(model, optimizer, 1)
    told = optimizer.diagnostics()

    weight = told[model.blocks[0].attn.qkv.weight]
    assert {"optimizer.effective_lr", "optimizer.clip_gamma", "optimizer.clip_heads"} <= weight.keys()
    assert weight["optimizer.clip_gamma"] < 1.0 and weight["optimizer.clip_heads"] >= 1.0
    assert "optimizer.clip_gamma" not in told[model.blocks[0].mlp.fc1.weight]
    assert {row["algorithm"] for row in optimizer.describe()} == {"muon", "adamw"}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="tau"):
        MuonClip(loud_gpt(), clip_tau=-1.0)
    with pytest.raises(ValueError, match="no attention layer"):
        MuonClip(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))
