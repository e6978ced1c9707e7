"""The kernels whose warps are of several kinds: where they are used, and on a GPU what they compute."""

import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mhf_compile.kernels.flash_mhf import backward, config, forward, waves
from mhf_compile.kernels.flash_mhf.ahead import compile_ahead
from mhf_compile.kernels.flash_mhf.backward import weights_kernel
from mhf_compile.kernels.flash_mhf.config import Target
from mhf_compile.kernels.flash_mhf.launch import Call, Launch, _has_specialised
from mhf_compile.kernels.flash_mhf.specialised import specialised_kernel

from .battery import NAMES, Case, check, check_each_gradient_alone

H100 = Target("sm_90", 132)
ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GOOD = Case(length=192, head_dim=128, out_dim=128, width=256)


def of_meta(case, dtype=torch.bfloat16, **changed):
    operands = {
        name: None if x is None else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        for name, x in zip(NAMES, case.operands(dtype), strict=True)
    }
    return Call(*{**operands, **changed}.values(), *case.constants, H100)


def kernels_of(call, grad=None, wanted="kuv"):
    """Which kernels make the gradients of the weights."""
    gradients = [torch.empty_like(getattr(call, name)) if name in wanted else None for name in "kuv"]
    grad = torch.empty_like(call.q) if grad is None else grad
    launches = backward.launches(call, grad, [None, *gradients, None, None, None])
    return {launch.name: launch for launch in launches if launch.name != "sum"}


@pytest.mark.parametrize(
    "case",
    [
        GOOD,
        replace(GOOD, router=False),
        replace(GOOD, heads=4, gate_scale=0.7, scale=1.3, length=32, batch=4),
    ],
)
def test_they_are_used_for_whole_tiles(case):
    found = kernels_of(of_meta(case))
    assert [launch.kernel for launch in found.values()] == [specialised_kernel] * 2
    assert all(launch.tiles.specialised for launch in found.values())


@pytest.mark.parametrize(
    "case",
    [
        replace(GOOD, length=191),
        replace(GOOD, width=250),
        replace(GOOD, head_dim=112),
        replace(GOOD, out_dim=112),
        replace(GOOD, biases=True),
        replace(GOOD, activation="gelu"),
        replace(GOOD, gated=False),
        replace(GOOD, layout="every other"),
    ],
)
def test_elsewhere_the_others_are(case):
    call = of_meta(case)
    wanted = "kuv" if case.gated else "kv"
    found = kernels_of(call, torch.empty(*call.q.shape[:3], case.out_dim, device="meta").bfloat16(), wanted)
    assert found and all(launch.kernel is weights_kernel for launch in found.values())
    row = config.HOPPER["dk_du", 2, 128]
    assert found["dk_du"].tiles.rows == next(tiles for tiles in row if not tiles.specialised).rows


def test_other_dtypes_and_devices_have_none():
    call = of_meta(GOOD, torch.float16)
    assert all(launch.kernel is weights_kernel for launch in kernels_of(call).values())
    call = replace(of_meta(GOOD), target=Target("sm_100", 148))
    assert all(launch.kernel is weights_kernel for launch in kernels_of(call).values())


def test_without_gluon_there_are_none(monkeypatch):
    name = specialised_kernel.__module__
    monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    _has_specialised.cache_clear()
    try:
        assert all(found.kernel is weights_kernel for found in kernels_of(of_meta(GOOD)).values())
    finally:
        _has_specialised.cache_clear()


def test_q_may_be_a_part_of_wider_rows_and_an_expanded_gradient_is_copied():
    wide = torch.empty(2, 192, 3, 2, 128, dtype=torch.bfloat16, device="meta")
    call = of_meta(GOOD, q=wide[:, :, 1])
    grad = torch.empty((), dtype=torch.bfloat16, device="meta").expand(call.q.shape)
    found = kernels_of(call, grad)
    assert [launch.kernel for launch in found.values()] == [specialised_kernel] * 2
    assert found["dv"].args[0].strides == [3 * 256, 1] and found["dv"].args[1].strides == [256, 1]
    heads_first = torch.empty(2, 2, 192, 128, dtype=torch.bfloat16, device="meta").transpose(1, 2)
    assert kernels_of(of_meta(GOOD, q=heads_first))["dv"].kernel is weights_kernel


@pytest.mark.parametrize("router", [True, False])
def test_they_compile_ahead_of_time(router):
    """Without a GPU that is all there is to see of them; ptxas says what it had to serialise."""
    case = replace(GOOD, router=router, heads=4, gate_scale=0.7, scale=1.3)
    for launch in kernels_of(of_meta(case), wanted="kv").values():
        kernel = compile_ahead(launch, "sm_90")
        assert "wgmma.mma_async" in kernel.asm["ptx"] and "setmaxnreg" in kernel.asm["ptx"]


@pytest.fixture
def launched(monkeypatch):
    """The kernels that are launched, as they are."""
    found = set()
    run = Launch.run

    def watched(launch):
        found.add(launch.kernel)
        run(launch)

    monkeypatch.setattr(Launch, "run", watched)
    return found


IMPLEMENTATION = SimpleNamespace(
    forward=partial(forward.forward, workspace=0), backward=partial(backward.backward, workspace=0)
)
CASES = {
    "as in a layer": (GOOD, False),
    "one block, one tile": (replace(GOOD, batch=1, length=64, subnetworks=1, width=128), False),
    "grouped heads, scales": (replace(GOOD, heads=4, gate_scale=0.7, scale=1.3, width=128), False),
    "no router": (replace(GOOD, router=False, subnetworks=1, width=384), False),
    "many tokens": (replace(GOOD, batch=1, length=4096, subnetworks=11), False),
    "the gradient of a sum": (GOOD, True),
    "gates that are shifted": (replace(GOOD, shift=-3), False),
}


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_A_GPU)])
@pytest.mark.parametrize("adding", [waves.ADDING, 0])
@pytest.mark.parametrize(("case", "expanded"), CASES.values(), ids=CASES)
def test_errs_at_most_twice_as_much_as_eager(case, expanded, adding, device, launched, monkeypatch):
    monkeypatch.setattr(waves, "ADDING", adding)
    check(IMPLEMENTATION, case, torch.bfloat16, device, expanded_grad=expanded)
    if torch.cuda.get_device_capability() == (9, 0):
        assert specialised_kernel in launched and weights_kernel not in launched


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_A_GPU)])
def test_a_gradient_alone_is_the_one_among_all(device):
    check_each_gradient_alone(IMPLEMENTATION, replace(GOOD, heads=4), device, torch.bfloat16)
