"""Programs, and their matches with the regions of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mhf_compile.matching.match import Match
from mhf_compile.matching.search import find
from mhf_compile.rewriting.region import Region
from mhf_compile.tape.recorder import record


def matches(program: Callable[..., Tensor], *tensors: Tensor, **options: Any) -> list[tuple[Match, Region]]:
    """The matches of a program with their regions."""
    found: list[tuple[Match, Region]] = []

    def backend(module: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        tape = record(module)
        found.extend((match, Region(tape, match)) for match in find(tape) if isinstance(match, Match))
        return module

    torch._dynamo.reset()
    torch.compile(program, backend=backend, **options)(*tensors)
    return found


N = 3  # every head, sub-network and width is of this size here, so that nothing but a value can be wrong


def gated(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    hidden = silu(torch.einsum("bthd,hfd->bthf", q, k)) * torch.einsum("bthd,hfd->bthf", q, u)
    return torch.einsum("bthf,hfo->btho", hidden, v)


def biased(q: Tensor, k: Tensor, u: Tensor, v: Tensor, times: int) -> Tensor:
    gate = torch.add(torch.einsum("bthd,hfd->bthf", q, k), v[:, :, 0], alpha=times)
    return torch.einsum("bthf,hfo->btho", silu(gate) * torch.einsum("bthd,hfd->bthf", q, u), v)


def layers(q: Tensor, *weights: Tensor) -> Tensor:
    for layer in range(len(weights) // 3):
        q = q + gated(q, *weights[3 * layer : 3 * layer + 3])
    return q
