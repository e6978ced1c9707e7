"""The strategies themselves: what they claim is what they draw, all of it is drawn, and it shrinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mhf_compile.patterns.flash_mhf import formula
from mhf_compile.patterns.ungated_mhf import formula as ungated
from tests.comparison import LONGEST_SUM
from tests.fuzz.property import SUITE, Property
from tests.mutants import MUTANTS, Mutant
from tests.strategies import choices
from tests.strategies.choices import Spec, Writing
from tests.strategies.draw import Program, mutants, programs
from tests.strategies.render import render
from tests.strategies.running import check_equal, load, outcome, quiet

BOUNDED = settings(SUITE, max_examples=150)


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Examples of a strategy."""
    found = []

    @settings(BOUNDED, max_examples=count, phases=[Phase.generate])
    @given(strategy)
    def keep(example: Any) -> None:
        found.append(example)

    keep()
    return found


@cache
def many() -> list[Program]:
    return drawn(programs(), 1000)


# -- what they claim is what they draw ----------------------------------------------------------------------


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu_squared": lambda x: torch.relu(x).square(),
    "sigmoid": torch.sigmoid,
}


def hidden_of(spec: Spec) -> Callable[..., Tensor]:
    """The hidden value as a function of gate and, where there is one, up."""
    act: Callable[..., Tensor] = EXACT[spec.activation]
    if spec.phi:
        names = {"torch": torch, "nn": nn, "silu": F.silu, "gelu": F.gelu, "relu": F.relu}
        act = eval(f"lambda gate, up=None: {spec.phi.format(gate='gate', up='up')}", names)
    return act if spec.is_joint or not spec.gated else lambda gate, up: act(gate) * up


@BOUNDED
@given(programs())
def test_a_program_is_the_formula(program: Program) -> None:
    """Each feed-forward is the formula of the operands that it reveals."""
    torch.manual_seed(0)
    spec = program.spec
    model, (x,) = load(render(spec, program.writing, reveal=True)[0])
    operands = model.a.operands(x)
    bias = operands.pop("value_bias", None)
    numbers = {"gate_scale": spec.gate_scale, "scale": spec.scale}
    definition = formula if spec.gated else ungated
    wanted = definition(**operands, **numbers, hidden=hidden_of(spec))
    if bias is not None:  # [Hk, E, O], of which any may be 1
        result = spec.routed and program.writing.routing == "result"
        weights = operands["r"] if result else torch.ones(1, 1, wanted.shape[2], 1, dtype=wanted.dtype)
        heads = bias.expand(spec.heads, -1, -1) if not spec.summed or bias.shape[0] > 1 else bias / spec.heads
        heads = heads.expand(spec.heads, -1, -1).repeat_interleave(spec.group, 0)
        wanted = wanted + spec.scale * (weights[..., None] * heads).sum(3)
    wanted = wanted.sum(2) if spec.summed else wanted.flatten(2)
    with quiet():
        found = model.a(x)
    error = float((found - wanted).detach().norm())
    assert error <= LONGEST_SUM * torch.finfo(torch.float64).eps * float(wanted.detach().norm())


@BOUNDED
@given(programs())
def test_a_program_has_what_it_claims(program: Program) -> None:
    spec, writing, text = program.spec, program.writing, program.text
    for letter in "he":
        assert (f"for {letter} in range(" in text) == (letter in writing.loops)
    verbs = (writing.verb_gate, writing.verb_down, *([writing.verb_up] * (spec.gated and not writing.fused)))
    signs = {"einsum": "torch.einsum(", "vmap": "torch.vmap(", "convolution": "conv1d("}
    signs |= {verb: f"torch.{verb}(" for verb in ("bmm", "addmm", "baddbmm")}
    signs["linear"] = " self." if writing.storage == "linear" else "linear("
    signs |= {"matmul": " @ ", "einops": "einops.einsum(", "mul_sum": ").sum((", "tensordot": "tensordot("}
    routed = spec.routed and writing.routing == "einsum"
    for verb in verbs[: 1 if routed else None]:
        assert signs[verb] in text or (verb == "vmap" and signs["matmul"] in text)  # without a batch
    assert ("nn.ParameterList" in text) <= (writing.storage == "list")
    assert ("checkpoint(self" in text) == (writing.mode == "checkpoint")
    assert ("torch.autocast" in text) == (writing.mode == "autocast")
    assert ("no_grad" in text) == (writing.mode == "no_grad")
    assert (" *= " in text or " += " in text) or not (writing.in_place and spec.gate_bias)


@settings(BOUNDED, max_examples=20)
@given(programs())
def test_a_program_is_the_same_each_time(program: Program) -> None:
    with quiet():
        first, second = (outcome(model, model, given) for model, given in map(load, [program.text] * 2))
    check_equal(second, first, eps=0)


def test_a_program_says_how_many_calls_it_is() -> None:
    assert Program(Spec(), Writing()).claims.layers == 1
    assert Program(Spec(), Writing(flow="again", mode="checkpoint")).claims.layers == 2
    assert Program(Spec(), Writing(flow="summed")).claims.layers == 1
    assert Program(Spec(), Writing(flow="summed", mode="function")).claims.layers == 2


