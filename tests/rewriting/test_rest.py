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
    (stays,) = region.rests.values()
    assert len(stays) == runs and region.stays == stays
    assert sum(rest.columns.shape[-1] for rest in stays) == 2 * S
    assert proof.prove(match, stays) == "exact"


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
    (rest,) = region.stays
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
    assert len(report.rewrites) == stays
    assert all("used elsewhere" in miss.reason for miss in report.misses)
