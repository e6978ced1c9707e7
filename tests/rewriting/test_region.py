"""The region of a match: what it stands for, its dtype, what it would have saved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn.functional import silu

from mhf_compile.commands.measure import saved_bytes
from mhf_compile.matching.match import Match
from mhf_compile.matching.search import find
from mhf_compile.rewriting.region import Region, joined
from mhf_compile.tape.recorder import record
from mhf_compile.tape.tape import Tape
from tests.comparison import compare
from tests.programs import F, H


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,hfd->bthf", q, k)


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", hidden, v)


def regions(program: Callable[..., Tensor], *tensors: Tensor) -> list[Region]:
    found: list[Region] = []

    def collect(module: fx.GraphModule, inputs: object) -> fx.GraphModule:
        tape: Tape = record(module)
        found.extend(Region(tape, match) for match in find(tape) if isinstance(match, Match))
        return module

    torch._dynamo.reset()
    torch.compile(program, backend=collect)(*tensors)
    return found


def head(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """One head with a weight that is a view, and a result in another layout."""
    hidden = silu(q @ k.mT) * (q @ u.mT)
    return (hidden @ v).transpose(0, 1)


def small() -> list[Tensor]:
    return [torch.randn(shape) for shape in ((3, 4), (5, 4), (5, 4), (5, 6))]


def names(values: object) -> list[str]:
    return [value.op.name for value in values]  # type: ignore[attr-defined]


def test_a_region_is_what_is_between_its_leaves_and_its_root() -> None:
    (region,) = regions(head, *small())
    assert region.leaves and all(leaf.op is None for leaf in region.leaves)
    assert not region.leaves & set(region.values)
    assert set(names(region.values)) - set(names(region.computed)) <= {"t", "transpose", "permute"}
    assert names(region.computed).count("mm") == 3 and "silu" in names(region.computed)
    assert region.match.root in region.own and region.own <= set(region.values)


def test_views_of_operands_are_not_its_own() -> None:
    """What only rearranges leaves may be used elsewhere; what comes of a product may not."""
    (region,) = regions(head, *small())
    views = [value for value in region.values if value not in region.computed]
    assert views and region.own.isdisjoint(views)
    assert region.own == set(region.computed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_its_dtype_is_that_of_its_products(dtype: torch.dtype) -> None:
    (region,) = regions(head, *(tensor.to(dtype) for tensor in small()))
    assert region.dtype is dtype


def test_its_dtype_is_the_widest_that_it_contracts_in() -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        gate, up = q @ k.mT, q @ u.mT
        return (silu(gate.double()) * up) @ v.double()

    (region,) = regions(program, *small())
    assert region.dtype is torch.float64


def test_nothing_is_saved_without_gradients() -> None:
    (region,) = regions(head, *small())
    assert region.saved == 0
    (region,) = regions(head, *(tensor.requires_grad_() for tensor in small()))
    assert region.saved == 4 * 4 * 3 * 5  # gate, silu(gate), up and their product


def test_what_is_put_together_of_leaves_is_between_them() -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        weights = torch.stack([k, u])
        return (silu(q @ weights[0].mT) * (q @ weights[1].mT)) @ v

    (region,) = regions(program, *small())
    (stack,) = (v for v in region.tape.values if v.op is not None and v.op.name in ("stack", "cat"))
    parts = {value for value in region.tape.values if value.op is None}
    assert joined({stack}) == set()
    assert stack in joined({stack, *parts})


def scaled(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(silu(scores(q, k) / 4) * (2 * scores(q, u)), v)


def spelled_out(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate = scores(q, k)
    return down(gate / (1 + (-gate).exp()) * scores(q, u), v)


@pytest.mark.parametrize("program", [scaled, spelled_out])
def test_what_is_saved_is_what_autograd_keeps(program: Callable[..., Tensor]) -> None:
    q, *weights = tensors = [
        torch.randn(shape, requires_grad=True) for shape in ((2, 5, H, 16), *[(H, F, 16)] * 3)
    ]
    kept = saved_bytes(lambda: program(*tensors), owned=tensors)
    found = compare(
        program, [x.detach().requires_grad_() for x in tensors], options={"flashmhf.inner": "eager"}
    )
    # beside the wide values, einsum keeps a copy of an operand that its layout does not suit
    wide = 2 * 5 * H * F * 4
    assert found.reports[0].rewrites[0].saved_bytes // wide == kept // wide
    assert q.grad is None and all(w.grad is None for w in weights)
