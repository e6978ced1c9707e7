"""What reaches the inner compiler of options and modes, and what is told instead."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx

import mhf_compile
from mhf_compile import backend
from mhf_compile.errors import FlashMHFError, NotRewritten, OptionError
from tests.backend.models import Missed, two_layers
from tests.comparison import compare
from tests.faults.stages import EAGER, fails
from tests.programs import BY_NAME


def config_patches(**kwargs: Any) -> dict[str, Any]:
    """What Inductor is told when a function is compiled."""
    given: list[dict[str, Any]] = []

    def compile_fx(module: fx.GraphModule, inputs: object, config_patches: dict[str, Any], **_: Any) -> Any:
        given.append(config_patches)
        return module

    with mock.patch("torch._inductor.compile_fx.compile_fx", compile_fx):
        torch.compile(lambda x: x + 1, backend=kwargs.pop("backend", "flashmhf"), **kwargs)(torch.ones(2))
    (patches,) = given
    return patches


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_a_mode_reaches_inductor(mode: str) -> None:
    patches = config_patches(mode=mode)
    assert patches == config_patches(mode=mode, backend="inductor")
    assert mode == "default" or patches


def test_options_reach_inductor_and_ours_do_not() -> None:
    patches = config_patches(
        options={"max_autotune": True, "flashmhf.prove": "always", "trace.enabled": False}
    )
    assert patches == {"max_autotune": True, "trace.enabled": False}
    assert config_patches() == {}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        (
            {"options": {"no_such_option": 1}},
            "Unexpected optimization option no_such_option, known options are",
        ),
        ({"options": {"max_autotune": "yes"}}, "Unexpected type of attr max_autotune"),
        ({"mode": "no-such-mode"}, "Unrecognized mode=no-such-mode, should be one of: default"),
        ({"options": {"flashmhf.prof": 1}}, "unknown option 'flashmhf.prof'; the options are flashmhf.inner"),
        ({"options": {**EAGER, "max_autotune": True}}, "flashmhf.inner is 'eager', which takes no mode or"),
    ],
)
def test_wrong_options_are_told_first(kwargs: dict[str, Any], said: str) -> None:
    """Before the analysis, and with the message before everything else."""
    with mock.patch.object(backend, "record", fails), pytest.raises(OptionError) as raised:
        torch.compile(lambda x: x + 1, backend="flashmhf", **kwargs)(torch.ones(2))
    assert str(raised.value).startswith(said)
    assert isinstance(raised.value, (ValueError, FlashMHFError))
    assert mhf_compile.last_reports() == []
    frames = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert not {"_compile", "call_user_compiler"} & set(frames)


def test_require() -> None:
    def program(x: Tensor, *weights: Tensor) -> Tensor:
        return Missed()(BY_NAME["loop"].program(x, *weights))

    tensors = BY_NAME["loop"].tensors()
    torch.compile(program, backend="flashmhf", options={**EAGER, "flashmhf.require": 1})(*tensors)
    torch._dynamo.reset()
    with pytest.raises(NotRewritten, match="is used elsewhere as well, by mean") as raised:
        torch.compile(program, backend="flashmhf", options={**EAGER, "flashmhf.require": 2})(*tensors)
    assert str(raised.value).startswith("flashmhf.require is 2, but 1 of 2 feed-forwards")


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_inner_backends(inner: str) -> None:
    tensors = BY_NAME["loop"].tensors()
    made: list[object] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        made.append(backend.flashmhf(module, inputs, options={"flashmhf.inner": inner}))
        return made[-1]

    torch.compile(two_layers, backend=around)(*tensors)
    assert isinstance(made[0], fx.GraphModule) == (inner == "eager")
    backend.flashmhf.reset()
    found = compare(two_layers, tensors, options={"flashmhf.inner": inner})
    assert (found.rewrites, found.calls) == (2, 2)
    found.check_error()
