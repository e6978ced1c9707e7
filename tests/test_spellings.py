"""What people write, by several hands: each is one fused call, right in values and all gradients."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import Tensor

import mhf_compile
from tests.comparison import LONGEST_SUM, counted_calls
from tests.spellings.case import Case, converted, tensors

HOUSES = ("research", "production", "ported", "algebra")
CASES = [
    pytest.param(case, id=f"{house}-{case}")
    for house in HOUSES
    for case in import_module(f"tests.spellings.{house}").CASES
]
BY_NAME = {case.values[0].name: case.values[0] for case in CASES}
SYMBOLIC = (
    "bank_by_broadcasting",
    "bank_weighted_and_summed",
    "bias_of_values_by_einsum",
    "bias_of_values_mapped",
    "scaled_hidden_of_experts",
    "scaled_gate_with_a_bias",
    "int8_scaled_behind_the_product",
    "heads_summed_under_a_gate",
    "heads_summed_by_tensordot",
    "wide_with_a_skip_by_chunk",
    "wide_block_of_timm",
    "number_added_to_up",
    "number_subtracted_from_gate_and_up",
    "lora_on_all",
    "two_weights_of_the_gate",
    "tokens_in_buffers",
)
"""Programs of which no size is a number in their text, but the sizes of a module."""

OPTIONS = {"flashmhf.strict": True, "flashmhf.inner": "eager", "flashmhf.dense": "always"}


def test_there_are_many() -> None:
    assert len(CASES) >= 80


@pytest.mark.parametrize("case", CASES)
def test_is_one_fused_call(case: Case) -> None:
    check(case, dynamic=None)


@pytest.mark.parametrize("name", SYMBOLIC)
def test_is_one_fused_call_of_symbolic_sizes(name: str) -> None:
    check(replace(BY_NAME[name], sizes={}), dynamic=True)


def check(case: Case, dynamic: bool | None) -> None:
    """Require one fused call, no misses, and eager's values and gradients."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, inputs = converted(*case.make(), torch.float64)
    wanted = tensors(model, inputs)
    context = case.context or contextlib.nullcontext

    def outcome(program: object) -> list[Tensor]:
        with context():
            result: Tensor = program(*inputs)  # type: ignore[operator]
        return [result.detach(), *torch.autograd.grad(result.square().mean(), wanted)]

    before = outcome(model)
    compiled = torch.compile(model, backend="flashmhf", options=OPTIONS, fullgraph=True, dynamic=dynamic)
    with counted_calls() as calls:
        after = outcome(compiled)
    report = "\n".join(map(str, mhf_compile.last_reports()))
    assert calls[0] == 1, report
    assert sum(len(one.misses) for one in mhf_compile.last_reports()) == case.beside, report
    (found,) = (rewrite for one in mhf_compile.last_reports() for rewrite in one.rewrites)
    assert {name: getattr(found, name) for name in case.sizes} == case.sizes, report
    for a, b in zip(after, before, strict=True):
        # Each is off by half a unit in the last place for each product summed, at most.
        assert float((a - b).norm()) <= LONGEST_SUM * torch.finfo(torch.float64).eps * float(b.norm())
