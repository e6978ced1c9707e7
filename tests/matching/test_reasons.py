"""Why something is no match: each reason in words, and of several the one that is nearest to a match."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from mhf_compile.matching.match import Unmatched
from mhf_compile.matching.reasons import (
    FORM,
    OBSTACLE,
    SIZES,
    NoMatch,
    Progress,
    Refusal,
    Stage,
    differing,
    misplaced,
    nearest,
    value_of,
)
from mhf_compile.notation import Axis, Leaf
from mhf_compile.notation.fold import Stacked
from mhf_compile.patterns import FLASH_MHF
from mhf_compile.patterns.pattern import RESULT
from mhf_compile.tape.recorder import record_function
from tests.matching.programs import Program, T, searched, tensors


def channels_kept(q, k, u, v, r):
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
    return torch.einsum("bthe,bthef,hefo->bthfo", r, silu(gate) * up, v)


def tokens_mixed(q, k, u, v, r):
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
    return torch.einsum("bthef,hefo->bho", silu(gate) * up, v)


def other_tokens_for_up(q, k, u, v, r):
    gate, up = torch.einsum("bthd,hefd->bthef", q, k), torch.einsum("bthd,hefd->bthef", q.flip(1), u)
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, v)


def two_up_projections(q, k, u, v, r):
    gate, up, other = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u, u + k))
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up * other, v)


def two_other_tensors(q, k, u, v, r):
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
    other = torch.einsum("bthd,hefd->bthef", q.cumsum(1), u)
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up * other, v)


def unknown_activation(q, k, u, v, r):
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
    return torch.einsum("bthe,bthef,hefo->btho", r, torch.clamp(gate, min=0.1 * gate) * up, v)


def unknown_ungated_activation(q, k, u, v, r):
    gate = torch.einsum("bthd,hefd->bthef", q, k)
    return torch.einsum("bthe,bthef,hefo->btho", r, torch.erfinv(gate), v)


REASONS = [
    (tokens_mixed, f"it is summed over an axis of size {T}"),
    (other_tokens_for_up, "gate and up do not read the same input"),
    (two_up_projections, "hidden values are a function of 3 scores, of which the op takes two"),
    (two_other_tensors, "the activation is multiplied with 2 tensors of its own shape"),
    (unknown_activation, "the activation is clamp, none that the op knows"),
    (unknown_ungated_activation, "the activation is erfinv, none that the op knows"),
]


@pytest.mark.parametrize(("program", "said"), REASONS, ids=[program.__name__ for program, _ in REASONS])
def test_reasons(program: Program, said: str) -> None:
    (miss,) = searched(program, *tensors("q k u v r"))
    assert isinstance(miss, Unmatched)
    assert said in miss.why.reason


def test_a_width_that_is_not_contracted_is_no_match() -> None:
    results = searched(channels_kept, *tensors("q k u v r"))
    assert all(isinstance(result, Unmatched) for result in results)


# -- of several the nearest ----------------------------------------------------------------------------------

ANCHOR: Any = SimpleNamespace(
    op=SimpleNamespace(state=SimpleNamespace(transforms=()), scope=None), plain=True
)


def test_a_later_stage_is_nearer_and_within_one_a_larger_size() -> None:
    order = [
        Progress(Stage.FACTORS, -2),
        Progress(Stage.FACTORS, -1),
        FORM,
        Progress(Stage.OPERANDS),
        Progress(Stage.ROLES),
        Progress(Stage.ROLES, 7),
        SIZES,
        OBSTACLE,
        Progress(Stage.MATCH, 1),
        Progress(Stage.MATCH, 10**6),
    ]
    assert sorted(order[::-1]) == order
    assert {progress.stage for progress in order} == set(Stage)


def test_what_a_subclass_computes_is_told_before_the_rest() -> None:
    anchor: Any = SimpleNamespace(op=ANCHOR.op, plain=False, handle=SimpleNamespace(tensor=Subclass()))
    told = nearest(anchor, [NoMatch("near", progress=OBSTACLE)], None, leaves=False, behind=False)
    assert told.reason.startswith("it is computed on a Subclass, a tensor subclass")


class Subclass:
    pass


@pytest.mark.parametrize("swapped", [False, True])
def test_the_nearest_is_told(swapped: bool) -> None:
    far, near = NoMatch("far"), NoMatch("near", progress=Progress(Stage.ROLES, 1))
    failed = [near, far] if swapped else [far, near]
    assert nearest(ANCHOR, failed, None, leaves=False, behind=False) is near
    assert (
        nearest(ANCHOR, failed, NoMatch("stopped", progress=OBSTACLE), leaves=False, behind=False).reason
        == "stopped"
    )


def test_a_refusal_is_told_before_others_and_of_equals_the_smallest_candidate_s() -> None:
    refused, other = Refusal("refused"), NoMatch("other", progress=OBSTACLE)
    assert nearest(ANCHOR, [other, refused], None, leaves=False, behind=False) is refused
    largest, smallest = NoMatch("largest"), NoMatch("smallest")
    assert nearest(ANCHOR, [largest, smallest], None, leaves=False, behind=False) is smallest


def test_without_candidates_what_stopped_it_is_told_then_that_it_leaves() -> None:
    stopped = NoMatch("something is applied to it", progress=OBSTACLE, advice="leave it out")
    told = nearest(ANCHOR, [], stopped, leaves=True, behind=False)
    assert (told.reason, told.progress, told.advice) == (
        "it reaches no product with values: something is applied to it",
        OBSTACLE,
        "leave it out",
    )
    assert nearest(ANCHOR, [], stopped, leaves=True, behind=True) is stopped
    assert "it is returned" in nearest(ANCHOR, [], None, leaves=True, behind=False).reason
    assert nearest(ANCHOR, [], None, leaves=False, behind=False).reason == "it reaches no product with values"


def test_an_axis_without_a_role_is_told_in_the_words_of_the_pattern() -> None:
    axis = Axis(7)
    for present, said in (
        (
            {"q", "k"},
            "an axis of size 7 of the input and the gate's weight: tokens or heads",
        ),
        ({"k", "u"}, "7 activations are added up that share the values"),
        ({"v", RESULT, "k"}, "the result there is an axis of size 7 that the input of gate and up lacks"),
        ({"q", RESULT, "k"}, "an axis of size 7 of the input and the gate's weight and the result is not in"),
    ):
        error = misplaced(FLASH_MHF, axis, present, 2)
        assert said in error.reason and error.progress == (Stage.ROLES, 2)


def test_a_reason_is_the_message_of_its_error() -> None:
    assert str(NoMatch("a number is added", None, OBSTACLE)) == "a number is added"


def test_a_stack_of_tensors_is_no_value_of_the_program() -> None:
    assert value_of(Leaf(Stacked((torch.zeros(2),)), ())) is None


@pytest.mark.parametrize(("activation", "told"), [(silu, True), (torch.sigmoid, False)])
def test_a_change_of_grad_mode_is_told_of_what_is_evidently_an_activation(activation, told: bool) -> None:
    """A sigmoid may be anything."""

    def program(q, k1, u1, v1):
        with torch.no_grad():
            hidden = activation(torch.einsum("bthd,hfd->bthf", q, k1))
        return torch.einsum("bthf,hfo->btho", hidden * torch.einsum("bthd,hfd->bthf", q, u1), v1)

    misses = searched(program, *tensors("q k1 u1 v1"))
    assert [isinstance(miss, Unmatched) and miss.is_pattern for miss in misses] == [True] * told
    assert all("grad mode changes inside it" in str(miss.why) for miss in misses)


def test_the_later_of_two_inputs_that_differ_is_where_they_do() -> None:
    """A stack is nowhere."""
    _, (x, _), result = record_function(lambda x, y: x.sin() + y, (3,), (3,))
    assert x is not None and result.op is not None
    sin = result.op.args[0]
    a, b, stack = (Leaf(value, ()) for value in (x, sin, Stacked((x, sin))))
    assert x.time == 0
    for first, second, at in ((a, b, sin), (b, a, sin), (a, stack, x), (stack, a, x)):
        assert differing(first, second).at is at
