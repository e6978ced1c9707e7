"""The proof shares nothing with the reader: what is wrong in a helper of the reader, it refuses.

Each fault is planted in the one place where the source has the helper. Without a proof, all of these rewrite
the program to something else; with it, none does.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

import mhf_compile
from mhf_compile.reading import rules
from mhf_compile.report.report import Report
from mhf_compile.rewriting import field, proof, replay
from mhf_compile.tape.recorder import record_function
from tests.faults.stages import captured
from tests.planting import Edit, planted
from tests.rewriting.planted import (
    FAULTS,
    GELU,
    MISSES,
    PARTLY,
    SLICE,
    Fault,
    N,
    Program,
    down,
    score,
    tensors,
    with_activation,
)


@cache
def graph(program: Program) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of a program, and its inputs."""
    return captured(program, tensors())


def run(program: Program, policy: str) -> tuple[Tensor, Report]:
    """What a program gives whose graph is rewritten with a policy of proofs, and the report of it."""
    module, inputs = graph(program)
    rewritten, report = mhf_compile.rewrite(module, inputs, prove=policy)
    (result,) = rewritten(*(tensor.clone() for tensor in inputs))
    return result, report


def error(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max()) if result.shape == expected.shape else math.inf


ROUNDING = 1e-4
"""Far above that of the programs, whose values are of size 100 at most."""


