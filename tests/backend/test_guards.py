"""A rewrite adds no guard, no recompile and no symbol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch._dynamo.utils import counters

import mhf_compile
from mhf_compile import backend
from mhf_compile.tape.recorder import fake_mode_of
from tests.faults.stages import EAGER
from tests.programs import BY_NAME

SHAPES = [(2, 6), (3, 6), (3, 7), (5, 8), (1, 9), (16, 16)]


@pytest.mark.parametrize(("name", "inner"), [("head_list", "eager"), ("fused_gate_up", "aot_eager")])
def test_no_recompile_is_added(name: str, inner: str) -> None:
    """Automatic dynamic shapes: as many graphs and the same guards as without us."""
    arguments = BY_NAME[name].arguments.split()
    tensors = BY_NAME[name].tensors()

    def compiles(**kwargs: Any) -> tuple[int, list[str]]:
        torch._dynamo.reset()
        counters.clear()
        guards: list[str] = []

        def guard_filter(entries: Sequence[Any]) -> list[bool]:
            guards.extend(sorted(re.sub(r"\d+", "", f"{entry.guard_type} {entry.name}") for entry in entries))
            return [True] * len(entries)

        options = {**kwargs.pop("options", {}), "guard_filter_fn": guard_filter}
        compiled = torch.compile(BY_NAME[name].program, options=options, **kwargs)
        for batch, length in SHAPES:
            varied = [
                torch.randn(batch, length, *t.shape[2:]) if n in ("x", "q", "r") else t
                for n, t in zip(arguments, tensors, strict=True)
            ]
            compiled(*varied)
        return counters["stats"]["unique_graphs"], guards

    expected = compiles(backend=inner)
    assert expected[0] < len(SHAPES)
    assert (
        compiles(backend="flashmhf", options={"flashmhf.inner": inner, "flashmhf.strict": True}) == expected
    )
    assert all(len(report.rewrites) == 1 for report in mhf_compile.last_reports())


def test_the_shape_environment_is_as_it_was() -> None:
    def snapshot(module: fx.GraphModule) -> tuple[object, ...]:
        mode = fake_mode_of(module)
        assert mode is not None
        environment = mode.shape_env
        assert environment is not None
        return (
            list(map(str, environment.guards)),
            dict(environment.replacements),
            dict(environment.var_to_range),
            dict(environment.backed_var_to_val),
            dict(environment.deferred_runtime_asserts),
            list(environment.pending_fresh_unbacked_symbols),
        )

    seen: list[tuple[object, ...]] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        seen.append(snapshot(module))
        compiled = backend.flashmhf(module, inputs, options={**EAGER, "flashmhf.strict": True})
        seen.append(snapshot(module))
        return compiled

    x, *weights = BY_NAME["loop"].tensors()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    torch.compile(BY_NAME["loop"].program, backend=around)(x, *weights)
    assert len(mhf_compile.last_reports()[0].rewrites) == 1
    assert seen[0] == seen[1]
