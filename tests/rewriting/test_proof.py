"""The proof: it proves what is right, each structure once, and refuses another activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.rewriting import proof as prove
from tests.programs import BY_NAME, SPELLINGS, Spelling
from tests.rewriting.programs import layers, matches


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_right_matches_are_proved(spelling: Spelling) -> None:
    ((match, _),) = matches(spelling.program, *spelling.tensors())
    assert prove.prove(match) == "exact"
    with mock.patch.object(prove, "BUDGET", 0):
        assert prove.prove(match) == "exact, 8 tokens"


def test_a_large_token_count_is_proved_on_few() -> None:
    q, weight = torch.randn(2, 16384, 4, 64), torch.randn(2, 64, 64)
    ((match, _),) = matches(BY_NAME["grouped"].program, q, weight, weight + 1, weight + 2)
    assert prove.prove(match) == "exact, 8 tokens"


def test_products_that_are_added_up_are_work_too() -> None:
    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        gate, up = ((q[:, :, None] * weight).sum(-1) for weight in (k, u))
        return ((silu(gate) * up)[:, :, None] * v).sum(-1)

    weights = [torch.empty(64, 32, device="meta") for _ in range(3)]
    for length, proof in ((1024, "exact"), (16384, "exact, 8 tokens")):
        q = torch.empty(2, length, 32, device="meta")
        ((match, _),) = matches(program, q, *weights[:2], weights[2].mT)
        assert prove.prove(match) == proof


def test_symbolic_sizes_are_proved_on_few_tokens() -> None:
    spelling = BY_NAME["loop"]
    x, *weights = spelling.tensors()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    ((match, _),) = matches(spelling.program, x, *weights)
    assert prove.prove(match) == "exact, 8 tokens"


def hidden(x: Tensor, k: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return silu(torch.einsum("...hd,hfd->...hf", x, k)), torch.einsum("...hd,hfd->...hf", x, u)


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("...hf,hfo->...ho", hidden, v)


def each_of_a_batch(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([down(torch.mul(*hidden(entry, k, u)), v) for entry in x])


def batch_put_together_and_taken_apart(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return each_of_a_batch(torch.stack([*x]), k, u, v)


def halves_of_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x.flatten(0, 1), k, u)
    return down(torch.cat(gate.split(24)) * up, v)


def pieces_of_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x.flatten(0, 1), k, u)
    return down(torch.cat(gate.split([3, 45])) * up, v).view(4, 12, 3, 8)


def pieces_of_a_batch_and_its_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x, k, u)
    return down(torch.cat(gate.flatten(0, 1).split([3, 45])).view(up.shape) * up, v)


def heads_moved_before_they_are_joined(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x, k, u)
    return down(torch.cat([head.unsqueeze(2) for head in gate.unbind(2)], 2) * up, v)


def heads_of_flat_tokens(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate, up = hidden(x, k, u)
    pieces = [piece.flatten(0, 1) for piece in gate.split([1, 2], 2)]
    return down(torch.cat(pieces, 1).view(up.shape) * up, v)


@pytest.mark.parametrize(
    ("program", "tokens"),
    [
        (heads_moved_before_they_are_joined, 8),
        (heads_of_flat_tokens, 8),
        (each_of_a_batch, 16),
        (batch_put_together_and_taken_apart, 16),
        (halves_of_tokens, 48),
        (pieces_of_tokens, 48),
        (pieces_of_a_batch_and_its_tokens, 48),
    ],
)
def test_tokens_whose_numbers_are_in_the_program_are_not_left_out(
    program: Callable[..., Tensor], tokens: int
) -> None:
    weights = (torch.randn(3, 7, 6), torch.randn(3, 7, 6), torch.randn(3, 7, 8))
    ((match, _),) = matches(program, torch.randn(4, 12, 3, 6), *weights)
    with mock.patch.object(prove, "BUDGET", 0):
        assert prove.prove(match) == f"exact, {tokens} tokens"


ROOT = math.sqrt(2 / math.pi)

PARTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "silu by exp": ("silu", lambda x: x / (1 + torch.exp(-x))),
    "silu by tanh": ("silu", lambda x: 0.5 * x * (1 + torch.tanh(0.5 * x))),
    "quick gelu": ("silu", lambda x: x * torch.sigmoid(1.702 * x)),
    "sigmoid by exp": ("sigmoid", lambda x: 1 / (1 + torch.exp(-x))),
    "gelu by erf": ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu by erfc": ("gelu", lambda x: 0.5 * x * torch.erfc(-x * math.sqrt(0.5))),
    "tanh gelu": ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3)))),
    "tanh gelu by sigmoid": ("gelu_tanh", lambda x: x * torch.sigmoid(2 * ROOT * (x + 0.044715 * x**3))),
    "x * relu(x)": ("relu_squared", lambda x: x * torch.relu(x)),
    "relu": ("relu", torch.relu),
    "none": ("identity", lambda x: x),
}


@pytest.mark.parametrize("gate", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("name", PARTS)
def test_activations_made_of_parts_are_proved_and_none_stands_for_another(name: str, gate: bool) -> None:
    activation, function = PARTS[name]

    def program(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
        hidden = function(torch.einsum("bthd,hfd->bthf", q, k))
        hidden = hidden * torch.einsum("bthd,hfd->bthf", q, u) if gate else hidden
        return torch.einsum("bthf,hfo->btho", hidden, v)

    found = matches(program, torch.randn(2, 5, 3, 4), *(torch.randn(3, 7, 4) for _ in range(3)))
    if activation == "identity" and not gate:
        assert found == []
        return
    ((match, _),) = found
    assert match.unification.activation == activation
    assert prove.prove(match) == "exact"
    for other in match.pattern.activations - {activation}:
        wrong = replace(match, unification=replace(match.unification, activation=other))
        with pytest.raises(NoMatch, match="the proof failed"):
            prove.prove(wrong)


@pytest.mark.parametrize(
    ("policy", "proofs", "said"), [("auto", 2, "exact"), ("always", 4, "exact"), ("never", 0, "not proved")]
)
def test_policies(policy: str, proofs: int, said: str) -> None:
    """Four layers, the last of another width: two distinct regions."""
    sizes = [5, 5, 5, 6]
    weights = [torch.randn(2, size, 4) for size in sizes for _ in range(3)]
    torch._dynamo.reset()
    options = {"flashmhf.inner": "eager", "flashmhf.strict": True, "flashmhf.prove": policy}
    with mock.patch.object(prove, "prove", wraps=prove.prove) as counted:
        torch.compile(layers, backend="flashmhf", options=options)(torch.randn(2, 3, 2, 4), *weights)
    assert counted.call_count == proofs
    (report,) = mhf_compile.last_reports()
    assert [rewrite.proof for rewrite in report.rewrites] == [said] * 4
