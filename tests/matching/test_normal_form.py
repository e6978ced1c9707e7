"""The normal form of a candidate: its entries, as folded terms of operands and of functions of scores."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mhf_compile.matching.normal_form import _hoisted, normal_form
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.notation import Func, Index, Leaf, Term, leaves
from mhf_compile.notation.fold import Stacked
from mhf_compile.reading.activations import Activations
from mhf_compile.reading.reader import Reader
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value
from tests.evaluate import Program, check, program

N, D, W, O = 2, 3, 4, 2  # noqa: E741
SHAPES = {"x": (N, D), "k": (D, W), "u": (D, W), "v": (W, O)}
GATED = tuple(SHAPES.values())


def downstream(tape: Tape, activations: Activations) -> dict[Value, frozenset[Value]]:
    """The activations that each value is computed from, of programs that are linear in them."""
    carried = {anchor: frozenset([anchor]) for anchor in activations.anchors}
    for value in tape.values:
        if value not in carried and value.op is not None:
            reaching = [carried[given] for given in value.op.inputs if given in carried]
            if reaching:
                carried[value] = frozenset[Value]().union(*reaching)
    return carried


def form(
    function: Callable[..., Tensor], *shapes: tuple[int, ...], reader: Reader | None = None
) -> tuple[Program, list[Term]]:
    """A program and the normal form of its result, checked to be what it computes, entry by entry."""
    found = program(function, *(shapes or GATED))
    activations = Activations(found.tape)
    reader = reader or Reader()
    carried = downstream(found.tape, activations)
    index, terms = normal_form(found.result, activations, carried, reader)
    check(found, terms, index)
    return found, terms


def parts(term: Term) -> tuple[Func, Func, list[Leaf]]:
    """(the function of the gate's score, the up score, the other leaves) of a term."""
    functions = [f for f in term.factors if isinstance(f, Func)]
    (gate,) = (f for f in functions if f.name)
    (up,) = (f for f in functions if not f.name)
    return gate, up, [f for f in term.factors if isinstance(f, Leaf)]


def gated(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (F.silu(x @ k) * (x @ u)) @ v


def values(found: Func) -> list[object]:
    return [leaf.value for leaf in leaves((found,))]


def test_scores_are_sums_of_products_of_operands():
    found, (term,) = form(gated)
    x, k, u, v = found.inputs
    gate, up, (last,) = parts(term)
    assert gate.name == "silu" and values(gate) == [x, k] and values(up) == [x, u] and last.value is v
    assert [axis.size for axis in term.bound] == [W]
    for score in (gate, up):
        (inner,) = score.terms
        assert [axis.size for axis in inner.bound] == [D] and set(score.axes) >= set(term.bound)


def test_operands_are_read_below_rearrangements_and_numbers():
    def function(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return gated((x.t() * 2).t(), k.t().reshape(-1).view(W, D).t(), u.unsqueeze(0)[0], v.clone())

    found, (term,) = form(function)
    gate, up, (last,) = parts(term)
    assert [*values(gate), *values(up), last.value] == [found.inputs[i] for i in (0, 1, 0, 2, 3)]
    assert gate.terms[0].coefficient == 2 and up.terms[0].coefficient == 1 and term.coefficient == 2


def test_a_number_in_the_up_score_stands_outside_and_one_in_the_gates_inside():
    _, (term,) = form(lambda x, k, u, v: (F.silu(x @ k / 4) * (3 * (x @ u))) @ v)
    gate, up, _ = parts(term)
    assert gate.terms[0].coefficient == Fraction(1, 4)
    assert up.terms[0].coefficient == 1 and term.coefficient == 3


def test_what_the_up_score_is_multiplied_with_outside_of_its_sum_stands_outside():
    found, (term,) = form(lambda x, k, u, v, r: (F.silu(x @ k) * ((x @ u) * r)) @ v, *GATED, (N, 1))
    _, up, others = parts(term)
    assert len(values(up)) == 2 and found.inputs[4] in {leaf.value for leaf in others}


def test_biases_are_terms_of_the_scores():
    found, (term,) = form(
        lambda x, k, u, v, a, b: (F.silu(x @ k + a) * torch.addmm(b, x, u)) @ v, *GATED, (W,), (W,)
    )
    gate, up, _ = parts(term)
    for score, bias in ((gate, found.inputs[4]), (up, found.inputs[5])):
        assert sorted(len(t.factors) for t in score.terms) == [1, 2]
        assert bias in values(score)


def test_a_loop_is_one_term_over_an_axis():
    def function(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return sum((gated(x, k[e], u[e], v[e]) for e in range(3)), torch.zeros(()).double())

    _, (term,) = form(function, (N, D), *((3, *shape) for shape in GATED[1:]))
    assert sorted(axis.size for axis in term.bound) == [3, W]


def test_a_list_of_modules_is_one_term_of_stacks():
    def function(x: Tensor, *weights: Tensor) -> Tensor:
        return gated(x, *weights[:3]) + gated(x, *weights[3:])

    found, (term,) = form(function, (N, D), *GATED[1:], *GATED[1:])
    stacks = {leaf.value for leaf in leaves(term.factors) if isinstance(leaf.value, Stacked)}
    assert {stack.parts for stack in stacks} == set(zip(found.inputs[1:4], found.inputs[4:], strict=True))


def test_heads_that_are_joined_are_an_axis_of_the_result():
    def function(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.stack([gated(x[:, h], k[h], u[h], v[h]) for h in range(3)], 1)

    _, (term,) = form(function, (N, 3, D), *((3, *shape) for shape in GATED[1:]))
    assert [axis.size for axis in term.bound] == [W]
    assert sorted(axis.size for axis in term.free) == [N, O, 3]


def test_an_axis_that_nothing_has_is_a_number():
    _, (term,) = form(lambda x, k, u, v: gated(x, k, u, v)[None].expand(5, N, O).sum(0))
    assert term.coefficient == 5 and [axis.size for axis in term.bound] == [W]


def test_what_is_added_is_a_term_of_its_own():
    found, terms = form(lambda x, k, u, v, y: gated(x, k, u, v) + 2 * y, *GATED, (N, O))
    (added,) = (term for term in terms if not any(isinstance(f, Func) for f in term.factors))
    (operand,) = leaves(added.factors)
    assert operand.value is found.inputs[4] and added.coefficient == 2 and len(terms) == 2


def test_of_values_computed_alike_the_first_is_the_operand():
    _, (term,) = form(lambda x, k, u, v: (F.silu(x.sin() @ k) * (x.sin() @ u)) @ v)
    gate, up, _ = parts(term)
    assert values(gate)[0] is values(up)[0]


def test_an_operand_is_the_value_that_is_preferred():
    def preference(value: Value) -> int:
        return value.op is not None and value.op.name == "t"

    found, (term,) = form(lambda x, k, u, v: gated(x, k.t().t(), u, v), reader=Reader(preference))
    gate, _, _ = parts(term)
    (moved,) = (value for value in values(gate) if value is not found.inputs[0])
    assert isinstance(moved, Value) and moved.op is not None and moved.op.name == "t"


def test_a_score_is_one_contraction_deep():
    """What an operand is computed from is not read."""
    found, (term,) = form(lambda x, w, k, u, v: gated(x @ w, k, u, v), (N, 5), (5, D), *GATED[1:])
    gate, up, _ = parts(term)
    assert not {found.inputs[0], found.inputs[1]} & {*values(gate), *values(up)}


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "zeros": (lambda x, k, u, v: gated(x, k, u, v) * 0, "a tensor in it is multiplied by 0"),
    "zeros in a score": (lambda x, k, u, v: (F.silu(x @ k) * (x @ u * 0)) @ v, "multiplied by 0"),
    "not read": (lambda x, k, u, v: (F.silu(x @ k) * (x @ u)).flip(1) @ v, "flip is applied to it"),
    "dropout in a score": (
        lambda x, k, u, v: (F.silu(x @ k) * (torch.rand_like(x @ u) * (x @ u))) @ v,
        "dropout or other randomness is inside",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sum_of_products_is_refused_with_the_reason(name: str):
    function, reason = REFUSED[name]
    with pytest.raises(NoMatch, match=reason):
        form(function)


def test_the_index_is_that_of_the_entry_after_all_cuts():
    def function(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.cat([gated(x, k[h], u[h], v[h]) for h in range(2)], 1)

    found = program(function, (N, D), *((2, *shape) for shape in GATED[1:]))
    activations = Activations(found.tape)
    index, (term,) = normal_form(found.result, activations, downstream(found.tape, activations), Reader())
    (stride, head), (one, out) = index[1].digits
    assert (stride, head.size, one, out.size) == (O, 2, 1, O) and index[1].offset == 0
    assert index[0] == Index.over(index[0].axes[0]) and {head, out} <= set(term.free)


def test_a_score_that_is_a_sum_of_nothing_stays_one() -> None:
    nothing = Term(Fraction(2), (Func("", ()),))
    assert _hoisted(nothing) == nothing
