import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internist.optim import Muon, MuonPlusPlus, native, passes
from internist.optim.newton_schulz import SMALLEST_NORM

DTYPES = (torch.float32, torch.bfloat16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}
SHAPES = ((1, 5), (3, 7), (5, 64), (64, 16), (65, 129), (130, 200), (9, 1000))
MU = 0.95


@pytest.fixture(autouse=True)
def compiled():
    """Every test here needs the compiled passes: without a compiler there is nothing to test, but CI must have one."""
    if shutil.which("cc") is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler: CI must have one (apt-get install gcc libc6-dev)")
        pytest.skip("no C compiler found: apt-get install gcc libc6-dev")
    assert native.library() is not None


@pytest.fixture
def operators(monkeypatch):
    """Call it to do without the compiled passes from then on."""
    return lambda: monkeypatch.setattr(native, "library", lambda: None)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A function that loads the library as a new process would, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return native._library.__wrapped__


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit(size: int, seed: int) -> Tensor:
    vector = some(size, seed=seed)
    return vector / vector.norm()


def projected(matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """P_u X P_v in float64, as it is written."""
    u, v = u.double(), v.double()
    left = torch.eye(len(u), dtype=torch.float64) - torch.outer(u, u)
    right = torch.eye(len(v), dtype=torch.float64) - torch.outer(v, v)
    return left @ matrix.double() @ right


def distance(found: Tensor, expected: Tensor) -> float:
    """Greatest difference of entries, relative to the greatest entry."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


# -- each pass does what it says


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_advance(shape, dtype):
    gradient, momentum = some(*shape, seed=1), some(*shape, seed=2)
    expected = momentum.double().lerp(gradient.double(), 1 - MU)
    direction = (1 - MU) / MU * gradient.double() + expected
    out, version = torch.empty(shape, dtype=dtype), momentum._version

    assert passes.suits(out, gradient, momentum)
    passes.advance(gradient, momentum, out, mu=MU, nesterov=True)

    assert distance(momentum, expected) < ROUNDING[torch.float32]
    assert distance(out, direction) < ROUNDING[dtype]
    assert momentum._version > version


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nesterov", [True, False])
def test_an_entry_gets_the_same_numbers_wherever_it_stands(nesterov, dtype):
    """In a vector or at the end of a row, in a weight stored (in, out), in a shard: ranks rely on it."""
    gradient, momentum, weight = some(61, 47, seed=1), some(61, 47, seed=2), some(61, 47, seed=3)

    def stepped(*matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, momentum, weight = matrices
        out = torch.empty(gradient.shape, dtype=dtype)
        passes.advance(gradient, momentum, out, mu=MU, nesterov=nesterov)
        passes.write(weight, out, keep=0.9, length=0.3)
        return momentum, out, weight

    whole = stepped(gradient, momentum.clone(), weight.clone())
    for alone in (momentum.clone(), momentum.T.contiguous().T):
        passes.accumulate(gradient if alone.is_contiguous() else gradient.T.contiguous().T, alone, mu=MU)
        assert torch.equal(alone, whole[0])
    turned = stepped(*(matrix.T.contiguous().T for matrix in (gradient, momentum, weight)))
    shards = [
        stepped(*(matrix[top : top + 7].clone() for matrix in (gradient, momentum, weight))) for top in (0, 7, 54)
    ]

    for index in range(3):
        assert torch.equal(turned[index], whole[index])
        for top, shard in zip((0, 7, 54), shards, strict=True):
            assert torch.equal(shard[index], whole[index][top : top + 7])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [2**20, 256])
@pytest.mark.parametrize("along", [0.0, 1e3])
def test_advance_projected(shape, dtype, chunk, along, monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", chunk)
    u, v = unit(shape[0], 3), unit(shape[1], 4)
    gradient = some(*shape, seed=1) + along * torch.outer(u, v)
    momentum = some(*shape, seed=2) + along * torch.outer(u, v)
    expected = momentum.double().lerp(gradient.double(), 1 - MU)
    direction = (1 - MU) / MU * gradient.double() + expected
    kept = projected(direction, u, v)
    out = torch.empty(shape, dtype=dtype)

    images = passes.advance_projected(gradient, momentum, out, u, v, mu=MU, nesterov=True)

    assert distance(momentum, expected) < ROUNDING[torch.float32]
    left, right = images.factors()
    assert distance(left @ right, direction - kept) < 1e-5
    if shape[0] > 1:  # else all of it is along the pair
        # what goes leaves float32's rounding of it behind, and never bfloat16's
        assert (out.double() - kept).abs().max() < 2 * ROUNDING[dtype] * kept.abs().max() + 1e-6 * along


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_write(shape, dtype):
    weight, d = some(*shape, seed=1), some(*shape, seed=2).to(dtype)
    expected = 0.9 * weight.double() - 0.3 * d.double()
    version = weight._version

    passes.write(weight, d, keep=0.9, length=0.3)

    assert distance(weight, expected) < ROUNDING[torch.float32]
    assert weight._version > version


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [2**20, 256])
def test_write_projected(shape, dtype, chunk, monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", chunk)
    u, v = unit(shape[0], 3), unit(shape[1], 4)
    weight, d = some(*shape, seed=1), some(*shape, seed=2).to(dtype)
    change = projected(d, u, v) - 2.0 * torch.outer(u.double(), v.double())
    expected = 0.9 * weight.double() - 0.3 * change

    passes.write_projected(weight, d, u, v, keep=0.9, length=0.3, back=2.0)

    assert distance(weight, expected) < 5e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [1, 15, 16, 33, 200])
def test_normalize_and_scale_sum(side, dtype):
    rows = some(side, 300, seed=5)
    gram = (rows @ rows.T).to(dtype)
    trace = gram.double().trace()

    scaled = gram.clone()
    inverse = passes.normalize(scaled, shrink=1.5, least=SMALLEST_NORM**2)
    assert inverse == pytest.approx(1 / (1.5 * trace.sqrt().item()), rel=1e-5)
    assert distance(scaled, gram.double() / (2.25 * trace)) < 1.01 * ROUNDING[dtype]

    spread = torch.linspace(0.9, 1.1, side)
    summed = gram.clone()
    passes.scale_sum(summed, 0.7, 3.0, spread)
    expected = 0.7 * gram.double()
    expected.diagonal().add_(3.0).mul_(spread.double())
    assert distance(summed, expected) < 1.01 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_divided_by_nothing_and_nan_stays(dtype):
    zeros, broken = torch.zeros(20, 20, dtype=dtype), torch.eye(20, dtype=dtype)
    broken[3, 3] = torch.nan
    assert passes.normalize(zeros, shrink=1.0, least=SMALLEST_NORM**2) == pytest.approx(1 / SMALLEST_NORM)
    assert not zeros.any()
    assert passes.normalize(broken, shrink=1.0, least=SMALLEST_NORM**2) != 0.0
    assert broken.isnan().all()


def test_numbers_are_rounded_as_torch_rounds_them():
    halves = torch.arange(2**16, dtype=torch.int32) << 16
    numbers = torch.cat([halves + near for near in (0, 1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1)]).view(torch.float32)
    least = torch.finfo(torch.float32).tiny
    numbers = numbers[(numbers.abs() >= 2 * least) | (numbers == 0) | numbers.isnan()]  # some processors flush the rest
    for count in (len(numbers), 1):  # many at once, and one by one
        for some_numbers in numbers.split(count) if count > 1 else numbers[::997].split(1):
            out = torch.empty(len(some_numbers), dtype=torch.bfloat16)
            passes.advance(some_numbers, some_numbers.clone(), out, mu=0.0, nesterov=False)
            expected = some_numbers.to(torch.bfloat16)
            same = (out == expected) | (out.isnan() & expected.isnan())
            # infinity less itself is NaN
            assert (same | some_numbers.isinf()).all()


def test_many_threads_give_the_same_numbers():
    def run() -> tuple[Tensor, Tensor]:
        weight, momentum, gradient = (some(1500, 900, seed=seed) for seed in (1, 2, 3))
        u, v = unit(1500, 4), unit(900, 5)
        out = torch.empty(1500, 900, dtype=torch.bfloat16)
        passes.advance_projected(gradient, momentum, out, u, v, mu=MU, nesterov=True)
        passes.write_projected(weight, out, u, v, keep=0.99, length=0.1, back=0.5)
        return weight, momentum

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(2)
        together = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# -- what they do not take


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 6).T,
        torch.zeros(4, 6)[:, ::2],
        torch.zeros(4, 6, dtype=torch.float64),
        torch.zeros(4, 6, dtype=torch.float16),
        torch.zeros(4, 6, device="meta"),
        torch.zeros(4, 6).to_sparse(),
        torch.zeros(4, 6).as_subclass(type("Own", (Tensor,), {})),
    ],
    ids=["transposed", "with gaps", "float64", "float16", "meta", "sparse", "subclass"],
)
def test_other_tensors_do_not_suit(tensor):
    plain = torch.zeros(4, 6)
    assert passes.suits(plain, plain)
    assert not passes.suits(tensor)
    assert not passes.suits(plain, tensor)


def test_bfloat16_suits_only_as_the_arithmetic():
    plain, half = torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.bfloat16)
    assert passes.suits(half, plain)
    assert not passes.suits(plain, half)


def test_autograd_learns_that_a_weight_was_written():
    weight = torch.nn.Parameter(some(8, 8, seed=1))
    loss = (weight * weight.sin()).sum()
    weight.grad = torch.ones(8, 8)
    Muon([weight]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -- a step is the same with them as without


@pytest.mark.parametrize("kind", [Muon, MuonPlusPlus])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.95, 0.3])
def test_steps_are_those_of_operators(kind, nesterov, momentum, operators):
    def trained() -> list[Tensor]:
        weights = [torch.nn.Parameter(some(*shape, seed=7)) for shape in ((200, 130), (96, 300), (12, 20))]
        optimizer = kind(weights, lr=0.02, momentum=momentum, nesterov=nesterov, dtype=torch.float32)
        for step in range(6):
            for index, weight in enumerate(weights):
                weight.grad = some(*weight.shape, seed=10 * step + index)
            optimizer.step()
        return weights

    ours = trained()
    operators()
    for own, other in zip(ours, trained(), strict=True):
        assert distance(own.detach(), other.detach().double()) < 1e-5


# -- the compiler


def test_it_is_compiled_once_and_kept(fresh, tmp_path, monkeypatch):
    assert fresh() is not None
    (kept,) = (tmp_path / "internist").iterdir()
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert fresh() is not None
    assert list((tmp_path / "internist").iterdir()) == [kept]


def test_another_processor_compiles_its_own(fresh, tmp_path, monkeypatch):
    assert fresh() is not None
    monkeypatch.setattr(native, "_processor", lambda: b"another")
    assert fresh() is not None
    assert len(list((tmp_path / "internist").iterdir())) == 2


def test_threads_that_come_first_together_wait_for_one(fresh, monkeypatch):
    calls = []
    real = native._compile
    monkeypatch.setattr(native, "_compile", lambda *arguments: (calls.append(1), real(*arguments))[1])
    native._library.cache_clear()
    try:
        threads = [threading.Thread(target=native.library) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(calls) == 1
    finally:
        native._library.cache_clear()


def test_where_nothing_can_be_kept_it_is_compiled_for_the_process(fresh, tmp_path, monkeypatch):
    (tmp_path / "internist").write_text("in the way")
    assert fresh() is not None


def test_a_torn_file_in_the_cache_is_not_the_end(fresh, tmp_path):
    assert fresh() is not None
    (kept,) = (tmp_path / "internist").iterdir()
    kept.unlink()
    kept.write_bytes(b"torn")
    assert fresh() is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [(native.SWITCH, "0"), ("CC", "no-such-compiler"), ("CC", "false"), ("CC", ""), ("CC", "cc '")],
    ids=["switched off", "no compiler", "a compiler that fails", "an empty name", "an open quotation"],
)
def test_without_it_there_is_none(name, value, fresh, monkeypatch):
    monkeypatch.setenv(name, value)
    assert fresh() is None


def test_why_there_is_none_is_said_to_who_asks(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CC", "false")
    with caplog.at_level(logging.DEBUG, logger="internist"):
        assert fresh() is None
    assert "false failed" in caplog.text


def test_a_process_without_a_compiler_trains_all_the_same(tmp_path):
    script = (
        "import torch; from internist.optim import MuonPlusPlus, native\n"
        "weight = torch.nn.Parameter(torch.randn(200, 100)); weight.grad = torch.randn(200, 100)\n"
        "before = weight.detach().clone(); MuonPlusPlus([weight]).step()\n"
        "print(native.library(), torch.equal(before, weight))"
    )
    environment = os.environ | {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("None False", 0), done.stderr
    assert not Path(tmp_path, "internist").exists()