def reports_with_proofs(fault: Fault, caplog: pytest.LogCaptureFixture) -> list[Report]:
    """What is said of a program that a fault makes wrong, but for proofs: on all tokens, and on few.

    It is right then, and the log says that a proof failed.
    """
    expected = fault.program(*tensors())
    reports = []
    with planted((fault.edit,)):
        result, report = run(fault.program, "never")
        assert report.rewrites and error(result, expected) > 10 * ROUNDING
        for budget in (proof.BUDGET, 0):
            caplog.clear()
            with mock.patch.object(proof, "BUDGET", budget):
                result, report = run(fault.program, "always")
            assert error(result, expected) < ROUNDING
            assert "the proof failed" in caplog.text
            reports.append(report)
    return reports


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_of_the_reader_is_never_rewritten(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    for report in reports_with_proofs(fault, caplog):
        assert report.rewrites == ()
        assert any("the proof failed" in miss.reason for miss in report.misses)


@pytest.mark.parametrize("fault", PARTLY, ids=str)
def test_what_is_rewritten_beside_a_fault_is_right(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    assert all(report.rewrites for report in reports_with_proofs(fault, caplog))


@pytest.mark.parametrize("fault", MISSES, ids=str)
def test_a_fault_that_does_no_harm_is_a_miss(fault: Fault) -> None:
    expected = fault.program(*tensors())
    with planted((fault.edit,)):
        result, report = run(fault.program, "never")
    assert report.rewrites == () and report.misses
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("fault", "least"), [(SLICE, 10.0), (GELU, 1e-3)], ids=["a slice", "gelu"])
def test_the_demonstrations_are_refused_by_the_proof_and_nothing_else(
    fault: Fault, least: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The errors are of the size of the values, and of that of the approximation."""
    expected = fault.program(*tensors())
    with planted((fault.edit,)):
        result, report = run(fault.program, "never")
        assert len(report.rewrites) == 1 and error(result, expected) > least
        caplog.clear()
        result, report = run(fault.program, "always")
    assert report.rewrites == ()
    (miss,) = report.misses
    assert "the proof failed" in miss.reason and "the proof failed" in caplog.text
    assert torch.equal(result, expected)


def test_the_proof_alone_tells_a_function_from_one_that_it_is_nearly() -> None:
    """A difference of two relus is a relu of all that the programs have, but not of larger numbers."""
    program = with_activation(lambda x: torch.relu(x) - torch.relu(x - 100))
    nearly = Edit(
        "reading.expression:identify",
        "    content, expression =",
        '    return Known("relu")\n    content, expression =',
    )
    expected = program(*tensors())
    with planted((nearly,)):
        result, report = run(program, "never")
        assert len(report.rewrites) == 1 and error(result, expected) < ROUNDING
        result, report = run(program, "always")
    assert report.rewrites == () and "the proof failed" in report.misses[0].reason


# -- gradients ----------------------------------------------------------------------------------------------


def detached(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(F.silu(score(q, k).detach()) * score(q, u), v)


def followed_once(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    followed = torch.sin(q)
    with torch.no_grad():
        other = torch.sin(q)
    return down(F.silu(score(followed, k)) * score(other, u), v)


BARRIERS = {
    "a detach is read through": (
        detached,
        Edit("reading.reader:_stops_gradient", "return grad or", "return False and"),
    ),
    "what autograd does not follow is what it does": (
        followed_once,
        Edit("reading.numbering:ValueNumbering.__init__", ", value.requires_grad\n", "\n"),
    ),
}


@pytest.mark.parametrize("name", BARRIERS)
def test_the_proof_refuses_what_has_other_gradients(name: str) -> None:
    program, edit = BARRIERS[name]

    def gradient(function: Callable[..., Tensor]) -> Tensor:
        q, *weights = (tensor.requires_grad_() for tensor in tensors())
        (found,) = torch.autograd.grad(function(q, *weights).sum(), q)
        return found

    def compiled(policy: str) -> Callable[..., Tensor]:
        torch._dynamo.reset()
        options = {"flashmhf.inner": "eager", "flashmhf.prove": policy}
        function: Callable[..., Tensor] = torch.compile(program, backend="flashmhf", options=options)
        return function

    expected = gradient(program)
    with planted((edit,)):
        assert error(gradient(compiled("never")), expected) > 10 * ROUNDING
        assert error(gradient(compiled("always")), expected) < ROUNDING
        (report,) = mhf_compile.last_reports()
    assert report.rewrites == ()
    assert any("the proof failed" in miss.reason for miss in report.misses)


# -- what the proof is made of ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [field, replay, proof])
def test_the_proof_imports_nothing_of_the_reader(module: Any) -> None:
    data = {"Match", "Refusal", "NO_ZEROS"}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        assert "reading" not in source and not any("reading" in name for name in names)
        assert "matching" not in source or set(names) <= data


# -- what is written in the replay, against PyTorch ---------------------------------------------------------


def small(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).double()


CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "view": (lambda x: x.view(3, 4), (small(2, 6),)),
    "unsqueeze": (lambda x: x.unsqueeze(1).squeeze(1), (small(2, 6),)),
    "expand": (lambda x: x.expand(5, 2, 6) + 0, (small(2, 6),)),
    "repeat": (lambda x: x.repeat(2, 1, 3), (small(2, 6),)),
    "slices": (lambda x: x[1:, ::2] + x[:-1].chunk(2, 1)[1] * x.select(0, 1)[3:], (small(2, 6),)),
    "unbind": (
        lambda x: torch.stack([a - b for a, b in zip(x.unbind(1), x.split([1, 1]), strict=False)]),
        (small(2, 2),),
    ),
    "cat": (lambda x, y: torch.cat([x, y], -1).t(), (small(2, 6), small(2, 3))),
    "alpha": (lambda x, y: torch.rsub(torch.sub(x, y, alpha=3), 2, alpha=4), (small(2, 6), small(6))),
    "neg": (lambda x: -x * 3, (small(2, 6),)),
    "div": (lambda x: x / 0.25, (small(2, 6),)),
    "pow": (lambda x: x**3 + x.square(), (small(2, 6),)),
    "addcmul": (lambda x, y: torch.addcmul(x, y, y + 1, value=-2), (small(2, 6), small(6))),
    "mm": (lambda x, y: x @ y.t(), (small(2, 6), small(3, 6))),
    "mv": (lambda x, y: (x @ y).dot(x @ y), (small(2, 6), small(6))),
    "bmm": (torch.bmm, (small(2, 3, 4), small(2, 4, 5))),
    "addmm": (
        lambda b, x, y: torch.addmm(b, x, y.t(), beta=2, alpha=-3),
        (small(3), small(2, 6), small(3, 6)),
    ),
    "baddbmm": (
        lambda b, x, y: torch.baddbmm(b, x, y, beta=-1, alpha=5),
        (small(5), small(2, 3, 4), small(2, 4, 5)),
    ),
    "an overwritten bias": (
        lambda x, y: torch.addmm(torch.empty(2, 3, dtype=torch.float64), x, y.t(), beta=0, alpha=2),
        (small(2, 6), small(3, 6)),
    ),
    "convolution": (lambda x, w, b: F.conv1d(x, w, b, groups=2), (small(2, 4, 3), small(6, 2, 1), small(6))),
    "sum": (lambda x: x.sum(1, keepdim=True) * x.sum(), (small(2, 6),)),
    "mean": (lambda x: x.mean((0, 2)) * 12, (small(2, 3, 6),)),
    "constants": (
        lambda x: x + torch.ones_like(x) + torch.full((6,), 3.0) - torch.zeros(2, 6),
        (small(2, 6),),
    ),
    "half": (lambda x: x * 8 * torch.full((6,), 0.125, dtype=torch.float16).double(), (small(2, 6),)),
    "copy": (lambda x: torch.empty(2, 6, dtype=torch.float64).copy_(x[0]).mul_(3).add_(x), (small(2, 6),)),
    "write": (lambda x: _written(x.clone()), (small(4, 6),)),
}


def _written(x: Tensor) -> Tensor:
    x.t()[1:3, ::2].fill_(7)
    x.view(2, 12)[1].mul_(2)
    x.select(0, 3).add_(x[0])
    return x


@pytest.mark.parametrize("name", CALLS)
def test_the_replay_computes_what_pytorch_does(name: str) -> None:
    program, given = CALLS[name]
    tape, inputs, result = record_function(program, *(tuple(tensor.shape) for tensor in given))
    known = {v: tensor % field.PRIME for v, tensor in zip(inputs, given, strict=True) if v is not None}
    unwritten = (v for v in tape.values if v.op is not None and "empty" in v.op.name)
    known |= {v: small(*map(int, v.shape)) % field.PRIME for v in unwritten}
    run = replay.Replay(lambda value: tuple(map(int, value.shape)), int, known)
    run.run(value for value in tape.values if value.op is not None)
    assert torch.equal(run.tensors[result], program(*given) % field.PRIME)


def test_every_operation_that_has_a_rule_can_be_replayed() -> None:
    named = (
        replay.MOVES
        | replay.RESHAPES
        | replay.ARITHMETIC
        | replay.PIECES
        | replay.CONSTANTS
        | replay.PRODUCTS
    )
    source = inspect.getsource(replay.Replay._run)
    for name in rules.RULES.keys() - named:
        tagged = any(
            torch.Tag.pointwise in getattr(getattr(torch.ops.aten, name), overload).tags
            for overload in getattr(torch.ops.aten, name).overloads()
        )
        assert f'"{name}"' in source or tagged or name in replay.UNTAGGED, name


# -- two values are the same --------------------------------------------------------------------------------


def test_values_are_alike_by_the_calls_that_made_them() -> None:
    def program(x: Tensor, y: Tensor) -> Tensor:
        one, other, third = F.silu(x @ y).t(), F.silu(x @ y).t(), F.silu(x @ x).t()
        noise = torch.rand(N, N), torch.rand(N, N), torch.empty(N, N), torch.empty(N, N)
        return torch.stack(
            [one, other, third, one.unbind(0)[0].expand(N, N), *noise, other * 2, one * 2, one * 3]
        )

    _, _, result = record_function(program, (N, N), (N, N))
    assert result.op is not None
    one, other, third, row, *noise, twice, double, triple = result.op.args[0]
    assert replay.computed_alike(one, other) and replay.computed_alike(twice, double)
    different = [(one, third), (one, row), noise[:2], noise[2:], (double, triple)]
    assert not any(replay.computed_alike(a, b) for a, b in different)


def test_functions_of_other_parameters_are_other_functions() -> None:
    """Also where the parameters have the same letters."""
    tables = [field.table("leaky_relu", slope) for slope in (0.12, 0.21, 0.01)]
    tables += [field.table("elu", alpha, 1, 1) for alpha in (1, 2)]
    for number, one in enumerate(tables):
        for other in tables[:number]:
            assert int((one == other).sum()) < 20
