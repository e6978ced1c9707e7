"""Programs that are drawn: each property of a right program, and of one that is subtly not, is a test."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from mhf_compile.backend import analyse, flashmhf
from mhf_compile.options import parse
from tests.mutants import KINDS, MUTANTS
from tests.strategies.choices import ROUTED_VALUES
from tests.strategies.draw import Program, mutants, programs
from tests.strategies.running import OPTIONS, Compiled, Outcome, check_equal, compiled, load, outcome, quiet

BOUNDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    max_examples=16,
    phases=[Phase.generate, Phase.shrink],
)
FEW = settings(BOUNDED, max_examples=8)
BFLOAT16 = torch.finfo(torch.bfloat16).eps

COUNTS: Counter[str] = Counter()
"""What the tests here have drawn."""


@pytest.fixture(scope="module", autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end what was drawn."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(*(f"\n{number:5} {what}" for what, number in COUNTS.most_common()), sep="")


def run(program: Program, **options: object) -> Compiled:
    """Run a program, and count what comes of it."""
    found = compiled(program.text, **options)
    COUNTS["mutants" if program.mutant else "right programs"] += 1
    COUNTS["feed-forwards rewritten"] += found.rewrites
    for reason in found.reasons:
        COUNTS[f"refused: {re.sub(r'[a-z_]*_[0-9]+|[0-9]+', 'N', reason)[:90]}"] += 1
    if program.mutant and not found.rewrites and not found.reasons:
        COUNTS["nothing found"] += 1
    return found


def rounding(program: Program) -> float:
    return BFLOAT16 if program.writing.mode == "autocast" else torch.finfo(torch.float64).eps


# -- right programs -----------------------------------------------------------------------------------------


@BOUNDED
@given(programs())
def test_values_and_gradients_are_those_of_eager(program: Program) -> None:
    found = run(program)
    check_equal(found.outcome, found.eager, rounding(program))


@BOUNDED
@given(programs())
def test_each_feed_forward_is_one_call(program: Program) -> None:
    found = run(program)
    backward = program.writing.mode == "checkpoint" and found.outcome.gradients
    assert found.calls == (program.calls if backward else program.layers), found.shown
    assert found.rewrites == program.calls // (2 if program.writing.mode == "checkpoint" else 1), found.shown
    assert not found.reasons, found.shown


@BOUNDED
@given(programs())
def test_the_report_has_the_sizes_of_the_program(program: Program) -> None:
    spec = program.spec
    together = 2 if program.writing.flow == "summed" and program.layers == 1 else 1
    found = run(program)
    assert found.rewrites
    for rewrite in (rewrite for report in found.reports for rewrite in report.rewrites):
        assert rewrite.pattern == ("flash_mhf" if spec.gated else "ungated_mhf")
        # Heads that share all weights may be read as tokens.
        assert rewrite.heads in (spec.heads * spec.group, 1)
        assert rewrite.tokens * rewrite.heads == spec.batch * spec.length * spec.heads * spec.group
        assert rewrite.head_dim == spec.head_dim
        assert rewrite.out_dim == spec.out_dim
        # The width of a sum without R may be read as all sub-networks', and these as its parts.
        wide = spec.networks * spec.width * together
        assert rewrite.subnetworks * rewrite.width == wide, found.shown
        assert line_of(program.text, rewrite.source) in activation_lines(program), found.shown


def line_of(text: str, source: str) -> str:
    """A line of a program, of a report's "file:line"."""
    name, _, number = source.rpartition(":")
    assert name.endswith("drawn.py")
    return text.splitlines()[int(number) - 1]


def activation_lines(program: Program) -> list[str]:
    """The lines that compute hidden."""
    return [line for line in program.text.splitlines() if line.strip().startswith("hidden = ")]


LARGER = {"length": 16, "width": 12, "head_dim": 8, "out_dim": 8}
"""Sizes with enough entries for a root mean square."""


@settings(BOUNDED, max_examples=24)
@given(programs(spec=LARGER, detours=0), st.sampled_from(["float32", "bfloat16"]))
def test_the_error_is_at_most_twice_eager_s(program: Program, dtype: str) -> None:
    """Against the same program in float64; either is rounded once more, to its dtype."""
    spec = program.spec
    found = run(Program(replace(spec, dtype=dtype), program.writing))
    with quiet():
        small, inputs = load(Program(replace(spec, dtype=dtype), program.writing).text)
        model, _ = load(program.text)
        model.load_state_dict(small.state_dict())
        exact = outcome(model, model, tuple(x.detach().double().requires_grad_() for x in inputs))
    half = torch.finfo(getattr(torch, dtype)).eps / 2
    errors = [errors_of(of, exact) for of in (found.eager, found.outcome)]
    for before, after in zip(*errors, strict=True):
        assert after <= 2 * before + half, errors


