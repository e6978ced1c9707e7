"""What tests of matching share: shapes and tensors, some feed-forwards, and what one rewrite must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch.nn.functional import linear, relu, silu

import mhf_compile
from mhf_compile.matching.match import Match, Unmatched
from mhf_compile.matching.search import find
from mhf_compile.tape.recorder import record
from tests.comparison import compare

B, T, H, E, F, D = 2, 5, 3, 4, 6, 7
GROUP = 2

Program = Callable[..., Tensor]

SHAPES = {
    "x": (B, T, H * D),
    "q": (B, T, H, D),
    "q_wide": (B, T, GROUP * H, D),
    "k": (H, E, F, D),
    "u": (H, E, F, D),
    "v": (H, E, F, D),
    "r": (B, T, H, E),
    "k1": (H, F, D),
    "u1": (H, F, D),
    "v1": (H, F, D),
    "pair": (H, 2 * F, D),
    "triple": (H, 3 * F, D),
    "stacked": (3, H, F, D),
    "per_head": (H, E),
    "per_subnetwork": (E,),
    "up_last": (H, D, F),
    "rows": (H * F, D),
    "wide": (H, F),
    "per_head_out": (H, D),
    "mixed": (H, D, D),
    "heads": (2 * H, F, D),
    "route": (E, D),
    "flat": (3 * H * F * D,),
    "groups": (H * E * F, D),
}


def tensors(names: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(SHAPES[name], generator=generator, dtype=torch.float64) / 2).requires_grad_()
        for name in names.split()
    ]


def searched(program: Program, *given: Tensor) -> list[Match | Unmatched]:
    """What the search finds in a program."""
    results: list[Match | Unmatched] = []

    def collect(module: fx.GraphModule, inputs: object) -> fx.GraphModule:
        results.extend(find(record(module)))
        return module

    torch._dynamo.reset()
    torch.compile(program, backend=collect)(*given)
    return results


def check(program: Program, arguments: Sequence[Tensor]) -> mhf_compile.Rewrite:
    """One rewrite, proved on all tokens, and results and gradients equal up to the order of sums."""
    (rewrite,) = check_all(program, arguments, 1)
    assert rewrite.proof == "exact"
    return rewrite


def check_all(program: Program, arguments: Sequence[Tensor], count: int) -> tuple[mhf_compile.Rewrite, ...]:
    """So many rewrites and no miss, and results and gradients equal up to the order of sums."""
    found = compare(program, arguments, options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert (len(report.rewrites), report.misses, found.calls) == (count, (), count), str(report)
    found.check_error()
    return report.rewrites


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,hfd->bthf", q, k)


def gated(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", silu(scores(q, k)) * scores(q, u), v)


def full(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, v)


def scores_of(q, k, u):
    return (torch.einsum("bthd,hefd->bthef", q, weight) for weight in (k, u))


def one_head(q, k, u, v):
    return (silu(linear(q, k)) * linear(q, u)) @ v


def ungated(q, k1, v1):
    return torch.einsum("bthf,hfo->btho", relu(scores(q, k1)), v1)
