"""Faults that are planted by hand, to see that the properties would find them.

A fault is an edit of the source of a function. All rooms have some: the reader, fold and normal form, the
matcher, the proof, the rewrite, the gradients, and the Triton kernels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from hypothesis import Phase, settings
from hypothesis.errors import UnsatisfiedAssumption
from triton.runtime.interpreter import InterpretedFunction

from tests.fuzz.kept import PROPERTIES
from tests.fuzz.property import SUITE, Property
from tests.kernels.implementations import interpreter
from tests.planting import Edit, planted
from tests.strategies.running import OPTIONS

LIMIT = 200
"""Within so many examples a property fails."""

NO_SHRINKING = settings(SUITE, phases=[Phase.generate])


@dataclass(frozen=True)
class Fault:
    """What makes the product wrong, and the property that fails then.

    Attributes:
        room: where it is.
        name: what is wrong.
        property: the name of a property.
        edits: what makes it so. A fault of the proof needs another one that it should find.
        unproved: the name of the property that fails where nothing is proved, if that is looked at.
    """

    room: str
    name: str
    property: str
    edits: tuple[Edit, ...]
    unproved: str = ""

    def __str__(self) -> str:
        return f"{self.room}: {self.name}"


# -- finding ------------------------------------------------------------------------------------------------


def examples_until_it_fails(
    name: str, edits: tuple[Edit, ...] = (), limit: int = LIMIT, **options: object
) -> tuple[int, str] | None:
    """How many examples a property needs to fail, with edits made, and with what error; None where it holds.

    What is of Triton is looked for in the process that has its interpreter.
    """
    if name.startswith("triton") and os.environ.get("TRITON_INTERPRET") != "1":
        with patch.dict(os.environ, TRITON_INTERPRET="1"):
            return interpreter().submit(examples_until_it_fails, name, edits, limit).result()
    (plain,) = (property_ for property_ in PROPERTIES if property_.name == name)
    drawn = 0
    failure: Exception | None = None

    def check(example: Any) -> None:
        nonlocal drawn, failure
        if failure is None:
            drawn += 1
            try:
                return plain.check(example)
            except UnsatisfiedAssumption:
                raise
            except Exception as error:
                failure = error
        raise failure  # again of the same example, when Hypothesis says for which one

    with (
        planted(edits),
        patch.dict(InterpretedFunction.rewritten_fn, clear=True),
        patch.dict(OPTIONS, options),
    ):
        try:
            Property(check, plain.examples, plain.count).hold(NO_SHRINKING, limit)
        except Exception as error:
            if error is not failure:
                raise
    return None if failure is None else (drawn, type(failure).__name__)


# -- the faults ---------------------------------------------------------------------------------------------

FOUND = "each_feed_forward_is_one_call"
VALUES = "values_and_gradients_are_those_of_eager"
NEAR = "a_near_miss_is_left_alone_or_right"
ROUNDING = "errs_no_more_than_rounding_may"
DIFFERENCES = "first_derivatives_are_differences"

START = Edit("reading.moves:take", "affine(piece.step, piece.start)", "affine(piece.step, 0)")
TWICE = Edit("matching.unify:_Unifier.terms", "coefficient = notation.ONE", "pass")

BLOCKED = "kernels.flash_mhf.blocked"
FORWARD = "kernels.flash_mhf.forward:forward_kernel"
DQ = "kernels.flash_mhf.backward:dq_kernel"
WEIGHTS = "kernels.flash_mhf.backward:weights_kernel"
LAUNCH = "kernels.flash_mhf.launch:Call.launch"

FAULTS = (
    # The proof finds what is read or matched wrongly: then a right program is left alone.
    Fault("reader", "a slice starts at 0", FOUND, (START,), VALUES),
    Fault(
        "reader",
        "a permutation is its inverse",
        FOUND,
        (
            Edit(
                "reading.moves:reorder",
                "placed[d] for d in range(len(index))",
                "index[d] for d in order(op)",
            ),
        ),
        VALUES,
    ),
    Fault(
        "reader",
        "pieces are joined in the opposite order",
        FOUND,
        (
            Edit(
                "reading.joins:join",
                "notation.deltas(high, number)",
                "notation.deltas(high, len(pieces) - 1 - number)",
            ),
        ),
    ),
    Fault(
        "reader",
        "a write is read past",
        FOUND,
        (Edit("reading.moves:write_piece", "if number == start // size:", "if False:"),),
    ),
    Fault(
        "fold",
        "the first tensor of a loop is that of every turn",
        FOUND,
        (Edit("notation.fold:_rebuild", "tuple(column)", "tuple(column[:1] * len(column))"),),
    ),
    Fault(
        "fold",
        "numbers of a loop are taken for consecutive",
        FOUND,
        (Edit("notation.fold:_step", "int(differences.pop())", "1"),),
    ),
    Fault("matcher", "a scale counts twice", FOUND, (TWICE,), VALUES),
    Fault(
        "matcher",
        "an axis has the role that it fits the least",
        FOUND,
        (Edit("matching.roles:AxisRoles._role", "return min(", "return max("),),
    ),
    Fault(
        "matcher",
        "every activation is silu",
        FOUND,
        (
            Edit(
                "matching.unify:_Unifier._functions",
                "activation=score.name or state.activation",
                'activation="silu"',
            ),
        ),
        VALUES,
    ),
    Fault(
        "matcher",
        "gate and up may read different inputs",
        NEAR,
        (
            Edit(
                "matching.roles:AxisRoles._operand",
                "if not (one.index == twin.index and",
                "if (False and not",
            ),
        ),
    ),
    # Two at once: what the proof should find, it does not.
    Fault(
        "proof",
        "all is proved, and a slice starts at 0",
        VALUES,
        (Edit("rewriting.proof:_prove", " or not torch.equal(computed, expected)", ""), START),
    ),
    Fault(
        "proof",
        "gradients are not looked at, and a detach is read through",
        NEAR,
        (
            Edit("rewriting.proof:_prove", "if match.root.requires_grad else ()", "if False else ()"),
            Edit("reading.reader:_stops_gradient", "return grad or", "return False and"),
        ),
    ),
    Fault(
        "proof",
        "operands are 0, and a slice starts at 0",
        VALUES,
        (Edit("rewriting.proof:_prove", ".random_(PRIME, generator=generator)", ".zero_()"), START),
    ),
    Fault(
        "proof",
        "no tokens are left, and a slice starts at 0",
        VALUES,
        (
            Edit("rewriting.proof:_sizes", "work <= BUDGET", "not work"),
            Edit("rewriting.proof:_sizes", "min(size, notation.known(axis.size, hints))", "0"),
            START,
        ),
    ),
    Fault(
        "proof",
        "numbers are 1, and a scale counts twice",
        VALUES,
        (
            Edit(
                "rewriting.field:number", "value.numerator * pow(value.denominator, -1, PRIME) % PRIME", "1"
            ),
            TWICE,
        ),
    ),
    # What is behind the proof, it does not see.
    Fault(
        "rewrite",
        "a part of an operand starts at 0",
        FOUND,
        (Edit("rewriting.operands:Builder._spread", "kept = slice(offset,", "kept = slice(0,"),),
    ),
    Fault(
        "rewrite",
        "scales are left out",
        VALUES,
        (Edit("rewriting.surgery:Surgeon._emit", "float(value) for", "1.0 for"),),
    ),
    Fault(
        "rewrite",
        "every activation is silu",
        VALUES,
        (Edit("rewriting.surgery:Surgeon._emit", "unification.activation}", '"silu"}'),),
    ),
    Fault(
        "rewrite",
        "k and u are swapped",
        VALUES,
        (
            Edit(
                "rewriting.surgery:Surgeon._emit",
                "given[name] =",
                'given[{"k": "u", "u": "k"}.get(name, name)] =',
            ),
        ),
    ),
    Fault(
        "rewrite",
        "values that differ for each token are copied",
        "r_on_the_values_is_left_alone",
        (Edit("rewriting.refusals:repeated_weights", "if size - least > match.hidden:", "if False:"),),
    ),
    Fault(
        "rewrite",
        "what is used elsewhere is taken",
        NEAR,
        (Edit("rewriting.refusals:used_elsewhere", "if not users or any", "if True or any"),),
    ),
    Fault(
        "gradients",
        "of q, the term of up is missing",
        DIFFERENCES,
        (Edit(f"{BLOCKED}:_backward_block", "sums.q.addmm_(d_up, u)", "pass"),),
    ),
    Fault(
        "gradients",
        "of k, the scale of the gate is missing",
        DIFFERENCES,
        (Edit(f"{BLOCKED}:_backward_block", "d_gate, x.q, gate_scale)", "d_gate, x.q)"),),
    ),
    Fault(
        "gradients",
        "of the first head of a group only",
        ROUNDING,
        (Edit(f"{BLOCKED}:backward", "(hk + 1) * group", "hk * group + 1"),),
    ),
    Fault(
        "gradients",
        "autograd forgets the scale",
        DIFFERENCES,
        (Edit("kernels.ops:_Forward.setup_context", "inputs[7:10]", "(*inputs[7:9], 1.0)"),),
    ),
    Fault(
        "gradients",
        "of gradients, the scale is missing",
        "second_derivatives_are_differences",
        (Edit("kernels.derivatives:formula", "hidden, v[heads]) * scale", "hidden, v[heads])"),),
    ),
    Fault(
        "blocked",
        "R of the first sub-networks",
        "whole_numbers_are_computed_exactly",
        (Edit(f"{BLOCKED}:_forward_block", "x.r[:, e, None]", "x.r[:, : e.stop - e.start, None]"),),
    ),
    Fault(
        "blocked",
        "v is scaled in place",
        "operands_are_not_written_to",
        (Edit(f"{BLOCKED}:_forward_block", "out.addmm_(hidden, v,", "out.addmm_(hidden, v.mul_(1),"),),
    ),
    Fault(
        "triton",
        "R of the first sub-network",
        "triton_whole_numbers_are_computed_exactly",
        (
            Edit(
                FORWARD,
                "if first_f == 0:\n                routed = load_router(r, n, in_n, length, h, e,",
                "if first_f == 0:\n                routed = load_router(r, n, in_n, length, h, 0,",
            ),
        ),
    ),
    Fault(
        "triton",
        "the scale is dropped",
        f"triton_{ROUNDING}",
        (Edit(FORWARD, "(out, rows + shift, in_n, totals, scale", "(out, rows + shift, in_n, totals, 1.0"),),
    ),
    Fault(
        "triton",
        "u has the strides of k",
        f"triton_{ROUNDING}",
        (Edit(FORWARD, "u, u_beside, u_strides, first_f", "u, u_beside, k_strides, first_f"),),
    ),
    Fault(
        "triton",
        "the edge of the width is not masked",
        f"triton_{ROUNDING}",
        (Edit(LAUNCH, "sizes.width % tiles.rows == 0", "True"),),
    ),
    Fault(
        "triton",
        "the edge of the tokens is not masked",
        f"triton_{ROUNDING}",
        (Edit(LAUNCH, "% tiles.tokens == 0", "% tiles.tokens >= 0"),),
    ),
    Fault(
        "triton",
        "of k, the scale of the gate is missing",
        "triton_whole_numbers_are_computed_exactly",
        (Edit(WEIGHTS, "dk_totals, gate_scale, D", "dk_totals, 1.0, D"),),
    ),
    Fault(
        "triton",
        "the mask of the values leaves out a row",
        f"triton_{ROUNDING}",
        (Edit("kernels.flash_mhf.tiles:load_weights", "f < width,", "f < width - 1,"),),
    ),
    Fault(
        "triton",
        "of q, the term of up is missing",
        f"triton_{ROUNDING}",
        (Edit(DQ, "dq_totals = add_product(dq_totals, d_up, u_tiles, D, UPCAST)", "pass"),),
    ),
    Fault(
        "triton",
        "of u, the gradient of the gate",
        f"triton_{ROUNDING}",
        (Edit(WEIGHTS, "add_product(du_totals, d_up,", "add_product(du_totals, d_gate,"),),
    ),
    Fault(
        "triton",
        "the gradient has the strides of q",
        "triton_strides_change_nothing",
        (Edit(DQ, "grad, None, grad_strides, first_n", "grad, None, q_strides, first_n"),),
    ),
    Fault(
        "triton",
        "rows of a chunk are not transposed",
        f"triton_{ROUNDING}",
        (Edit("kernels.flash_mhf.chunked:_add_product", "wide.mT if rows else wide", "wide"),),
    ),
)