def errors_of(found: Outcome, exact: Outcome) -> list[float]:
    """The relative root-mean-square error of all results and gradients."""
    pairs = zip([*found.results, *found.gradients], [*exact.results, *exact.gradients], strict=True)
    return [float((a.double() - b).norm() / b.norm()) for a, b in pairs if a is not None and b is not None]


@BOUNDED
@given(programs())
def test_nothing_that_is_given_is_changed(program: Program) -> None:
    """Inputs, parameters, buffers: not in values, not in what autograd counts of writes."""
    torch._dynamo.reset()
    model, inputs = load(program.text)
    model.register_buffer("seen", torch.ones(2))
    given_ = [*inputs, *model.parameters(), *model.buffers()]
    before = [(t.detach().clone(), t._version, t.requires_grad, t.stride()) for t in given_]
    with quiet():
        outcome(torch.compile(model, backend="flashmhf", options=OPTIONS), model, inputs)
    for tensor, (value, version, requires_grad, stride) in zip(given_, before, strict=True):
        assert torch.equal(tensor, value)
        assert (tensor._version, tensor.requires_grad, tensor.stride()) == (version, requires_grad, stride)
        assert tensor.grad is None


@BOUNDED
@given(programs())
def test_twice_is_the_same(program: Program) -> None:
    """Two runs of what is compiled, and two compilations, are equal to the bit, and so are their reports."""
    first, second = run(program), run(program)
    check_equal(second.outcome, first.outcome, eps=0)
    assert second.reports == first.reports
    torch._dynamo.reset()
    model, inputs = load(program.text)
    again = torch.compile(model, backend="flashmhf", options=OPTIONS)
    with quiet():
        check_equal(outcome(again, model, inputs), first.outcome, eps=0)
        check_equal(outcome(again, model, inputs), first.outcome, eps=0)


@FEW
@given(programs())
def test_a_compiled_model_is_still_a_module(program: Program) -> None:
    """It can be copied, pickled, loaded and switched between calls."""
    torch._dynamo.reset()
    model, inputs = load(program.text)
    names = list(model.state_dict())
    with quiet():
        plain = outcome(model, model, inputs)
        model.compile(backend="flashmhf", options=OPTIONS)
        for train in (True, False, True):
            model.train(train)
            check_equal(outcome(model, model, inputs), plain, rounding(program))
        assert list(model.state_dict()) == names
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        fresh, _ = load(program.text)
        nn.init.zeros_(next(fresh.parameters()))
        fresh.load_state_dict(model.state_dict())
        for other in (*copies, fresh):
            compile_again = torch.compile(other, backend="flashmhf", options=OPTIONS)
            check_equal(outcome(compile_again, other, inputs), plain, rounding(program))


@BOUNDED
@given(programs())
def test_proof_and_floats_agree(program: Program) -> None:
    """What is proved is what is found without a proof; and both compute what eager does."""
    proved = run(program, **{"flashmhf.prove": "always"})
    unproved = run(program, **{"flashmhf.prove": "never"})
    check_equal(proved.outcome, proved.eager, rounding(program))
    check_equal(unproved.outcome, proved.outcome, eps=0)
    both = [[rewrite for report in of.reports for rewrite in report.rewrites] for of in (proved, unproved)]
    assert [replace(r, proof="") for r in both[0]] == [replace(r, proof="") for r in both[1]]
    assert all(rewrite.proof.startswith("exact") for rewrite in both[0])
    assert all(rewrite.proof == "not proved" for rewrite in both[1])


@pytest.mark.parametrize(("inner", "examples"), [("aot_eager", 8), ("inductor", 2)])
def test_with_other_inner_compilers(inner: str, examples: int) -> None:
    @settings(BOUNDED, max_examples=examples, phases=[Phase.generate])
    @given(programs())
    def check(program: Program) -> None:
        found = run(program, **{"flashmhf.inner": inner})
        check_equal(found.outcome, found.eager, rounding(program))
        assert found.calls >= program.layers

    check()


