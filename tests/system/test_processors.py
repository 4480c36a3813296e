"""What holds on this processor holds on others: a telling part of the tests, with other vector instructions.

Torch's operators, its oneDNN and its BLAS choose instructions by the environment, so one machine stands for several.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

NONE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}

PROCESSORS = {
    "without_vectors": NONE,
    "avx2": AVX2,
    "avx2_without_a_compiler": AVX2 | {"INTERNIST_NATIVE": "0"},
    "avx2_with_two_threads": AVX2 | {"OMP_NUM_THREADS": "2"},
    "avx512_without_bfloat16_and_tiles": AVX512,
}

TELLING = (
    "tests/client/measures/test_host.py",
    "tests/client/measures/test_weights.py",
    "tests/client/optim/test_alignment.py",
    "tests/client/optim/test_top_pair.py",
    "tests/client/optim/test_distributed.py::test_ranks_step_like_one_process[two-float32-rows]",
    "tests/client/optim/test_distributed.py::test_ranks_step_like_one_process[two-decay-plain]",
    "tests/client/optim/test_distributed.py::test_ranks_step_like_one_process[two-decay-rows]",
    "tests/client/optim/test_distributed.py::test_every_option_is_that_of_one_process[two-bfloat16-rows]",
)
"""Sums of many entries, products of matrices, and ranks that must agree."""

SECONDS = 400
"""For all of them on a busy machine; a quiet one takes a tenth."""


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_what_counts_holds_with_other_instructions(processor):
    if processor.startswith("avx512") and not torch.cpu._is_avx512_supported():
        pytest.skip("this processor has no AVX-512")
    if processor.startswith("avx2") and not torch.cpu._is_avx2_supported():
        pytest.skip("this processor has no AVX2")
    environment = {"OMP_NUM_THREADS": "1"} | {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TELLING],
        cwd=ROOT, env=environment | PROCESSORS[processor], capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
