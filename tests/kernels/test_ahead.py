"""Compiling ahead of time: for which device, and that it is what a launch looks for."""

import pytest
import torch
from triton import knobs

from mhf_compile.kernels.flash_mhf import ahead, backward, config, forward
from mhf_compile.kernels.flash_mhf.config import Target
from mhf_compile.kernels.flash_mhf.launch import Call, watcher

BFLOAT16 = torch.bfloat16


@pytest.mark.parametrize(
    ("arch", "processors"), [("sm_90", 132), ("sm_86", 84), ("sm_87", 108), ("sm_103", 148)]
)
def test_a_device_as_it_is_sold(arch, processors, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert ahead.target_for(arch) == Target(arch, processors)


def test_every_family_is_known():
    assert set(config.FAMILIES) <= set(ahead.PROCESSORS)
    assert {config.family(arch) for arch in ahead.PROCESSORS} == set(config.FAMILIES)


def test_a_device_of_this_machine_goes_first(monkeypatch):
    here = [Target("sm_80", 108, "A100"), Target("sm_90", 114, "H100 PCIe")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ahead, "target_of", lambda device: here[device.index])
    assert ahead.target_for("sm_90") == here[1]
    assert ahead.target_for("sm_89") == Target("sm_89", 128)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a", "hopper", ""])
def test_an_architecture_without_kernels(arch):
    with pytest.raises(ValueError, match="want sm_80 or later, or a gfx9"):
        ahead.target_for(arch)


def operands(device, *, head_dim=128, tokens=80, offset=0):
    """q, k, u, v, r as views of larger tensors: q begins `offset` elements after its storage."""
    q = torch.empty(tokens * 4 * head_dim + offset, dtype=BFLOAT16, device=device)[offset:]
    weights = torch.empty(3, 2, 3, 72, head_dim, dtype=BFLOAT16, device=device)
    r = torch.empty(4, 2, tokens // 2, 3, device=device).permute(1, 2, 0, 3)
    return q.view(2, tokens // 2, 4, head_dim), *weights.unbind(), r


def launches(target, tensors):
    q, k, u, v, r = tensors
    call = Call(q, k, u, v, r, None, None, "silu", 1.0, 1.0, target)
    return [
        *forward.launches(call, torch.empty_like(q)),
        *backward.launches(call, q, [torch.empty_like(x) for x in tensors] + [None, None]),
    ]


def specialised(launch, arch):
    """Types and properties of all arguments, as Triton's own binder finds them."""
    with ahead._compiling_for(arch):
        *_, binder = launch.kernel.device_caches[arch]
        _, specialization, options = binder(*launch.args, **launch.options)
    return specialization, options


@pytest.mark.parametrize("case", [{}, {"tokens": 2}, {"offset": 8}, {"offset": 1}, {"head_dim": 96}], ids=str)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_tensors_without_memory_are_specialised_as_real_ones(arch, case):
    target = Target(arch, 8)
    real, meta = (launches(target, operands(device, **case)) for device in ("cpu", "meta"))
    assert [launch.name for launch in real] == [launch.name for launch in meta]
    for one, other in zip(real, meta, strict=True):
        assert specialised(one, arch) == specialised(other, arch)


def test_an_offset_is_seen():
    """Were it not, the test above would compare nothing."""
    even, odd = (
        specialised(launches(Target("sm_90", 8), operands("meta", offset=offset))[0], "sm_90")
        for offset in (0, 1)
    )
    assert even != odd


def test_a_block_is_recorded_and_nothing_runs():
    tensors = operands("meta", tokens=2)
    arguments = (*tensors, None, None, "silu", 1.0, 1.0)
    with ahead.recorded() as outer:
        out = forward.forward(*arguments, target=Target("sm_90", 8))
        with ahead.recorded() as inner:
            backward.backward(out, *arguments, [True] * 7, target=Target("sm_90", 8))
    assert [launch.name for launch in outer] == ["decode"]
    assert [launch.name for launch in inner] == ["dq", "dk_du", "dv"]
    assert watcher.get() is None


def test_chunks_are_recorded():
    tensors = operands("meta", head_dim=300, tokens=1000)
    arguments = (*tensors, None, None, "silu", 1.0, 1.0)
    with ahead.recorded() as found:
        out = forward.forward(*arguments, 1, target=Target("sm_90", 8))
        backward.backward(out, *arguments, [True] * 7, 1, target=Target("sm_90", 8))
    assert [launch.name for launch in found] == ["chunk"] * 4 + ["gradients"] * 4
    assert [launch.options["EVEN_N"] for launch in found[:4]] == [True, True, True, False]


def test_compiled_once_in_a_process_and_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    arch = "sm_89"  # no other test of this process compiles for it
    launch = next(x for x in launches(Target(arch, 8), operands("meta", tokens=2)) if x.name == "sum")
    listener = lambda **_: None  # noqa: E731
    monkeypatch.setattr(knobs.compilation, "listener", listener)
    first = ahead.compile_or_find(launch, arch)
    again = ahead.compile_or_find(launch, arch)
    launch.kernel.device_caches.pop(arch)  # as in another process
    found = ahead.compile_or_find(launch, arch)
    assert [done.cached for done in (first, again, found)] == [False, None, True]
    assert first.seconds > found.seconds > 0
    assert first.kernel.hash == found.kernel.hash
    assert first.kernel.metadata.target.arch == 89
    assert knobs.compilation.listener is listener
