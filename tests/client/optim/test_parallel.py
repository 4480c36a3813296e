"""Small matrices are stepped side by side, and come out as if they had been stepped one after another."""

import os
import threading

import pytest
import torch

from internist.optim import Muon, MuonPlusPlus, MuonSphere
from internist.optim import parallel as parallel_module
from internist.optim.bucket import Bucket
from internist.optim.parallel import step_each

SHAPES = [(192, 192), (384, 192), (192, 384), (192, 192), (96, 192), (320, 256)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(kind, *, steps=4, **options):
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.05) for shape in SHAPES]
    optimizer = kind(parameters, lr=0.01, dtype=torch.float32, **options)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameters


def bucket(shape=(512, 512), device="cpu"):
    weight = torch.zeros(1, *shape, device=device)
    return Bucket({"dtype": None}, [weight], [weight], [weight], [weight], [0])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("kind", "options"),
    [(Muon, {}), (MuonPlusPlus, {}), (MuonPlusPlus, {"policy": "retract"}), (MuonSphere, {})],
)
def test_two_threads_give_what_one_gives(kind, options, monkeypatch):
    used = set()
    whole_step = kind._write
    monkeypatch.setattr(kind, "_write", lambda *args: (used.add(threading.current_thread().name), whole_step(*args))[1])
    together = trained(kind, **options)
    assert all(name.startswith("internist-optim") for name in used)
    torch.set_num_threads(1)
    used.clear()
    for many, one in zip(together, trained(kind, **options), strict=True):
        torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-5)
    assert used == {threading.current_thread().name}


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_of_others_stays():
    trained(Muon, steps=1)
    assert torch.get_num_threads() == 2
    told = []
    later = threading.Thread(target=lambda: told.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert told == [2]


def test_each_bucket_is_stepped_once_by_threads_that_compute_alone_and_need_no_gradients():
    seen = []

    def step(one):
        seen.append((id(one), threading.current_thread().name, torch.get_num_threads(), torch.is_grad_enabled()))

    buckets = [bucket() for _ in range(8)]
    step_each(buckets, step, threads=2)
    assert sorted(known for known, *_ in seen) == sorted(map(id, buckets))
    assert {(name[:15], n, grad) for _, name, n, grad in seen} == {("internist-optim", 1, False)}


@pytest.mark.parametrize(
    ("buckets", "threads"),
    [
        ([bucket((8, 8)) for _ in range(5)], 2),  # too little to hand over
        ([bucket()], 2),  # one alone
        ([bucket((4096, 1024)) for _ in range(2)], 2),  # large: a product has work for all threads
        ([bucket() for _ in range(5)], 1),
        ([bucket(device="meta") for _ in range(5)], 2),
    ],
)
def test_where_it_does_not_pay_the_calling_thread_steps(buckets, threads):
    names = []
    step_each(buckets, lambda _: names.append(threading.current_thread()), threads=threads)
    assert names == [threading.current_thread()] * len(buckets)


def test_what_a_thread_raises_is_raised_and_the_others_are_stepped():
    buckets = [bucket() for _ in range(6)]
    stepped = []

    def step(one):
        if one is buckets[2]:
            raise ValueError("the third")
        stepped.append(one)

    with pytest.raises(ValueError, match="the third"):
        step_each(buckets, step, threads=2)
    assert len(stepped) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
def test_a_forked_process_starts_threads_of_its_own():
    buckets = [bucket() for _ in range(4)]
    step_each(buckets, lambda _: None, threads=2)
    child = os.fork()
    if child == 0:
        names = []
        try:
            step_each(buckets, lambda _: names.append(1), threads=2)
        finally:
            os._exit(0 if len(names) == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("two_threads")
def test_diagnostics_are_noted_by_one_thread(monkeypatch):
    monkeypatch.setattr(parallel_module, "side_by_side", lambda _: pytest.fail("no threads are asked for here"))
    parameters = [torch.nn.Parameter(torch.randn(512, 512)) for _ in range(4)]
    optimizer = Muon(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.request_diagnostics()
    optimizer.step()
    assert set(optimizer.diagnostics()) == set(parameters)
