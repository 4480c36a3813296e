"""Fused kernels: their tests under Triton's interpreter, and how they are reached on an accelerator."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from internist.measures.kernels import operators
from internist.measures.kernels.extent import extent, rows

FOLDER = Path(__file__).parent / "kernels"

SECONDS = 170
"""For all tests of kernels, on a busy machine."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux")


class Seen(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@needs_triton
def test_kernels_hold_what_their_own_tests_say_of_them():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER), "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
def test_kernels_run_on_accelerators_and_nowhere_else():
    usable = [operators.usable(torch.device(name)) for name in ("cuda", "xpu", "cpu", "meta", "mps")]

    assert usable == [True, True, False, False, False]


def test_importing_measures_does_not_import_triton():
    program = "import sys, internist.measures.kernels.extent; sys.exit('triton' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], timeout=SECONDS, check=False).returncode == 0


def test_an_extent_is_one_operator_on_an_accelerator():
    with FakeTensorMode():
        x, out = torch.empty(2, 5, 8, device="cuda"), torch.empty(rows(None, True), 10, device="cuda")
        with Seen() as seen:
            extent(x, out, log_z=True)

    assert seen.names == ["internist.extent.default"]


def test_an_extent_on_the_meta_device_reads_nothing():
    x, out = torch.empty(5, 8, device="meta"), torch.empty(5, 5, device="meta")

    extent(x, out, x)


def test_a_kernel_leaves_gradients_alone():
    x = torch.ones(3, 4, requires_grad=True)
    out = torch.zeros(3, 3)
    extent(x, out)

    assert not out.requires_grad
    assert out.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]


def test_a_kernel_that_fails_is_said_once_and_torch_does_its_work(monkeypatch, caplog):
    monkeypatch.setattr(operators, "usable", bool)
    monkeypatch.setattr(operators, "_GIVEN_UP", set())
    monkeypatch.setitem(sys.modules, "internist.measures.kernels.extent_kernel", sys)  # it has no launch
    operators._loaded.cache_clear()
    out = torch.zeros(3, 3)
    for _ in range(2):
        extent(torch.ones(3, 4), out.zero_())
    operators._loaded.cache_clear()

    assert out[0].tolist() == [1.0] * 3
    assert [record.message.split(",")[0] for record in caplog.records] == ["kernel extent failed"]


@pytest.mark.parametrize(
    ("x", "out", "source", "expected"),
    [
        (torch.ones(4), torch.zeros(3, 1), None, "expected a floating"),
        (torch.ones(4, 2).int(), torch.zeros(3, 4), None, "expected a floating"),
        (torch.ones(4, 0), torch.zeros(3, 4), None, "expected a floating"),
        (torch.ones(4, 2), torch.zeros(3, 5), None, r"expected out to be float32 rows \(3, 4\)"),
        (torch.ones(4, 2), torch.zeros(3, 4).double(), None, "expected out to be float32"),
        (torch.ones(4, 2), torch.zeros(4, 5).T, torch.ones(4, 2), "expected out to be float32"),
        (torch.ones(4, 2), torch.zeros(5, 4), torch.ones(2, 4), r"expected a floating source \(4, 2\)"),
        (torch.ones(4, 2), torch.zeros(3, 4, device="meta"), None, "expected all tensors on cpu, got one on meta"),
    ],
)
def test_an_extent_refuses_what_does_not_fit(x, out, source, expected):
    with pytest.raises(ValueError, match=expected):
        extent(x, out, source)
