"""Fused kernels: their tests under Triton's interpreter, and how they are reached on an accelerator."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from internist.measures.attention import max_logits
from internist.measures.kernels import operators
from internist.measures.kernels.extent import extent, rows
from internist.measures.kernels.max_logits import max_logits as max_logits_of_a_band
from internist.measures.logit_pieces import Visibility

FOLDER = Path(__file__).parent / "kernels"

SECONDS = 400
"""For all tests of kernels, on a busy machine; a quiet one takes a tenth."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux")


class Seen(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def later_keys(_batch, _head, query, key):
    return key <= query


@needs_triton
@pytest.mark.timeout(SECONDS + 20)
def test_kernels_hold_what_their_own_tests_say_of_them():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER), "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


CARDS = [80, 90]
"""Compute capabilities: A100 and H100."""


@needs_triton
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("module", ["extent_kernel", "max_logits_kernel"])
def test_kernels_compile_for_cards_and_read_many_entries_at_once(module, card, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants, aligned = {
        "extent_kernel": (
            "_extent",
            {"HAS_SOURCE": True, "LOG_Z": True, "HEIGHT": 2, "WIDTH": 1024, "x_feature": 1, "source_feature": 1},
            ("features", "x_batch", "x_token", "source_batch", "source_token"),
        ),
        "max_logits_kernel": (
            "_extremes",
            {"D": 64, "FEATURES": 64, "QUERIES": 128, "KEYS": 64, "APART": True, "q_feature": 1, "k_feature": 1},
            ("q_batch", "q_head", "q_token", "k_batch", "k_head", "k_token"),
        ),
    }[module]
    function = getattr(importlib.import_module(f"internist.measures.kernels.{module}"), kernel)
    tensors = {"x": "*bf16", "source": "*bf16", "q": "*bf16", "k": "*bf16", "out": "*fp32", "extremes": "*fp32"}
    kinds = dict.fromkeys(constants, "constexpr") | tensors | {"scale": "fp32"}
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={name: kinds.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in names if name in {*tensors, *aligned}},
    )
    assembly = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 8}).asm["ptx"]

    # what is read by single entries is read slowly, and never while others are multiplied
    assert any(wide in assembly for wide in ("ld.global.v4", "cp.async.cg.shared.global"))
    assert "ld.global.b16" not in assembly


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


@needs_triton
def test_largest_logits_are_one_operator_on_an_accelerator():
    with FakeTensorMode():
        q, k = torch.empty(2, 4, 9, 8, device="cuda"), torch.empty(2, 2, 9, 8, device="cuda")
        with Seen() as seen:
            found = max_logits(q, k, is_causal=True, enable_gqa=True, softcap=30.0, window=(4, None))

    assert seen.names == ["internist.max_logits.default"]
    assert (found.shape, found.dtype, found.device.type) == ((2, 4), torch.float32, "cuda")


@pytest.mark.parametrize(
    "hidden",
    [
        {"mask": torch.empty(9, 9, device="meta")},
        {"mask": torch.empty(1, 1, 1, 9, device="meta", dtype=torch.bool)},
        {"score_mod": lambda scores, *_: scores * 2},
        {"mask_mod": later_keys},
    ],
    ids=["additive mask", "bool mask", "score_mod", "mask_mod"],
)
def test_what_else_hides_keys_or_changes_logits_takes_no_kernel(hidden, monkeypatch):
    monkeypatch.setattr(operators, "DEVICES", {"meta"})
    q = torch.empty(1, 2, 9, 8, device="meta")
    with Seen() as seen:
        assert max_logits(q, q, **hidden).shape == (2, 2)

    assert "aten.bmm.default" in seen.names
    assert "internist.max_logits.default" not in seen.names


def test_a_cpu_takes_no_kernel():
    with Seen() as seen:
        max_logits(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))

    assert "internist.max_logits.default" not in seen.names


def test_a_kernel_refuses_functions_of_indices_and_shapes_that_do_not_fit():
    q = torch.ones(1, 2, 3, 4)

    with pytest.raises(ValueError, match="a band alone"):
        max_logits_of_a_band(q, q, Visibility(None, 0, 0, mask_mod=later_keys), scale=1.0, softcap=None)
    for k in (q[0], q[..., :2], q[:, :0], torch.ones(1, 3, 3, 4)):
        with pytest.raises(ValueError, match="K a divisor of H"):
            max_logits_of_a_band(q, k, Visibility(None, 0, 0), scale=1.0, softcap=None)
    with pytest.raises(ValueError, match="floating q and k on one device"):
        max_logits_of_a_band(q, q.long(), Visibility(None, 0, 0), scale=1.0, softcap=None)


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