# -- sizes --------------------------------------------------------------------------------------------------

SHAPES = ((2, 5), (3, 7), (4, 6))


def guards_over(model: nn.Module, x: torch.Tensor, backend: Any, eps: float) -> list[list[str]]:
    """The guards of each graph that is compiled for a sequence of shapes, with batch and length marked."""
    torch._dynamo.reset()
    run_compiled = torch.compile(model, backend=backend)
    for batch, length in SHAPES:
        inputs = (x.detach()[:1, :1].repeat(batch, length, 1).requires_grad_(),)
        for dim in range(2):
            torch._dynamo.mark_dynamic(inputs[0], dim)
        check_equal(outcome(run_compiled, model, inputs), outcome(model, model, inputs), eps)
    names = re.compile(r"(?<=__builtins_dict___)\d+|_\d+_c\d+")  # of objects, in the order of compiles
    return [
        [names.sub("N", line.split("#")[0]) for line in str(entry.guard_manager).splitlines()]
        for entry in _debug_get_cache_entry_list(type(model).forward.__code__)
    ]


@FEW
@given(programs())
def test_sizes_cost_no_guard_and_no_compile(program: Program) -> None:
    def ours(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return flashmhf(module, inputs, options=OPTIONS)

    def eager(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return module.forward

    model, (x,) = load(program.text)
    eps = rounding(program)
    with quiet():
        assert guards_over(model, x, ours, eps) == guards_over(model, x, eager, eps)


# -- mutants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutant_is_never_wrong(kind: str) -> None:
    """It is rewritten where it is still the formula; in any case it computes what it did."""

    @FEW
    @given(mutants([mutant for mutant in MUTANTS if mutant.kind == kind]))
    def check(program: Program) -> None:
        found = run(program)
        check_equal(found.outcome, found.eager, rounding(program))
        # What is checkpointed runs again in the backward, if there is one.
        again = program.writing.mode == "checkpoint" and found.outcome.gradients
        assert found.calls == found.rewrites * (2 if again else 1), found.shown

    check()


@settings(BOUNDED, max_examples=24)
@given(mutants())
def test_a_graph_without_a_rewrite_is_as_it_came(program: Program) -> None:
    """Node for node; so it is in programs that have right feed-forwards beside."""
    torch._dynamo.reset()
    ours, _ = parse(OPTIONS)

    def check(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        before = described(module)
        report = analyse(module, ours)
        if report.rewrites:
            assert described(module) != before
        else:
            assert described(module) == before
            COUNTS["graphs left as they were"] += 1
        return module.forward

    model, inputs = load(program.text)
    with quiet():
        torch.compile(model, backend=check)(*inputs)


def described(module: fx.GraphModule) -> list[tuple[object, ...]]:
    """All nodes of a graph and of the graphs in it."""
    nodes = [
        (n, n.op, n.name, n.target, str(n.args), str(n.kwargs), tuple(n.users)) for n in module.graph.nodes
    ]
    inner = [child for child in module.children() if isinstance(child, fx.GraphModule)]
    return [*nodes, *(node for child in inner for node in described(child))]


@FEW
@given(programs(spec={"networks": 2, "routed": True}, routing=ROUTED_VALUES, verb_down="einsum"))
def test_r_on_the_values_is_left_alone(program: Program) -> None:
    """Values are then another for each token, for which the other weights would be repeated."""
    found = run(program)
    check_equal(found.outcome, found.eager, rounding(program))
    assert found.calls == found.rewrites == 0
    assert found.reasons
    for reason in found.reasons:
        assert "entries for each token" in reason, found.shown


# -- programs that were kept --------------------------------------------------------------------------------

KEPT = sorted(Path(__file__).parent.glob("regressions/*.py"))


def kept(path: Path) -> Any:
    """A program that is kept as a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_is_kept_is_never_wrong(path: Path) -> None:
    found = compiled(path.read_text())
    check_equal(found.outcome, found.eager)
    assert found.calls == found.rewrites, found.shown


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_is_kept_is_as_many_calls_as_it_says(path: Path, request: pytest.FixtureRequest) -> None:
    """A program with a GAP is a right one that is not found as it should be."""
    program = kept(path)
    if gap := getattr(program, "GAP", ""):
        request.applymarker(pytest.mark.xfail(reason=gap, strict=True))
    found = compiled(path.read_text())
    assert found.calls == program.CALLS, found.shown
