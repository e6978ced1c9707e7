"""What stays of a product of which a match stands for a part: other columns, as products of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

import mhf_compile
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.notation import Leaf
from mhf_compile.rewriting import proof
from tests.faults.stages import captured
from tests.rewriting.programs import matches

N, D, F, S = 5, 3, 4, 2

TENSORS = torch.randn(N, D), torch.randn(2 * F + 2 * S, D), torch.randn(2 * F + 2 * S), torch.randn(F, S)


def last(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    gate, up, skip, scale = linear(x, w, b).split([F, F, S, S], -1)
    return (silu(gate) * up) @ v + skip * scale.sigmoid()


def first(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    y = linear(x, w, b)
    return (gelu(y[:, 2 * S : 2 * S + F]) * y[:, 2 * S + F :]) @ v + y[:, :S].cos() * y[:, S : 2 * S]


def apart(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    skip, gate, up, scale = linear(x, w, b).split([S, F, F, S], -1)
    return (silu(gate) * up) @ v + skip * scale.sigmoid()


def transposed(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    y = (w @ x.T + b[:, None]).T
    return (silu(y[:, :F]) * y[:, F : 2 * F]) @ v + y[:, 2 * F :].unflatten(1, (2, S)).prod(1)


@pytest.mark.parametrize(("program", "runs"), [(last, 1), (first, 1), (apart, 2), (transposed, 1)])
def test_neighbouring_columns_stay_one_product(program: Callable[..., Tensor], runs: int) -> None:
    ((match, region),) = matches(program, *TENSORS)
    assert len(region.rests) == runs
    assert sum(rest.columns.shape[-1] for rest in region.rests) == 2 * S
    assert proof.prove(match, region.rests) == "exact"


@pytest.mark.parametrize("program", [last, first, apart, transposed])
def test_values_are_those_of_the_program(program: Callable[..., Tensor]) -> None:
    tensors = [tensor.double() for tensor in TENSORS]
    module, inputs = captured(program, tensors)
    rewritten, report = mhf_compile.rewrite(module, inputs, dense="always")
    assert len(report.rewrites) == 1 and not report.misses
    (result,) = rewritten(*inputs)
    torch.testing.assert_close(result, program(*tensors), rtol=1e-13, atol=1e-13)
    wide = [n.meta["example_value"] for n in rewritten.graph.nodes if "example_value" in n.meta]
    widest = max(t.shape[-1] for t in wide if isinstance(t, Tensor) and t.shape[:1] == (N,) and t.dim() == 2)
    assert widest <= 2 * S  # the whole product is gone


def test_a_wrong_column_is_refused() -> None:
    ((match, region),) = matches(last, *TENSORS)
    (rest,) = region.rests
    (value, (index, leaf)), *_ = rest.wanted.items()
    moved = replace(leaf.index[-1], offset=leaf.index[-1].offset + 1)
    wrong = Leaf(leaf.value, (*leaf.index[:-1], moved))
    with pytest.raises(NoMatch, match="the proof failed"):
        proof.prove(match, [replace(rest, wanted={**rest.wanted, value: (index, wrong)})])


def written(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    gate, up, skip, scale = linear(x, w, b).split([F, F, S, S], -1)
    return (silu(gate) * up) @ v + skip.mul(2).add_(scale)


def overlapping(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    y = linear(x, w, b)
    return (silu(y[:, :F]) * y[:, F : 2 * F]) @ v + y[:, 2 * F - 1 : 2 * F + 1]


def whole(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    y = linear(x, w, b)
    return (silu(y[:, :F]) * y[:, F : 2 * F]) @ v + y.mean(-1, keepdim=True)


@pytest.mark.parametrize(("program", "stays"), [(written, True), (overlapping, False), (whole, False)])
def test_it_stays_where_no_column_is_needed_of_both(program: Callable[..., Tensor], stays: bool) -> None:
    options = {"flashmhf.dense": "always", "flashmhf.strict": True}
    report = mhf_compile.explain(program, *TENSORS, options=options)
    assert len(report.rewrites) == stays and len(report.misses) == (not stays)
    assert all("used elsewhere" in miss.reason for miss in report.misses)


def without_gradients(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    y = linear(x, w, b)
    with torch.no_grad():
        scale = y[:, 2 * F : 2 * F + S]
    return (silu(y[:, :F]) * y[:, F : 2 * F]) @ v * scale.sigmoid()


def test_what_has_no_gradient_does_not_get_one() -> None:
    """The columns are cut out where autograd is off."""
    tensors = [tensor.double().requires_grad_() for tensor in TENSORS]
    options = {"flashmhf.dense": "always", "flashmhf.inner": "eager", "flashmhf.prove": "never"}
    torch._dynamo.reset()
    compiled = torch.compile(without_gradients, backend="flashmhf", options=options)
    found, wanted = (torch.autograd.grad(f(*tensors).sum(), tensors) for f in (compiled, without_gradients))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def cast_before_it_is_cut(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    y = linear(x, w, b)
    scale = y.double()[:, 2 * F : 2 * F + S]
    return (silu(y[:, :F]) * y[:, F : 2 * F]) @ v * scale.exp()


def cast_on_the_way_in(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    y = linear(x.bfloat16(), w.bfloat16(), b.bfloat16())
    return (silu(y[:, :F]) * y[:, F : 2 * F]) @ v.bfloat16() + y[:, 2 * F : 2 * F + S].cos()


@pytest.mark.parametrize("program", [cast_before_it_is_cut, cast_on_the_way_in])
def test_columns_have_the_dtype_that_the_program_gave_them(program: Callable[..., Tensor]) -> None:
    """In what follows, and in the product: of what is cast for it, the cast may be read through."""
    module, inputs = captured(program, list(TENSORS))
    (wanted,) = module(*inputs)
    rewritten, report = mhf_compile.rewrite(module, inputs, dense="always")
    assert len(report.rewrites) == 1
    (found,) = rewritten(*inputs)
    assert found.dtype == wanted.dtype
    (product,) = (node for node in rewritten.graph.nodes if node.target is torch.matmul)
    given = {node.meta["example_value"].dtype for node in product.all_input_nodes}
    assert given == {torch.bfloat16 if program is cast_on_the_way_in else torch.float32}
