"""The Triton implementation: in the interpreter on any machine, and on a GPU where there is one.

The interpreter is chosen when Triton is imported, so a fresh process runs this file again, with
TRITON_INTERPRET=1.
"""

import importlib
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl

from mhf_compile.kernels.flash_mhf import config, forward, waves
from mhf_compile.kernels.flash_mhf.config import Target, Tiles
from mhf_compile.kernels.flash_mhf.elementwise import slope
from mhf_compile.kernels.flash_mhf.launch import Call, Launch, target_of

from .battery import CASES, EMPTY, SLOPES, Case, check, check_each_gradient_alone, check_slope, formula

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NO_GPU = INTERPRETED or not torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="needs a CUDA device")]),
]
# What there is to choose: pointers or descriptors, on the chip or by chunks of 256 tokens, and tiles in parts
# that would be whole if parts had their cost.
TARGETS = {
    "pointers": Target("sm_80", 8),
    "descriptors": Target("sm_90", 8),
    "chunks": Target("sm_90", 8),
    "parts": Target("sm_90", 5),
}
USUAL = ("descriptors", torch.bfloat16)
OTHERS = [("parts", torch.bfloat16), ("descriptors", torch.float32), ("chunks", torch.bfloat16)]
OTHERS += [("descriptors", torch.float16), ("pointers", torch.bfloat16)]


def ways(cases, others=OTHERS):
    """Each case in one way and dtype, every second in the usual one: the interpreter takes its time."""
    turns = [way for other in others for way in (USUAL, other)]
    return [
        pytest.param(*way, case, id=f"{name}-{way[0]}-{way[1]}")
        for (name, case), way in zip(cases.items(), itertools.cycle(turns), strict=False)
    ]


# Each width of a head with some width of a sub-network, and every number of sub-networks; ragged tokens.
MATRIX = {
    "d 16, e 341": Case(length=83, head_dim=16, out_dim=16, width=341, subnetworks=1),
    "d 20, e 256": Case(
        batch=1, length=65, heads=4, head_dim=20, out_dim=20, width=256, subnetworks=1, biases=True
    ),
    "d 64, e 28": Case(batch=1, length=70, head_dim=64, out_dim=64, width=28, subnetworks=11),
    "d 96, e 16": Case(length=37, head_dim=96, out_dim=96, width=16, subnetworks=11, layout="expanded"),
    "d 100, e 28": Case(length=33, head_dim=100, out_dim=100, width=28, layout="reversed axes", biases=True),
    "d 128, e 256": Case(
        batch=1, length=70, heads=2, kv_heads=1, head_dim=128, out_dim=128, width=256, subnetworks=2
    ),
    "d 128, e 16": Case(batch=1, length=129, heads=2, head_dim=128, out_dim=128, width=16, subnetworks=11),
    "d 256, e 28": Case(length=67, heads=2, kv_heads=1, head_dim=256, out_dim=256, width=28),
    "d 256, e 341": Case(batch=1, length=5, heads=1, kv_heads=1, head_dim=256, out_dim=256, width=341),
    "d 300": Case(batch=1, length=300, heads=2, kv_heads=1, head_dim=300, out_dim=20, width=28, biases=True),
    "several chunks": Case(
        batch=1, length=260, heads=4, kv_heads=2, head_dim=20, out_dim=24, width=28, biases=True
    ),
    "one token": Case(batch=1, length=1, head_dim=128, out_dim=128, width=256, subnetworks=2),
    "ungated": Case(
        length=70, heads=2, head_dim=96, subnetworks=2, width=72, out_dim=80, gated=False, activation="gelu"
    ),
}

if INTERPRETED:  # which takes its time; sizes are drawn as well
    MATRIX = dict(itertools.islice(MATRIX.items(), 0, None, 2))

PAIRS = {
    "d 80, o 96": Case(length=35, kv_heads=1, head_dim=80, out_dim=96, subnetworks=2, width=33, biases=True),
    "d 96, o 64": Case(batch=1, length=70, head_dim=96, out_dim=64, width=40, gated=False, activation="gelu"),
}


@triton.jit
def slopes(x, y, size, NAME: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, slope(tl.load(x + i, i < size), NAME, False), i < size)


@pytest.fixture(params=TARGETS)
def kernels(request, monkeypatch):
    """An implementation for `battery`, on one of the targets; on a GPU on itself."""
    if request.param == "parts":
        monkeypatch.setattr(waves, "ADDING", 0)
    if request.param == "chunks":
        monkeypatch.setattr(config, "backward_chunk", lambda sizes, workspace, arch: min(256, sizes.tokens))
    device, target = request.getfixturevalue("device"), TARGETS[request.param]
    if device == "cuda":
        target = None
        if request.param == "pointers":
            pytest.skip("is the same as with descriptors")
    return implementation(target=target)


@pytest.fixture
def launched(monkeypatch):
    """What is launched, as it is."""
    found = []
    run = Launch.run

    def watched(launch):
        found.append(launch)
        run(launch)

    monkeypatch.setattr(Launch, "run", watched)
    return found


def implementation(**options):
    """What `battery` takes, with some options of both passes."""
    folder = "mhf_compile.kernels.flash_mhf"
    return SimpleNamespace(
        forward=partial(importlib.import_module(f"{folder}.forward").forward, **options),
        backward=partial(importlib.import_module(f"{folder}.backward").backward, **options),
    )


