"""Laws 2 and 4 on programs that must be rewritten: one fused call each, right values and gradients."""

from __future__ import annotations

import inspect

import pytest
import torch

import mhf_compile
from tests.comparison import compare, counted_calls
from tests.programs import BY_NAME, SPELLINGS, E, F, H, Spelling


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_one_fused_call_under_inductor(spelling: Spelling) -> None:
    found = compare(spelling.program, spelling.tensors(), options=spelling.options)
    assert found.rewrites == 1
    # A checkpointed region runs again in the backward; nothing else does.
    assert found.calls == (2 if str(spelling) == "checkpointed" else 1)
    assert [report.misses for report in found.reports] == [()]
    found.check_error()


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(spelling: Spelling, dtype: torch.dtype) -> None:
    options = {**spelling.options, "flashmhf.inner": "aot_eager"}
    found = compare(spelling.program, spelling.tensors(dtype), options=options)
    assert found.rewrites == 1
    found.check_error()


@pytest.mark.parametrize("name", ["loop", "one_einsum", "head_list", "checkpointed"])
def test_autocast(name: str) -> None:
    spelling = BY_NAME[name]
    found = compare(
        spelling.program, spelling.tensors(), context=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert found.rewrites == 1
    assert found.reports[0].rewrites[0].dtype == "bfloat16"
    found.check_error()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context: type[torch.no_grad]) -> None:
    found = compare(BY_NAME["loop"].program, BY_NAME["loop"].tensors(), context=context)
    assert (found.rewrites, found.calls) == (1, 1)
    assert found.reports[0].rewrites[0].saved_bytes == 0
    found.check_error()


def test_dynamic_sizes_compile_once() -> None:
    """Batch and sequence marked dynamic: one compile serves all sizes."""
    torch._dynamo.reset()
    program = BY_NAME["loop"].program
    compiled = torch.compile(program, backend="flashmhf", options={"flashmhf.strict": True})
    _, *weights = BY_NAME["loop"].tensors()
    for batch, length in ((2, 6), (3, 40), (5, 4), (7, 16)):
        x = torch.randn(batch, length, H * 16, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        with counted_calls() as calls:
            found = compiled(x, *weights)
        assert calls == [1]
        # Rounding of the same sums in another order: of at most F * E + 2 D products each.
        torch.testing.assert_close(found, program(x, *weights), rtol=1e-5, atol=1e-5)
        found.sum().backward()
    (report,) = mhf_compile.last_reports()
    assert "*" in str(report.rewrites[0].tokens)
    assert report.rewrites[0].proof == "exact, 8 tokens"


def test_dynamic_everything() -> None:
    torch._dynamo.reset()
    spelling = BY_NAME["dense"]
    options = {**spelling.options, "flashmhf.strict": True, "flashmhf.inner": "aot_eager"}
    compiled = torch.compile(spelling.program, backend="flashmhf", dynamic=True, options=options)
    compiled(*spelling.tensors())
    assert len(mhf_compile.last_reports()[0].rewrites) == 1


def test_report_of_the_loop() -> None:
    found = compare(BY_NAME["loop"].program, BY_NAME["loop"].tensors(), options={"flashmhf.inner": "eager"})
    (rewrite,) = found.reports[0].rewrites
    assert rewrite.pattern == "flash_mhf"
    lines, start = inspect.getsourcelines(BY_NAME["loop"].program)
    activation = next(number for number, line in enumerate(lines, start) if "silu(gate)" in line)
    assert rewrite.source == f"tests/programs.py:{activation}"
    assert (rewrite.tokens, rewrite.heads, rewrite.kv_heads, rewrite.subnetworks) == (80, H, H, E)
    assert (rewrite.head_dim, rewrite.width, rewrite.out_dim) == (16, F, 16)
    assert (rewrite.dtype, rewrite.proof) == ("float32", "exact")
    # gate, silu(gate), up and their product are wide; r * (...) keeps the narrow product as well
    assert rewrite.saved_bytes == 80 * H * E * (4 * F + 16) * 4
    assert "silu(" in rewrite.equation


def test_grouped_heads_are_reported() -> None:
    spelling = BY_NAME["grouped"]
    found = compare(spelling.program, spelling.tensors(), options={"flashmhf.inner": "eager"})
    (rewrite,) = found.reports[0].rewrites
    assert (rewrite.heads, rewrite.kv_heads) == (2 * H, H)