# -- all of it is drawn -------------------------------------------------------------------------------------

TABLES: dict[str, Any] = {
    "loops": ("", "h", "e", "he", "eh"),
    "verb_gate": choices.VERBS,
    "verb_up": choices.VERBS,
    "verb_down": choices.VERBS,
    "storage": choices.STORAGES,
    "fused": choices.FUSED,
    "grouping": choices.GROUPINGS,
    "routing": choices.ROUTINGS,
    "router": choices.ROUTERS,
    "heads_collected": choices.HEADS_COLLECTED,
    "networks_collected": choices.NETWORKS_COLLECTED,
    "up_first": (False, True),
    "in_place": (False, True),
    "flow": choices.FLOWS,
    "mode": choices.MODES,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_way_of_writing_is_reached(name: str) -> None:
    found = {getattr(program.writing, name) for program in many()}
    assert found == set(TABLES[name])


def test_every_layout_is_reached() -> None:
    for field in fields(Writing):
        if field.name.startswith("layout"):
            assert len({getattr(program.writing, field.name) for program in many()}) > 100


def test_every_computation_is_reached() -> None:
    specs = [program.spec for program in many()]
    assert {spec.activation for spec in specs} == set(choices.ACTIVATIONS)
    extras = ("gate_factor", "up_factor", "hidden_factor", "value_bias", "bank", "summed")
    assert {spec.low_rank for spec in specs} == {"", "k", "u", "v"}
    for name in ("gated", "routed", "gate_bias", "up_bias", "gate_number", "up_number", "phi", *extras):
        assert {bool(getattr(spec, name)) for spec in specs} == {False, True}
    assert {spec.is_joint for spec in specs if spec.phi and spec.gated} == {False, True}
    assert {(spec.heads > 1, spec.group > 1, spec.networks > 1) for spec in specs} == {
        (heads, group, networks)
        for heads in (False, True)
        for group in (False, True)
        for networks in (False, True)
    }


def test_every_detour_is_reached() -> None:
    found = {change for program in many() for change in program.writing.detours}
    assert {point for point, _ in found} == set(choices.POINTS)
    assert {text for _, text in found} == set(choices.DETOURS.values())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_every_mutant_is_reached(mutant: Mutant) -> None:
    programs = drawn(mutants(among=[mutant]), 3)
    assert {program.mutant for program in programs} == {mutant}


# -- mutants ------------------------------------------------------------------------------------------------

PLAIN = (
    Program(Spec(heads=2, networks=2, routed=True, out_dim=3), Writing()),
    Program(Spec(heads=2, networks=2, routed=True, out_dim=3), Writing(up_first=True)),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_mutant_is_another_function(mutant: Mutant) -> None:
    """In values, or in gradients, or in what its backward raises."""
    program = Program(PLAIN[0].spec, PLAIN[0].writing, mutant)
    assert set(mutant.changes) <= render(program.spec, program.writing, mutant.changes)[1]
    with quiet():
        changed, plain = (
            outcome(model, model, given) for model, given in map(load, (program.text, PLAIN[0].text))
        )
    with pytest.raises(AssertionError):
        check_equal(changed, plain)


# -- shrinking ----------------------------------------------------------------------------------------------


def shrunk(condition: Callable[[Program], bool], strategy: st.SearchStrategy[Program]) -> Program:
    return find(strategy, condition, settings=settings(BOUNDED, max_examples=2000))


def test_a_failure_shrinks_to_what_it_hangs_on() -> None:
    program = shrunk(lambda p: "torch.bmm" in p.text and p.writing.loops == "e", programs())
    assert program.spec.networks == 2 and program.spec.heads <= 2 and program.spec.group == 1
    assert program.writing.verb_gate == "bmm" or program.writing.verb_down == "bmm"
    assert program.writing.detours == () and program.writing.mode == ""
    assert len(program.text.splitlines()) <= 55


def test_a_mutant_shrinks_to_the_plainest_program() -> None:
    program = shrunk(lambda p: p.mutant is not None and p.mutant.kind == "escape", mutants())
    assert program.spec == Spec()
    assert program.writing == Writing()


def test_what_fails_is_printed_as_its_source() -> None:
    """By Hypothesis, in what it notes of the error."""

    def no_relu(program: Program) -> None:
        assert "relu(gate)" not in program.text

    with pytest.raises(AssertionError) as failure:
        Property(no_relu, programs(), 200).hold()
    notes = "\n".join(failure.value.__notes__)  # where CI is set, how to reproduce it is another
    assert "hidden = relu(gate)" in notes  # with a gate or without: it hangs on what was drawn
    assert "Writing(" not in notes


def test_a_program_is_its_source_for_the_reader() -> None:
    program = Program(Spec(), Writing())
    compile(repr(program), "<printed>", "exec")
    assert "class FeedForward" in repr(program)
    mutant = Program(Spec(), Writing(), MUTANTS[0])
    compile(repr(mutant), "<printed>", "exec")
    assert MUTANTS[0].name in repr(mutant)
