"""What the operators cannot run on is said when compiling, and by a call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mhf_compile.kernels import ops, support

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def asked_again() -> Iterator[None]:
    caches = support.without_triton, support.without_kernels
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def gpu() -> Iterator[dict[str, Any]]:
    """A GPU of this machine, with what it is to say of itself."""
    properties = {"major": 9, "minor": 0, "gcnArchName": ""}
    with (
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "get_device_name", lambda index: "a GPU"),
        mock.patch.object(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties)),
    ):
        yield properties


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", torch.float64, None),
        ("meta", torch.bfloat16, None),
        ("cpu", torch.int32, "the op does not take torch.int32 on cpu, but torch.float16, torch.bfloat16"),
        ("cuda", torch.float64, "the op does not take torch.float64 on cuda, but torch.float16"),
        ("xpu", torch.float32, "the op does not run on xpu, but on cuda, cpu, meta"),
    ],
)
def test_device_and_dtype(device: str, dtype: torch.dtype, reason: str | None) -> None:
    with mock.patch.object(torch.cuda, "is_available", lambda: False):
        found = support.unsupported(torch.device(device), dtype)
    assert found == reason if reason is None or found is None else found.startswith(reason)


@pytest.mark.parametrize(
    ("major", "minor", "taken"), [(7, 5, False), (8, 0, True), (8, 9, True), (9, 0, True), (12, 0, True)]
)
def test_architectures_of_nvidia(gpu: dict[str, Any], major: int, minor: int, taken: bool) -> None:
    gpu.update(major=major, minor=minor)
    found = support.unsupported(CUDA, torch.bfloat16)
    want = f"the op has no kernels for a GPU: arch: found 'sm_{major}{minor}', want sm_80 or later, or a gfx9"
    assert found == (None if taken else want)


@pytest.mark.parametrize(
    ("name", "taken"), [("gfx942:sramecc+:xnack-", True), ("gfx90a", True), ("gfx1100", False)]
)
def test_architectures_of_amd(gpu: dict[str, Any], name: str, taken: bool) -> None:
    gpu.update(gcnArchName=name)
    with mock.patch.object(torch.version, "hip", "7.0"):
        found = support.unsupported(CUDA, torch.bfloat16)
    assert found is None if taken else found is not None and "'gfx1100', want sm_80 or later" in found


def test_no_triton(gpu: dict[str, Any]) -> None:
    with mock.patch.dict(sys.modules, triton=None):
        found = support.unsupported(CUDA, torch.bfloat16)
    assert found is not None
    assert found.startswith("the op needs Triton on a GPU, which cannot be imported: ")


@pytest.mark.parametrize(("version", "taken"), [("3.5.1", False), ("3.6.0+git1", True), ("3.10.0", True)])
def test_an_old_triton(gpu: dict[str, Any], version: str, taken: bool) -> None:
    with mock.patch.dict(sys.modules, triton=SimpleNamespace(__version__=version)):
        found = support.unsupported(CUDA, torch.bfloat16)
    want = f"the op needs Triton 3.6 or later on a GPU, and this is {version}"
    assert found == (None if taken else want)


def test_a_call_gives_the_reason_as_its_error(gpu: dict[str, Any]) -> None:
    gpu.update(major=7, minor=5)
    with mock.patch.object(torch.cuda, "is_available", lambda: False), FakeTensorMode():
        q, k = torch.empty(1, 2, 1, 4, device="cuda"), torch.empty(1, 1, 8, 4, device="cuda")
    with pytest.raises(NotImplementedError, match="no kernels for a GPU: arch: found 'sm_75'"):
        ops.flash_mhf(q, k, k, k)
