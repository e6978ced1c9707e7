"""The Triton implementation: in the interpreter on any machine, and on a GPU where there is one.

The interpreter is chosen when Triton is imported, so a fresh process runs this file again, with
TRITON_INTERPRET=1.
"""

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from .battery import CASES, EMPTY, Case, check, check_each_gradient_alone

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="is interpreted")]),
]
LARGE = {  # several blocks along every axis, and none of them full
    "ragged": Case(length=129, heads=4, kv_heads=2, head_dim=96, subnetworks=3, width=200, out_dim=80),
    "wide": Case(
        batch=1, length=300, heads=1, kv_heads=1, head_dim=256, subnetworks=1, width=1000, out_dim=256
    ),
    "ungated": Case(
        length=129, heads=4, head_dim=96, subnetworks=3, width=200, out_dim=80, gated=False, activation="gelu"
    ),
}


@pytest.fixture
def kernels(request):
    if request.getfixturevalue("device") == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    folder = "mhf_compile.kernels.flash_mhf"
    return SimpleNamespace(
        forward=importlib.import_module(f"{folder}.forward").forward,
        backward=importlib.import_module(f"{folder}.backward").backward,
    )


@pytest.mark.skipif(INTERPRETED, reason="is the interpreter")
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_errs_at_most_twice_as_much_as_eager(kernels, case, dtype, device):
    check(kernels, case, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_a_sum_has_stride_zero(kernels, dtype, device):
    check(kernels, CASES["plain"], dtype, device, expanded_grad=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY)
def test_without_tokens_weight_gradients_are_zero(kernels, case, device):
    operands = case.operands(torch.float32, device)
    out = kernels.forward(*operands, *case.constants)
    needs = [x is not None for x in operands]
    dq, *weights = kernels.backward(out, *operands, *case.constants, needs)
    assert out.shape == (case.batch, case.length, case.heads, case.out_dim)
    assert dq.numel() == 0
    assert not any(g.any() for g in weights)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["biases", "ungated gelu"])
def test_a_gradient_alone_is_the_one_among_all(kernels, case, device):
    check_each_gradient_alone(kernels, CASES[case], device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_several_blocks(kernels, case, dtype, device):
    check(kernels, case, dtype, device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_operator_on_a_gpu_is_deterministic():
    from mhf_compile.kernels.ops import flash_mhf

    xs = [
        None if x is None else x.requires_grad_()
        for x in LARGE["ragged"].operands(torch.bfloat16, "cuda")[:5]
    ]
    first, second = (torch.autograd.grad(flash_mhf(*xs).sum(), xs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
