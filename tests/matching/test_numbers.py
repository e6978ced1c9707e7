"""A number that is added to a score is a bias, with or without one that the program has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

import mhf_compile
from tests.comparison import compare
from tests.matching.programs import scores
from tests.programs import B, D, F, H, T

GENERATOR = torch.Generator().manual_seed(0)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, generator=GENERATOR, dtype=torch.float64).requires_grad_() for shape in shapes]


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", hidden, v)


def of_gpt_oss(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate = scores(q, k)
    return down((scores(q, u) + 1) * gate * torch.sigmoid(1.702 * gate), v)


def in_a_loop(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    out = torch.zeros_like(q)
    for keys, ups, values in zip(k.chunk(3, 1), u.chunk(3, 1), v.chunk(3, 1), strict=True):
        out = out + down((2 + scores(q, ups)) * silu(scores(q, keys)), values)
    return out


def as_a_tensor(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    up = scores(q, u)
    return down(silu(scores(q, k)) * (up + torch.ones_like(up)), v)


def in_place(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = scores(q, k), scores(q, u)
    gate -= 0.25
    up += 1
    return down(silu(gate) * up, v)


def scaled(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(silu(2 * scores(q, k) - 3) * (0.5 * scores(q, u) + 4), v)


def with_a_bias(q: Tensor, k: Tensor, u: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return down(silu(scores(q, k) + bias - 1) * (1 + scores(q, u)), v)


def twice(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(silu(scores(q, k) + 1 - 3) * (scores(q, u) + 1 + 1), v)


def under_vmap(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    def head(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (silu(q @ k.mT) * (q @ u.mT + 1)) @ v

    return torch.vmap(head, (2, 0, 0, 0), 2)(q, k, u, v)


def ungated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return down(gelu(scores(q, k) - 0.5), v)


PROGRAMS = (of_gpt_oss, in_a_loop, as_a_tensor, in_place, scaled, twice, under_vmap, ungated)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_number_is_a_bias(program, static):
    weights = tensors((B, T, H, D), *[(H, F, D)] * (program.__code__.co_argcount - 1))
    found = compare(
        program,
        weights,
        options={"flashmhf.inner": "eager"},
        context=lambda: torch._dynamo.config.patch(assume_static_by_default=static),
    )
    assert (found.rewrites, found.calls) == (1, 1)
    found.check_error()


def test_it_is_added_to_a_bias():
    weights = tensors((B, T, H, D), (H, F, D), (H, F, D), (H, F, D), (H, F))
    found = compare(with_a_bias, weights, options={"flashmhf.inner": "eager"})
    assert (found.rewrites, found.calls) == (1, 1)
    found.check_error()


def test_programs_that_differ_in_the_number_are_proved_each():
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        parts = [down(silu(scores(q, k)) * (scores(q, u) + number), v) for number in (1, 2)]
        return torch.stack(parts)

    weights = tensors((B, T, H, D), (H, F, D), (H, F, D), (H, F, D))
    found = compare(program, weights, options={"flashmhf.inner": "eager", "flashmhf.prove": "always"})
    assert (found.rewrites, found.calls) == (2, 2)
    found.check_error()


def test_a_number_of_each_token_is_none():
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
        return down(silu(scores(q, k)) * (scores(q, u) + c[..., None]), v)

    weights = tensors((B, T, H, D), (H, F, D), (H, F, D), (H, F, D), (B, T, H))
    report = mhf_compile.explain(program, *weights)
    assert not report.rewrites and len(report.misses) == 1


@pytest.mark.parametrize("biased", [False, True])
def test_a_number_has_the_digits_of_the_dtype_that_is_computed_in(biased):
    """0.1 has few in bfloat16, which the leaves are of."""

    def program(*given: Tensor) -> Tensor:
        q, k, u, v, *bias = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in given)
        gate = sum(bias, scores(q, k))
        return down(silu(gate + 0.1) * (scores(q, u) + 0.3), v)

    shapes = (B, T, H, D), (H, F, D), (H, F, D), (H, F, D), (H, F)
    given = [x.detach().bfloat16().requires_grad_() for x in tensors(*shapes[: 4 + biased])]
    found = compare(program, given, options={"flashmhf.inner": "eager"})
    assert (found.rewrites, found.calls) == (1, 1)
    found.check_error()
