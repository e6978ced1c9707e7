"""Laws 2 and 4 on programs that must be rewritten: one fused call each, right values and gradients."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

import mhf_compile
from tests.comparison import LONGEST_SUM, compare, counted_calls
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


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_a_number_of_tokens_that_only_the_data_tell() -> None:
    def program(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        kept = x[x[:, 0] > 0]
        return (silu(kept @ k) * (kept @ u)) @ v

    torch.manual_seed(0)
    shapes = (20, 6), (6, 7), (6, 7), (7, 8)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    torch._dynamo.reset()
    options = {"flashmhf.inner": "eager", "flashmhf.strict": True, "flashmhf.dense": "always"}
    found = torch.compile(program, backend="flashmhf", options=options)(*tensors)
    (report,) = mhf_compile.last_reports()
    assert [(r.heads, r.width, r.proof) for r in report.rewrites] == [(1, 7, "exact, 4 tokens")], report
    expected = program(*tensors)
    bound = LONGEST_SUM * torch.finfo(torch.float64).eps
    both = [(found, expected)]
    both += zip(*(torch.autograd.grad(t.sum(), tensors) for t in (found, expected)), strict=True)
    for ours, eager in both:
        assert float((ours - eager).norm()) <= bound * float(eager.norm())


def test_dynamic_sizes_compile_once() -> None:
    """Batch and sequence marked dynamic: one compile serves all sizes."""
    torch._dynamo.reset()
    program = BY_NAME["loop"].program
    compiled = torch.compile(program, backend="flashmhf", options={"flashmhf.strict": True})
    _, *weights = BY_NAME["loop"].tensors(torch.float64)
    for batch, length in ((2, 6), (3, 40), (5, 4), (7, 16)):
        x = torch.randn(batch, length, H * 16, dtype=torch.float64, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        with counted_calls() as calls:
            found = compiled(x, *weights)
        assert calls == [1]
        expected = program(x, *weights)
        # Each is off by half a unit in the last place for each product summed, at most.
        bound = LONGEST_SUM * torch.finfo(torch.float64).eps * float(expected.norm())
        assert float((found - expected).norm()) <= bound
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


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,hfd->bthf", q, k)


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", hidden, v)


def stacked_scores(x: Tensor, heads: Tensor) -> Tensor:
    """Linears of each head, stacked before the activation."""
    gates, ups, downs = heads.unbind(0)[:H], heads.unbind(0)[H : 2 * H], heads[2 * H :]
    parts = x.chunk(H, -1)
    gate = torch.stack([linear(q, w) for q, w in zip(parts, gates, strict=True)], 2)
    up = torch.stack([linear(q, w) for q, w in zip(parts, ups, strict=True)], 2)
    return down(silu(gate) * up, downs)


def test_heads_stacked_before_the_activation() -> None:
    tensors = Spelling(stacked_scores, "x heads").tensors()
    found = compare(stacked_scores, tensors, options={"flashmhf.inner": "aot_eager"})
    assert found.rewrites == 1
    found.check_error()


@pytest.mark.parametrize(
    "name", ["one_einsum", "float32_inside", "buffered_heads", "double_loop", "checkpointed"]
)
def test_marked_dynamic(name: str) -> None:
    torch._dynamo.reset()
    spelling = BY_NAME[name]
    tensors = spelling.tensors()
    for argument, tensor in zip(spelling.arguments.split(), tensors, strict=True):
        if argument in ("x", "q", "r"):
            torch._dynamo.mark_dynamic(tensor, 0)
            torch._dynamo.mark_dynamic(tensor, 1)
    options = {"flashmhf.strict": True, "flashmhf.inner": "aot_eager"}
    torch.compile(spelling.program, backend="flashmhf", options=options)(*tensors)
    assert [len(report.rewrites) for report in mhf_compile.last_reports()] == [1]


def test_symbolic_widths() -> None:
    """Sizes of the weights that Dynamo keeps symbolic, and that divide one another."""
    torch._dynamo.reset()

    def program(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        q = x.view(x.shape[0], x.shape[1], H, x.shape[2] // H)
        return down(silu(scores(q, k)) * scores(q, u), v)

    tensors = Spelling(program, "x k1 u1 v1").tensors()
    options = {"flashmhf.strict": True, "flashmhf.inner": "aot_eager"}
    found = torch.compile(program, backend="flashmhf", dynamic=True, options=options)(*tensors)
    torch.testing.assert_close(found, program(*tensors), rtol=1e-5, atol=1e-5)
