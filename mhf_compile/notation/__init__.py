"""Index notation: what a tensor expression means, whatever way it was written.

A tensor entry ``x[i, j]`` is a :class:`Leaf`; a sum of products of leaves and elementwise functions is
a tuple of :class:`Term`. The position along one dimension is an :class:`Index`: a constant plus digits
of a mixed-radix number, ``offset + sum(stride * axis)``. Views, permutations, slices, chunks and
expansions only rearrange digits, so they vanish here; ``repr`` prints the equation.

Sizes are ints, or sympy expressions for sizes that Dynamo keeps symbolic. Arithmetic on them never
asks the shape environment anything, so it cannot add a guard.
"""

from mhf_compile.notation.axes import Axes
from mhf_compile.notation.index import Axis, Digit, Index, Unreadable, by_stride, flatten
from mhf_compile.notation.sizes import UNTOLD, Size, at_most, known, product, quotient, size_of, times
from mhf_compile.notation.terms import (
    ONE,
    ZERO,
    Delta,
    Factor,
    Func,
    Leaf,
    Tensor,
    Term,
    deltas,
    equation,
    leaves,
    mapped,
    numbered,
    pinned,
    renamed,
    substitute,
    walk,
)

__all__ = [
    "ONE",
    "UNTOLD",
    "ZERO",
    "Axes",
    "Axis",
    "Delta",
    "Digit",
    "Factor",
    "Func",
    "Index",
    "Leaf",
    "Size",
    "Tensor",
    "Term",
    "Unreadable",
    "at_most",
    "by_stride",
    "deltas",
    "equation",
    "flatten",
    "known",
    "leaves",
    "mapped",
    "numbered",
    "pinned",
    "product",
    "quotient",
    "renamed",
    "size_of",
    "substitute",
    "times",
    "walk",
]
