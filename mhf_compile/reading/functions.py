"""Elementwise functions, and tensors that hold a constant."""

from __future__ import annotations

from fractions import Fraction

import torch

from mhf_compile.notation import Axes, Func, Leaf, Term, Unreadable
from mhf_compile.reading.entries import Indices, dimension, entry, scalar, times
from mhf_compile.tape.values import Op, Value


def zeros(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """No terms."""
    return []


def ones(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """The number 1."""
    return [Term()]


def full(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A number, as it is in the dtype of the result, or a tensor of no dimensions: the last argument.

    Of 0 there are no terms, as of zeros.
    """
    fill = op.args[-1]
    if not isinstance(fill, Value):
        fill = torch.tensor(float(scalar(fill)), dtype=op.outputs[0].dtype, device="cpu").item()
    return [times(Fraction(1), fill, ())] if isinstance(fill, Value) or fill else []


def function(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """A function of an entry, which is named after the operation and its parameters, if it was given any."""
    if any(isinstance(argument, Value) for argument in op.args[1:]):
        raise Unreadable(f"{op.name} of several tensors")
    given = ", ".join(map(str, (*op.args[1:], *op.kwargs.values())))
    return [_named(f"{op.name}({given})" if given else op.name, op, index)]


def gelu(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """One of two functions: of erf, or of its approximation by tanh."""
    return [_named("gelu_tanh" if op.kwargs.get("approximate", "none") != "none" else "gelu", op, index)]


def _named(name: str, op: Op, index: Indices) -> Term:
    return Term(factors=(Func(name, entry(op.args[0], index)),))


def glu(op: Op, out: int, index: Indices, axes: Axes) -> list[Term]:
    """``a * sigmoid(b)`` of the two halves of a dimension."""
    source = op.args[0]
    dim = dimension(op.args[1] if len(op.args) > 1 else -1, source.rank)
    half = op.outputs[0].shape[dim]
    second = Leaf(source, (*index[:dim], index[dim].affine(1, half), *index[dim + 1 :]))
    return [Term(factors=(Leaf(source, index), Func("sigmoid", second)))]