@pytest.mark.skipif(INTERPRETED, reason="is the interpreter")
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    file = Path(__file__).with_name("test_expressions.py")
    kernels = ("test_a_kernel_computes_a_function", "test_a_kernel_computes_what_overflows_on_the_way")
    tests = [__file__, *(f"{file}::{name}" for name in kernels)]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kernels", "dtype", "case"), ways(CASES), indirect=["kernels"])
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", SLOPES)
def test_slopes_of_large_gates_have_their_digits(activation, device):
    def run(x):
        y = torch.empty_like(x)
        slopes[(1,)](x, y, len(x), activation, triton.next_power_of_2(len(x)))
        return y

    check_slope(run, activation, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kernels", "dtype", "case"),
    ways(MATRIX, [way for way in OTHERS if way[1] == torch.bfloat16]),  # float32 has the smallest tiles
    indirect=["kernels"],
)
def test_sizes(kernels, case, dtype, device):
    check(kernels, case, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS)
def test_two_descriptors_of_an_operand(case, device, launched, monkeypatch):
    """The candidates of 96 columns that have two, in the place of those in use."""
    rows = {key: [t for t in row if t.described == 2] for key, row in config.HOPPER.items()}
    for key, row in rows.items():
        if row:
            monkeypatch.setitem(config.HOPPER, key, row)
    monkeypatch.setattr(waves, "ADDING", 0)
    check(
        implementation(target=Target("sm_90", 5) if device == "cpu" else None), case, torch.bfloat16, device
    )
    described = {launch.options.get("DESCRIBED", True) for launch in launched}  # a sum has no choice
    assert device == "cuda" or described == {True}


ALONE = {
    "grouped": Case(length=35, kv_heads=1, head_dim=256, out_dim=256, subnetworks=2, width=33, biases=True),
    "narrow values": Case(batch=1, length=20, head_dim=256, out_dim=40, width=64, scale=1.3, router=False),
    "ungated": Case(batch=1, length=20, head_dim=200, out_dim=256, width=28, gated=False, activation="gelu"),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("case", "adding"), [*((case, 0) for case in ALONE.values()), (ALONE["grouped"], waves.ADDING)]
)
def test_each_gradient_of_wide_heads_has_a_kernel_where_there_is_no_workspace(
    case, adding, device, launched, monkeypatch
):
    monkeypatch.setattr(waves, "ADDING", adding)
    target = Target("sm_90", 5) if device == "cpu" else None
    check(implementation(target=target, workspace=0), case, torch.bfloat16, device)
    if device == "cpu":
        names = {launch.name for launch in launched}
        assert {"dq", "dk", "dv"} | ({"du"} if case.gated else set()) <= names
        assert not any(name.startswith("chunk") for name in names)


FEW = {
    "one token": Case(batch=1, length=1, subnetworks=3, width=70),
    "blocks of tokens": Case(length=20, kv_heads=1, head_dim=96, out_dim=80, width=20, biases=True),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", FEW.values(), ids=FEW)
def test_the_last_program_adds_what_another_launch_would(case, dtype, device):
    """Bit by bit, whichever program is the last; the counters' place is their own for each block and head."""
    target = target_of(torch.device("cuda")) if device == "cuda" else Target("sm_90", 8)
    operands = case.operands(dtype, device)
    results = []
    for joined in (False, True):
        forced = {"decode": Tiles(16, 16, 4, 2, joined=joined)}
        call = Call(*operands, *case.constants, target, forced=forced)
        out = operands[0].new_full((*operands[0].shape[:3], case.out_dim), torch.nan)
        launches = forward.launches(call, out)
        assert [launch.name for launch in launches] == (["decode"] if joined else ["decode", "sum"])
        for _ in range(1 + joined):  # it leaves the counters as they were
            out.fill_(torch.nan)
            for launch in launches:
                launch.run()
            results.append(out.clone())
    assert results[0].isfinite().all()
    assert all(torch.equal(results[0], out) for out in results[1:])


INFINITE = [("descriptors", value, "silu") for value in (torch.inf, -torch.inf, torch.nan)]
INFINITE += [("chunks", torch.inf, "relu"), ("parts", -torch.inf, "relu"), ("pointers", torch.nan, "relu")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kernels", "value", "activation"), INFINITE, indirect=["kernels"])
def test_what_is_not_finite_stays_in_its_token(kernels, value, activation, device):
    case = replace(CASES["odd sizes"], activation=activation)
    operands = case.operands(torch.float32, device)
    grad = torch.ones(*operands[0].shape[:3], case.out_dim, device=device)
    clean = kernels.backward(grad, *operands, *case.constants, [True] * 7)
    operands[0][0, 3, 1] = value
    out = kernels.forward(*operands, *case.constants)
    others = torch.ones(out.shape[:3], dtype=torch.bool, device=device)
    others[0, 3, 1] = False
    assert out[others].isfinite().all()
    assert torch.equal(out.isnan(), formula(*operands, *case.constants).isnan())
    dq, *weights = kernels.backward(grad, *operands, *case.constants, [True] * 7)
    assert torch.equal(dq[others], clean[0][others])
    assert not all(x.isfinite().all() for x in weights[:3])  # of the head that it belongs to


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mean", [0, -2, -3])
def test_gates_that_are_shifted(mean):
    """The approximate tanh has no interpreter; -3 is about as far as it errs less than eager does."""
    case = Case(batch=1, length=500, head_dim=128, out_dim=128, subnetworks=2, width=256, shift=mean)
    check(implementation(), case, torch.bfloat16, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("adding", [waves.ADDING, 0])
def test_the_operator_on_a_gpu_is_deterministic(adding, monkeypatch):
    from mhf_compile.kernels.ops import flash_mhf

    monkeypatch.setattr(waves, "ADDING", adding)
    xs = [
        None if x is None else x.requires_grad_()
        for x in MATRIX["d 96, e 16"].operands(torch.bfloat16, "cuda")[:5]
    ]
    first, second = (torch.autograd.grad(flash_mhf(*xs).sum(), xs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
