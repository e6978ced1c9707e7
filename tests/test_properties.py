"""The verdict on a program does not hang on how it is written, nor on which of its sizes are symbolic.

The law: renaming, another order of the nodes or of commutative operands, any number of views, transposes and
copies, and cutting a product in two never change what is found, nor any value or gradient. ``tests/edits.py``
has the edits; Hypothesis draws them, and prints the few that are left of a failure.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.backend import flashmhf
from mhf_compile.report.report import Report
from tests.comparison import LONGEST_SUM, counted_calls
from tests.edits import EDITS, Edit, Program, apply, capture, duplicate, edited, graphs
from tests.programs import BY_NAME, Spelling
from tests.spellings.case import Case, converted

CASES = {
    f"{house}-{case}": case
    for house in ("research", "production", "algebra")
    for case in import_module(f"tests.spellings.{house}").CASES
}
BOUNDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    max_examples=3,
    phases=[Phase.generate],  # a failure prints its few edits as it is
)


# -- the programs -------------------------------------------------------------------------------------------


@cache
def spelling_program(name: str) -> Program:
    spelling = BY_NAME[name]
    return capture(spelling.program, spelling.tensors(torch.float64))


@cache
def case_program(name: str) -> Program:
    case: Case = CASES[name]
    torch.manual_seed(0)
    return capture(*converted(*case.make(), torch.float64), case.context or contextlib.nullcontext)


@cache
def expected(program: Program) -> tuple[tuple[Any, int], list[Tensor]]:
    """The verdict on a program as it came, and its results and gradients."""
    _, report = rewritten(program)
    return verdict(report), program.outcome()


def rewritten(program: Program) -> tuple[Program, Report]:
    program = duplicate(program)
    with program.context():
        module, report = mhf_compile.rewrite(program.module, program.inputs, strict=True, dense="always")
    return Program(module, program.inputs, program.context, program.edits), report


def verdict(report: Report) -> tuple[Any, int]:
    """What is found: the sizes of each match, and the number of misses.

    Not the heads that weights have: a product that is cut in the middle of a group has no groups left.
    """
    sizes = sorted(
        (r.pattern, r.tokens, r.heads, r.subnetworks, r.head_dim, r.width, r.out_dim) for r in report.rewrites
    )
    return sizes, len(report.misses)


def check_equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        # Each is off by half a unit in the last place for each product summed, at most.
        assert float((a - b).norm()) <= LONGEST_SUM * torch.finfo(torch.float64).eps * float(b.norm())


def check_law(base: Program, program: Program) -> None:
    """An edited program has the verdict of the one as it came, and runs as one fused call."""
    wanted, outcome = expected(base)
    changed, report = rewritten(program)
    assert verdict(report) == wanted, report
    with counted_calls() as calls:
        check_equal(changed.outcome(), outcome)
    # A checkpointed region runs again in the backward.
    assert calls == [2 if len(list(graphs(program.module))) > 1 else 1]


# -- the law ------------------------------------------------------------------------------------------------


PIECES = (
    "cut_arithmetic",
    "cut_activation",
    "compute_again",
    "split_and_cat",
    "chunk_and_cat",
    "unbind_and_stack",
)
"""Edits that go beyond the law: what is no product is computed in pieces, or twice."""
LAW = [edit for edit in EDITS if edit.name not in PIECES]


@pytest.mark.parametrize("name", BY_NAME)
def test_edits_change_no_verdict(name: str) -> None:
    base = spelling_program(name)

    @BOUNDED
    @given(edited(base, LAW))
    def check(program: Program) -> None:
        check_law(base, program)

    check()


@pytest.mark.parametrize("name", ["one_einsum", "float32_inside", "biased", "dense", "fused_gate_up"])
def test_pieces_change_no_verdict(name: str) -> None:
    base = spelling_program(name)

    @BOUNDED
    @given(edited(base))
    def check(program: Program) -> None:
        check_law(base, program)

    check()


@settings(BOUNDED, max_examples=18)
@given(st.data())
def test_edits_change_no_verdict_on_what_people_write(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CASES)))
    base = case_program(name)
    check_law(base, data.draw(edited(base, LAW)))


def test_a_bias_is_added_in_one_of_several_pieces() -> None:
    def program(x: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        one, other = (torch.nn.functional.gelu(piece @ k) for piece in x.chunk(2))
        return torch.cat([one @ v + b, torch.addmm(b, other, v)])

    given = (torch.randn(6, 4), torch.randn(4, 7), torch.randn(7, 5), torch.randn(5))
    report = mhf_compile.explain(program, *given, options={"flashmhf.dense": "always"})
    assert len(report.rewrites) == 1


def test_what_is_rewritten_is_a_copy() -> None:
    """Also of the bodies of higher-order operations."""
    program = duplicate(spelling_program("checkpointed"))
    before = [str(graph) for graph in graphs(program.module)]
    _, report = mhf_compile.rewrite(program.module, program.inputs)
    assert report.rewrites
    assert [str(graph) for graph in graphs(program.module)] == before


# -- near misses --------------------------------------------------------------------------------------------


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,hefd->bthef", q, k)


def down(hidden: Tensor, v: Tensor, r: Tensor) -> Tensor:
    return torch.einsum("bthe,bthef,hefo->btho", r, hidden, v)


def gate_from_another_input(q, k, u, v, r):
    return down(silu(scores(q.tanh(), k)) * scores(q, u), v, r)


def gate_of_the_next_token(q, k, u, v, r):
    return down(silu(scores(q, k)).roll(1, 1) * scores(q, u), v, r)


def gate_of_the_next_head(q, k, u, v, r):
    return down(silu(scores(q, k)).roll(1, 2) * scores(q, u), v, r)


def gate_of_all_heads(q, k, u, v, r):
    return down(silu(scores(q, k).sum(2, keepdim=True)) * scores(q, u), v, r)


def gate_of_all_subnetworks(q, k, u, v, r):
    return down(silu(scores(q, k)).sum(3, keepdim=True) * scores(q, u), v, r)


def gate_detached(q, k, u, v, r):
    return down(silu(scores(q, k)).detach() * scores(q, u), v, r)


def gate_rolled(q, k, u, v, r):
    return down(silu(scores(q, k).roll(1, -1)) * scores(q, u), v, r)


def hidden_normalised(q, k, u, v, r):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden / (1 + hidden.abs().sum(-1, keepdim=True)), v, r)


def routed_before_the_activation(q, k, u, v, r):
    return down(silu(r[..., None] * scores(q, k)) * scores(q, u), v, r)


NEAR_MISSES = [
    gate_from_another_input,
    gate_of_the_next_token,
    gate_of_the_next_head,
    gate_of_all_heads,
    gate_of_all_subnetworks,
    gate_detached,
    gate_rolled,
    hidden_normalised,
    routed_before_the_activation,
]


@pytest.mark.parametrize("program", NEAR_MISSES, ids=lambda p: p.__name__)
def test_near_misses_stay_refused(program: Callable[..., Tensor]) -> None:
    base = capture(program, Spelling(program, "q k u v r").tensors(torch.float64))

    @settings(BOUNDED, max_examples=2)
    @given(edited(base))
    def check(changed: Program) -> None:
        result, report = rewritten(changed)
        assert report.rewrites == ()
        assert report.misses or report.others
        check_equal(result.outcome(), expected(base)[1])

    check()


# -- the edits themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edit_keeps_values_and_gradients(edit: Edit) -> None:
    """Each alone, wherever it can be made; each can be made in some of the spellings."""
    bases = [base for base in map(spelling_program, BY_NAME) if edit.places(base.module)]
    assert bases

    @settings(BOUNDED, max_examples=3, phases=[Phase.generate])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        base = data.draw(st.sampled_from(bases))
        check_equal(apply(edit, base, data.draw).outcome(), expected(base)[1])

    check()


def test_a_failure_shrinks_to_the_edit_it_hangs_on() -> None:
    """What is printed of a failure is the edits, one to a line."""
    base = spelling_program("one_einsum")
    few = [edit for edit in EDITS if edit.name in ("rename", "swap", "cut_product")]
    program = find(
        edited(base, few),
        lambda changed: any(line.startswith("cut_product") for line in changed.edits),
        settings=settings(BOUNDED, max_examples=12, phases=tuple(Phase)),
    )
    assert len(program.edits) == 1
    assert repr(program).startswith("\n    cut_product: einsum(")


# -- symbolic sizes -----------------------------------------------------------------------------------------

TOKENS = ("x", "q", "q_grouped", "r")
"""The arguments that have a batch and a sequence."""


def with_shape(spelling: Spelling, batch: int, length: int) -> list[Tensor]:
    """Arguments of another batch and sequence."""
    tensors = spelling.tensors(torch.float64)
    return [
        tensor.detach()[:1, :1].repeat(batch, length, *[1] * (tensor.dim() - 2)).requires_grad_()
        if name in TOKENS
        else tensor
        for name, tensor in zip(spelling.arguments.split(), tensors, strict=True)
    ]


def compiled_over(
    spelling: Spelling, shapes: Sequence[tuple[int, int]], backend: Callable[..., Any], marked: bool
) -> list[list[str]]:
    """The guards of each graph that is compiled for a sequence of shapes."""
    torch._dynamo.reset()
    run = torch.compile(spelling.program, backend=backend, dynamic=None if marked else True, fullgraph=True)
    for shape in shapes:
        tensors = with_shape(spelling, *shape)
        for name, tensor in zip(spelling.arguments.split(), tensors, strict=True):
            for dim in range(2) if marked and name in TOKENS else ():
                torch._dynamo.mark_dynamic(tensor, dim)
        check_equal([run(*tensors).detach()], [spelling.program(*tensors).detach()])
    return [
        [
            re.sub(r"__builtins_dict___\d+", "builtins", line.split("#")[0])
            for line in str(guards).splitlines()
        ]
        for guards in (
            entry.guard_manager for entry in _debug_get_cache_entry_list(spelling.program.__code__)
        )
    ]


def ours(module: Any, inputs: Any) -> Any:
    options = {"flashmhf.inner": "eager", "flashmhf.strict": True, "flashmhf.dense": "always"}
    return flashmhf(module, inputs, options=options)


def eager(module: Any, inputs: Any) -> Any:
    return module.forward


SYMBOLIC_REASONS = {
    "bmm_r_before": "symbolic positions",  # batch times length is the same for q and r; neither need be
    "bmm_r_after": "symbolic positions",  # likewise
    "head_list": "symbolic positions",  # a third of a symbolic width
    "dense_fused": "argument of silu is the result of split",  # half of a symbolic width
}
"""Why a program may be refused with symbolic sizes: the last two where widths are symbolic as well."""


DIFFERENT = st.tuples(st.integers(2, 9), st.integers(2, 9)).filter(lambda sizes: sizes[0] != sizes[1])
"""A batch and a sequence; equal ones are one symbol to Dynamo, and may then be refused."""


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "dynamic"])
@pytest.mark.parametrize("name", BY_NAME)
def test_symbolic_sizes_cost_no_guard_and_no_compile(name: str, marked: bool) -> None:
    spelling = BY_NAME[name]

    @settings(BOUNDED, max_examples=1)
    @given(st.lists(DIFFERENT, min_size=3, max_size=3))
    def check(shapes: list[tuple[int, int]]) -> None:
        wanted = compiled_over(spelling, shapes, eager, marked)
        flashmhf.reset()  # type: ignore[attr-defined]
        assert compiled_over(spelling, shapes, ours, marked) == wanted
        sizes, misses = expected(spelling_program(name))[0]
        for report in mhf_compile.last_reports():
            if name in SYMBOLIC_REASONS and report.misses:
                assert SYMBOLIC_REASONS[name] in report.misses[0].reason
                continue
            found = verdict(report)
            if marked:
                assert (len(found[0]), found[1]) == (len(sizes), misses), report
            else:  # widths are symbolic as well: a loop over their parts may be several calls
                assert found[0] and found[1] == misses, report
            if marked and name in SYMBOLIC_REASONS:  # sub-networks that are added up outside are heads
                assert [(h * e, *rest) for _, _, h, e, *rest in found[0]] == [
                    (h * e, *rest) for _, _, h, e, *rest in sizes
                ]
            elif marked:  # without it, Dynamo makes other sizes symbolic as well
                assert [r[2:] for r in found[0]] == [r[2:] for r in sizes]

    check()
