"""The proof finds out a reader whose rules are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.matching.search import normal_pattern
from mhf_compile.notation import Axes, Index, Leaf, Term
from mhf_compile.patterns import PATTERNS
from mhf_compile.reading import rules
from mhf_compile.tape.values import Op
from tests.rewriting.programs import N, biased, gated

READ = {name: rule.read for name, rule in rules.RULES.items()}
"""The right rules."""


def permute_ignoring_dims(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    return [Term(factors=(Leaf(op.args[0], index),))]


def slice_one_off(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    (term,) = READ["slice"](op, out, index, axes)
    (leaf,) = term.factors
    assert isinstance(leaf, Leaf)
    dim = op.args[1]
    found = list(leaf.index)
    found[dim] = found[dim].affine(1, 1)
    return [Term(factors=(Leaf(leaf.value, tuple(found)),))]


def pieces_in_reverse(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    pieces, *dim = op.args
    return READ["stack"](replace_arguments(op, (pieces[::-1], *dim)), out, index, axes)


def add_without_alpha(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    return READ["add"](replace_arguments(op, op.args, {}), out, index, axes)


def half(op: Op, out: int, index: tuple[Index, ...], axes: Axes) -> list[Term]:
    return [replace(term, coefficient=term.coefficient / 2) for term in READ["neg"](op, out, index, axes)]


def replace_arguments(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Op:
    """An operation with other arguments, that its inputs do not know of."""
    with mock.patch.object(Op, "__post_init__", lambda self: None):
        return replace(op, args=args, kwargs=op.kwargs if kwargs is None else kwargs)


def through_permute(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (silu(q @ k.permute(0, 2, 1)) * (q @ u)) @ v


def through_slice(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    wide = torch.cat([k, u, v], 1)
    return gated(q, wide[:, 1 : 1 + N], u, v)


def through_stack(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    heads = zip(q.unbind(2), k.unbind(), u.unbind(), v.unbind(), strict=True)
    own = [[1 + tensor for tensor in head] for head in heads]  # tensors with no order among them
    return torch.stack([(silu(q @ k.t()) * (q @ u.t())) @ v for q, k, u, v in own], 2)


def through_add(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return biased(q, k, u, v, 2)


def through_neg(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    up = -torch.einsum("bthd,hfd->bthf", q, u)
    return torch.einsum("bthf,hfo->btho", silu(torch.einsum("bthd,hfd->bthf", q, k)) * up, v)


PLANTS = [
    ("permute", permute_ignoring_dims, through_permute),
    ("slice", slice_one_off, through_slice),
    ("stack", pieces_in_reverse, through_stack),
    ("add", add_without_alpha, through_add),
    ("neg", half, through_neg),
]


@contextmanager
def planted(name: str, wrong: Callable[..., list[Term]]) -> Iterator[None]:
    for pattern in PATTERNS:  # read once, by the right rules
        normal_pattern(pattern)
    with mock.patch.dict(rules.RULES, {name: replace(rules.RULES[name], read=wrong)}):
        yield


@pytest.mark.parametrize(("name", "wrong", "program"), PLANTS, ids=[plant[0] for plant in PLANTS])
def test_a_wrong_rule_is_found_out(
    name: str,
    wrong: Callable[..., list[Term]],
    program: Callable[..., Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tensors = [torch.randn(N, N, N, N), *(torch.randn(N, N, N) for _ in range(3))]
    expected = program(*tensors)

    def run(policy: str) -> Tensor:
        torch._dynamo.reset()
        options = {"flashmhf.inner": "eager", "flashmhf.strict": True, "flashmhf.prove": policy}
        result: Tensor = torch.compile(program, backend="flashmhf", options=options)(*tensors)
        return result

    with planted(name, wrong):
        assert not torch.allclose(run("never"), expected)  # or the plant would show nothing
        caplog.clear()
        assert torch.equal(run("auto"), expected)
    (report,) = mhf_compile.last_reports()
    assert report.rewrites == ()
    assert all("the proof failed" in miss.reason for miss in report.misses)
    (warning,) = [entry for entry in caplog.records if entry.name.startswith("mhf_compile")]
    assert (warning.name, warning.levelname) == ("mhf_compile.rewriting.proof", "WARNING")
    assert "the proof failed" in warning.getMessage()
    assert re.search(r"tests/rewriting/(programs|test_wrong_rules)\.py:\d", warning.getMessage())
    torch.testing.assert_close(run("auto"), expected)  # without the plant it is rewritten
    assert len(mhf_compile.last_reports()[0].rewrites) == 1
