"""The proof shares nothing with the reader: what is wrong in a helper of the reader, it refuses.

Each fault is planted in the one place where the source has the helper. Without a proof, many of these rewrite
the program to something else; with it, none does.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mhf_compile
from mhf_compile.matching import normal_form, unify
from mhf_compile.notation import Index, Leaf, Term
from mhf_compile.notation import fold as folding
from mhf_compile.reading import activations, expression, rules
from mhf_compile.rewriting import field, proof, replay
from mhf_compile.tape.recorder import record_function

N = 3  # every size is this one, so that nothing but a value can be wrong


def gated(q: Tensor, k: Tensor, u: Tensor, v: Tensor, act: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    hidden = act(torch.einsum("bthd,hfd->bthf", q, k)) * torch.einsum("bthd,hfd->bthf", q, u)
    return torch.einsum("bthf,hfo->btho", hidden, v)


def parts(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    wide = torch.cat([k, u, v], 1)
    return gated(q, wide[:, 1 : 1 + N], u, v)


def gelu(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return gated(q, k, u, v, F.gelu)


def permuted(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (F.silu(q @ k.permute(0, 2, 1)) * (q @ u)) @ v


def filled(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return gated(q, k, u * torch.full((N, 1, 1), 3.0), v)


def scaled(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return 3 * gated(q, k, u, v, lambda x: F.silu(0.5 * x))


def summed(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    hidden = F.silu(torch.einsum("bthd,hfd->bthf", q, k)) * torch.einsum("bthd,hfd->bthf", q, u)
    return (hidden.unsqueeze(-1) * v).sum(-2)


def heads(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    own = [F.silu(q[:, :, h] @ k[h].t()) * (q[:, :, h] @ u[h].t()) @ v[h] for h in range(N)]
    return torch.stack(own, 2)


def clamped(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return gated(q, k, u, v, lambda x: torch.relu(x) - torch.relu(x - 1))


def two_inputs(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    one, other = q.unbind(0)[:2]
    gate, up = torch.einsum("thd,hfd->thf", one, k), torch.einsum("thd,hfd->thf", other, u)
    return torch.einsum("thf,hfo->tho", F.silu(gate) * up, v)


@dataclass(frozen=True)
class Fault:
    """A helper, what stands in its place, and a program that it makes wrong."""

    holder: Any
    name: str
    wrong: Callable[[Callable[..., Any]], Callable[..., Any]]
    program: Callable[..., Tensor]

    def __str__(self) -> str:
        return f"{self.name} for {self.program.__name__}"


def start_one_off(right: Callable[..., Any]) -> Callable[..., Any]:
    def slicing(*args: Any) -> Any:
        source, dim, start, step, kept = right(*args)
        return source, dim, start + 1, step, kept

    return slicing


def gelu_is_its_approximation(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda op: "gelu_tanh" if op.name == "gelu" else right(op)


def last_two_swapped(right: Callable[..., Any]) -> Callable[..., Any]:
    def permutation(op: Any) -> list[int]:
        return list(range(op.args[0].rank)) if op.name == "permute" else right(op)

    return permutation


def doubled(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: 2 * right(*args)


def inverted(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda number: 1 / right(number) if right(number) else right(number)


def first_dim(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda dim, rank: 0 if dim == rank - 2 or dim == -2 else right(dim, rank)


def last_entry_backwards(right: Callable[..., Any]) -> Callable[..., Any]:
    def entry(value: Any, index: tuple[Index, ...]) -> Leaf:
        leaf: Leaf = right(value, index)
        if value.rank < 3:
            return leaf
        first, second, *others = leaf.index
        return Leaf(value, (second, first, *others))

    return entry


def reversed_parts(right: Callable[..., Any]) -> Callable[..., Any]:
    def progression(group: list[tuple[Term, list[object]]]) -> Term:
        constants = [constants for _, constants in group]
        return right([(term, own) for (term, _), own in zip(group, constants[::-1], strict=True)])  # type: ignore[no-any-return]

    return progression


def coefficient_dropped(right: Callable[..., Any]) -> Callable[..., Any]:
    def dropped(term: Term) -> Term:
        found: Term = right(term)
        return Term(Fraction(1), found.factors, found.bound)

    return dropped


def always_relu(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda known: expression.Known("relu") if "relu" in expression.functions(known) else right(known)


def any_two(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: True


FAULTS = [
    Fault(rules, "slicing", start_one_off, parts),
    Fault(rules, "function_name", gelu_is_its_approximation, gelu),
    Fault(rules, "permutation", last_two_swapped, permuted),
    Fault(rules, "filling", doubled, filled),
    Fault(rules, "scalar", inverted, scaled),
    Fault(rules, "_dim", first_dim, summed),
    Fault(rules, "_entry", last_entry_backwards, summed),
    Fault(normal_form, "_counted", coefficient_dropped, scaled),
    Fault(normal_form, "_hoisted", coefficient_dropped, scaled),
    Fault(folding, "_progression", reversed_parts, heads),
    Fault(activations, "identify", always_relu, clamped),
    Fault(unify, "_same_tensor", any_two, two_inputs),
]


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(N, N, N, N), *[(N, N, N)] * 3]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def run(program: Callable[..., Tensor], policy: str) -> Tensor:
    torch._dynamo.reset()
    expression.identify.cache_clear()
    options = {"flashmhf.inner": "eager", "flashmhf.prove": policy}
    result: Tensor = torch.compile(program, backend="flashmhf", options=options)(*tensors())
    return result


@pytest.mark.parametrize("budget", [proof.BUDGET, 0], ids=["all_tokens", "few_tokens"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_of_the_reader_is_never_rewritten(
    fault: Fault, budget: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fault.program(*tensors())
    with (
        mock.patch.object(fault.holder, fault.name, fault.wrong(getattr(fault.holder, fault.name))),
        mock.patch.object(proof, "BUDGET", budget),
    ):
        run(fault.program, "never")
        wrong = bool(mhf_compile.last_reports()[0].rewrites)
        caplog.clear()
        torch.testing.assert_close(run(fault.program, "always"), expected)
        (report,) = mhf_compile.last_reports()
    assert report.rewrites == ()
    if wrong:
        assert any("the proof failed" in miss.reason for miss in report.misses)
        assert "the proof failed" in caplog.text


def test_the_demonstrations_are_refused_by_the_proof_and_nothing_else() -> None:
    for fault in FAULTS[:2]:
        expected = fault.program(*tensors())
        with mock.patch.object(fault.holder, fault.name, fault.wrong(getattr(fault.holder, fault.name))):
            result = run(fault.program, "never")
            assert len(mhf_compile.last_reports()[0].rewrites) == 1
            assert not torch.allclose(result, expected, rtol=0, atol=1e-5)


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
