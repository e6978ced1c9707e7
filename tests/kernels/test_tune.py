"""Trying candidates: which rows on what, and who may win. The kernels run in Triton's interpreter.

The interpreter is chosen when Triton is imported, so a fresh process runs this file again, with
TRITON_INTERPRET=1.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from triton.runtime.errors import OutOfResources, PTXASError

from mhf_compile.kernels.flash_mhf import ahead, config, tune
from mhf_compile.kernels.flash_mhf.config import Sizes, Target, Tiles
from mhf_compile.kernels.flash_mhf.tune import Trial

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU = torch.device("cpu")
HOPPER = Target("sm_90", 4)
SMALL = Sizes(0, 2, 1, 2, 20, 20, 20, gated=True, dtype=torch.bfloat16)
BLOCKS = Tiles(16, 16, 4, 1)

interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
once = pytest.mark.skipif(INTERPRETED, reason="needs no interpreter")


@once
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def layer(head_dim, dtype=torch.bfloat16, *, heads=8, subnetworks=11):
    return Sizes(0, heads, heads, subnetworks, 256, head_dim, head_dim, gated=True, dtype=dtype)


@once
def test_each_row_that_a_layer_needs_is_tried_once():
    found = tune.problems([layer(96), layer(128), layer(128, heads=16)], "sm_90")
    assert list(found) == [
        ("forward", 2, 96),
        ("decode", 2, 96),
        ("dq", 2, 96),
        ("weights", 2, 96),
        ("chunk", 2, 0),
        ("chunk_decode", 2, 0),
        ("forward", 2, 128),
        ("decode", 2, 128),
        ("dq", 2, 128),
        ("dk_du", 2, 128),
        ("dv", 2, 128),
    ]
    assert {sizes.heads for key, sizes in found.items() if key[0] not in ("chunk", "chunk_decode")} == {8}
    tokens = {key[0]: sizes.tokens for key, sizes in found.items()}
    assert tokens == {
        **dict.fromkeys(("forward", "dq", "weights", "dk_du", "dv"), 16384),
        "decode": 16,
        "chunk": 2048,
        "chunk_decode": 16,
    }


@once
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("arch", config.FAMILIES)
def test_problems_reach_the_row_that_they_are_for(arch, dtype):
    layers = [layer(size, dtype) for size in (64, 96, 128)]
    found = tune.problems(layers, arch, tokens=1000, decoded=3)
    assert set(found) <= set(config.table(arch))
    for (kernel, *_), sizes in found.items():
        if kernel in ("forward", "decode"):
            assert sizes.held and config.forward_kernel(sizes) == kernel
        elif kernel in ("chunk", "chunk_decode"):
            assert config.forward_chunk(sizes, None) == sizes.tokens
            assert config.chunk_kernel(sizes.tokens) == kernel
            assert sizes.head_dim == 8 * 64 and sizes.width == 11 * 256
        else:
            assert kernel in ("dq", *config.weight_kernels(sizes, arch))


@once
def test_an_architecture_without_a_table():
    with pytest.raises(ValueError, match="sm_75"):
        tune.problems([layer(128)], "sm_75")


@once
def test_the_fastest_of_those_that_work():
    trials = [
        Trial(BLOCKS, 3.0),
        Trial(BLOCKS._replace(stages=2), None, "why"),
        Trial(Tiles(32, 16, 4, 1), 2.0),
    ]
    assert tune.fastest(trials) == Tiles(32, 16, 4, 1)
    assert tune.fastest(trials[1:2]) is None


@once
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_agrees_and_a_lost_block_does_not(dtype):
    torch.manual_seed(0)
    terms, sizes = 512, SMALL._replace(tokens=512, width=512, dtype=dtype)
    a, b = torch.randn(512, terms).to(dtype).float(), torch.randn(terms, 64).to(dtype).float()
    whole = (a @ b).to(dtype)
    assert tune.agree(
        sum(a[:, i : i + 16] @ b[i : i + 16] for i in range(0, terms, 16)).to(dtype), whole, sizes
    )
    rounded = (a * (1 + torch.finfo(dtype).eps * torch.rand_like(a).sub(0.5))) @ b  # values on the way
    assert tune.agree(rounded.to(dtype), whole, sizes)
    assert tune.agree(whole, whole, sizes)
    lost, scaled, missing = whole.clone(), whole.clone(), whole.clone()
    lost[:16] = (a[:16, :-16] @ b[:-16]).to(dtype)  # one block of rows, one step
    scaled[5] *= 1.25
    missing[7, 3] = torch.nan
    for wrong in (lost, scaled, missing):
        assert not tune.agree(wrong, whole, sizes)


def in_order(runs):
    """A clock by which each function takes longer than the one before it."""
    for run in runs:
        run()
    return [float(i) for i, _ in enumerate(runs, start=1)]


def slower_first(runs):
    return [-seconds for seconds in in_order(runs)]


def tried(monkeypatch, kernel, candidates, measure=in_order, sizes=SMALL, failed=None):
    found = tune.problems([sizes], "sm_90", tokens=72, decoded=3)
    key = next(key for key in found if key[0] == kernel)
    monkeypatch.setitem(config.HOPPER, key, tuple(candidates))
    return tune.trials(key, found[key], HOPPER, CPU, measure, failed or {})


@interpreted
@pytest.mark.parametrize(
    ("kernel", "gated"),
    [(name, True) for name in ("forward", "decode", "dq", "weights", "chunk", "chunk_decode")]
    + [("weights", False)],
)
def test_candidates_of_each_kernel_agree(monkeypatch, kernel, gated):
    columns = 16 if kernel.startswith("chunk") else 0
    candidates = [Tiles(16, 32, 4, 1, columns=columns), Tiles(32, 16, 4, 2, True, columns=columns * 2)]
    trials = tried(monkeypatch, kernel, candidates, slower_first, SMALL._replace(gated=gated))
    assert trials == [Trial(candidates[0], -1.0), Trial(candidates[1], -2.0)]
    assert tune.fastest(trials) == candidates[1]


@interpreted
@pytest.mark.parametrize("kernel", ["dk_du", "dv"])
def test_kernels_of_wide_heads_agree(monkeypatch, kernel):
    sizes = SMALL._replace(head_dim=100, out_dim=100, width=20)
    trials = tried(monkeypatch, kernel, [BLOCKS, Tiles(32, 32, 4, 1)], sizes=sizes)
    assert [trial.seconds for trial in trials] == [1.0, 2.0]


@interpreted
def test_what_fails_is_left_out_and_says_why(monkeypatch):
    right = tune.forward.launches

    def some(call, out):
        stages = call.tiles("forward").stages
        if stages == 1:
            raise PTXASError("ptxas fatal\nmore of it")
        launches = right(call, out)
        if stages == 3:
            kernel = {launches[0].grid: lambda *_, **__: exhausted()}
            launches[0] = launches[0]._replace(kernel=kernel)
        return launches

    def exhausted():
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(tune.forward, "launches", some)
    trials = tried(monkeypatch, "forward", [BLOCKS._replace(stages=stages) for stages in (1, 2, 3, 4)])
    assert [trial.seconds for trial in trials] == [None, 1.0, None, 2.0]
    assert trials[0].why.startswith("PTXASError: ") and "\n" not in trials[0].why
    assert "out of resource: shared memory, Required: 300000, Hardware limit: 232448" in trials[2].why
    assert tune.fastest(trials) == BLOCKS._replace(stages=2)
    assert tune.fastest(tried(monkeypatch, "forward", [BLOCKS, BLOCKS._replace(stages=3)])) is None


@interpreted
def test_what_could_not_be_compiled_is_not_tried(monkeypatch):
    candidates = [BLOCKS, BLOCKS._replace(stages=2)]
    trials = tried(monkeypatch, "forward", candidates, failed={BLOCKS: "took longer than 180 s"})
    assert trials == [Trial(BLOCKS, None, "took longer than 180 s"), Trial(candidates[1], 1.0)]


@once
@pytest.mark.parametrize(
    ("kernel", "tiles"),
    [
        ("forward", Tiles(64, 64, 4, 2, True)),
        ("decode", Tiles(16, 32, 4, 2)),
        ("dq", Tiles(64, 32, 4, 2, True, resident=True, collected=True)),
        ("chunk", Tiles(64, 64, 4, 2, columns=32)),
    ],
)
def test_what_is_compiled_ahead_is_what_is_launched(kernel, tiles):
    """Its kernels are found again by a launch of the same candidate."""
    sizes = tune.problems([layer(64)], "sm_90", tokens=128, decoded=3)
    key = next(key for key in sizes if key[0] == kernel)
    candidate = tune.Candidate(key, sizes[key], tiles, HOPPER)
    assert tune.compiled(candidate) == ""
    call, grad = tune._call(sizes[key], HOPPER, CPU)
    launches, _ = tune._launches(kernel, replace(call, forced={kernel: tiles}), grad)
    assert launches
    for launch in launches:
        assert ahead.compile_or_find(launch, "sm_90").cached is None  # this process did it


@once
def test_why_a_candidate_does_not_compile():
    sizes = tune.problems([layer(64)], "sm_90")["forward", 2, 64]
    why = tune.compiled(tune.Candidate(("forward", 2, 64), sizes, Tiles(48, 64, 4, 2), HOPPER))
    assert why and "\n" not in why


@once
def test_few_tokens_are_tried_in_blocks_that_hold_them(monkeypatch):
    key, sizes = ("decode", 2, 128), SMALL._replace(tokens=20)
    low, high = Tiles(16, 64, 4, 3), Tiles(32, 64, 4, 3)
    monkeypatch.setitem(config.HOPPER, key, (low, high))
    assert tune.candidates_of(key, sizes, "sm_90") == (high,)
    assert tune.candidates_of(key, sizes._replace(tokens=16), "sm_90") == (low, high)


@interpreted
def test_a_wrong_result_never_wins(monkeypatch):
    right = tune.forward.launches

    def wrong(call, out):
        launches = right(call, out)
        if call.tiles("forward").stages == 3:
            launches[0].options["ACTIVATION"] = "relu"
        return launches

    monkeypatch.setattr(tune.forward, "launches", wrong)
    candidates = [BLOCKS._replace(stages=stages) for stages in (1, 2, 3)]
    trials = tried(monkeypatch, "forward", candidates, slower_first)
    assert [trial.seconds for trial in trials] == [-1.0, -2.0, None]
    assert trials[2].why == "its result is not that of the first that ran"


@interpreted
def test_what_is_not_written_never_wins(monkeypatch):
    right = tune.backward.launches

    def halved(call, grad, grads):
        launches = right(call, grad, grads)
        if call.tiles("weights").stages == 2:
            launches[0] = launches[0]._replace(grid=(launches[0].grid[0] - 1, *launches[0].grid[1:]))
        return launches

    monkeypatch.setattr(tune.backward, "launches", halved)
    trials = tried(monkeypatch, "weights", [BLOCKS, BLOCKS._replace(stages=2)])
    assert [trial.seconds for trial in trials] == [1.0, None]
