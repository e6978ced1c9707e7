"""A program of each kind that is read, as people write it, against itself without the backend.

Both run op by op, so that what is compared is the fused call and what it takes the place of. Times are
measured in rounds, the two after each other in each, the other one first every second time. A program that
the model of costs refuses is the same in both.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, einsum
from torch.nn.functional import gelu, linear, silu

import mhf_compile
from benchmarks.results import Spread, at_most, number_table, ratio
from benchmarks.settings import Settings
from mhf_compile.commands.measure import progress

EXPERTS = 8
WIDEST = 256
"""Channels of the input, at most; the width of an expert is twice that."""
BOUND = 1.1
"""Times eager's, at most, that a program may take."""


@dataclass(frozen=True)
class Program:
    """A function and its tensors, of which the first is the input."""

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]


def programs(tokens: int, d: int, dtype: torch.dtype) -> dict[str, Program]:
    """A program of each kind, of so many tokens of d channels."""
    e, f, h = EXPERTS, 2 * d, d // EXPERTS  # h: channels of a head

    def w(*shape: int) -> Tensor:
        made: Tensor = torch.randn(shape, dtype=dtype) * shape[-2 if len(shape) > 1 else -1] ** -0.5
        return made

    x, k, u, v = w(tokens, d), w(e, d, f), w(e, d, f), w(e, f, d)
    headed = w(e, h, 2 * h), w(e, h, 2 * h)
    return {
        "experts of groups of tokens": Program(
            lambda x, k, u, v: ((silu(x.view(e, -1, d) @ k) * (x.view(e, -1, d) @ u)) @ v).view_as(x),
            (x, k, u, v),
        ),
        "Llama4's experts, flat": Program(_llama4, (w(tokens, d).repeat(e, 1), w(e, d, 2 * f), v)),
        "Llama4's experts, 3-D": Program(
            lambda x, both, v: _llama4(x.repeat(e, 1, 1).view(-1, d), both, v),
            (w(1, tokens, d), w(e, d, 2 * f), v),
        ),
        "a bank of one input": Program(lambda x, k, u, v: (silu(x @ k) * (x @ u)) @ v, (x, k, u, v)),
        "experts with biases, weighted": Program(
            lambda x, k, v, b, r: einsum("eno,ne->no", gelu(x @ k) @ v + b[:, None], r),
            (x, k, v, w(e, d), torch.rand(tokens, e, dtype=dtype)),
        ),
        "factors of channels": Program(
            lambda x, k, u, v, s: einsum("enf,efo->no", silu(x @ k) * (x @ u) * s[:, None], v),
            (x, k, u, v, w(e, f)),
        ),
        "heads with one result": Program(
            lambda x, k, u, v: einsum(
                "hnf,hfo->no",
                silu(x.view(tokens, e, h).transpose(0, 1) @ k) * (x.view(tokens, e, h).transpose(0, 1) @ u),
                v,
            ),
            (x, *headed, w(e, 2 * h, d)),
        ),
        "a part of a wider product": Program(_parallel, (x, w(f + f + 2 * d, d), v[0])),
        "a number added to up": Program(
            lambda x, k, u, v: einsum("enf,efo->no", silu(1.702 * (x @ k)) * (x @ u + 1), v), (x, k, u, v)
        ),
        "low rank": Program(
            lambda x, k, a, b, u, v: (silu(x @ k + (x @ a) @ b) * (x @ u)) @ v,
            (x, k[0], w(d, 8), w(8, f), u[0], v[0]),
        ),
    }


def _llama4(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    groups = x.view(gate_up.shape[0], -1, x.shape[-1])
    gate, up = torch.bmm(groups, gate_up).chunk(2, dim=-1)
    result: Tensor = torch.bmm(up * silu(gate), down).view(-1, x.shape[-1])
    return result


def _parallel(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    gate, up, skip, scale = linear(x, w).split([v.shape[0], v.shape[0], x.shape[-1], x.shape[-1]], -1)
    result: Tensor = (silu(gate) * up) @ v + skip * scale.sigmoid()
    return result


def run(settings: Settings) -> dict[str, object]:
    """Time each program, print the table and whether none of them is slower than it may be."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    d = min(WIDEST, settings.model.hidden)
    print(f"Programs of {settings.tokens} tokens, d {d}, {EXPERTS} experts; {settings.dtype}", flush=True)
    rows: dict[str, list[float]] = {}
    times: dict[str, dict[str, list[float]]] = {}
    for name, program in programs(settings.tokens, d, settings.torch_dtype).items():
        for training in (False, True):
            what = f"{name}, {'training' if training else 'inference'}"
            with progress(f"  {what}"):
                calls, eager, ours = compared(program, training, settings.repeats)
            times[what] = {"eager": eager, "flashmhf": ours}
            medians = (1e3 * Spread.of(seconds).median for seconds in (eager, ours))
            rows[what] = [calls, *medians, ratio(ours, eager).median]
    print("\n" + number_table("", ["fused calls", "eager, ms", "ours, ms", "ratio"], rows, 2))
    requirement = at_most("slowest, over eager", max(row[-1] for row in rows.values()), BOUND)
    print(f"\n{requirement}", flush=True)
    return {"seconds": times, "requirements": [requirement.__dict__]}


def compared(program: Program, training: bool, repeats: int) -> tuple[int, list[float], list[float]]:
    """The fused calls of a program, and the seconds that it and what is rewritten of it took."""
    torch._dynamo.reset()
    given = [tensor.detach().requires_grad_(training) for tensor in program.tensors]
    options: dict[str, Any] = {"flashmhf.inner": "eager"}
    ways = [program.function, torch.compile(program.function, backend="flashmhf", options=options)]

    def step(way: Callable[..., Tensor]) -> float:
        start = time.perf_counter()
        result = way(*given)
        if training:
            torch.autograd.grad(result.square().sum(), given)
        return time.perf_counter() - start

    for way in ways:
        step(way)
    calls = sum(len(report.rewrites) for report in mhf_compile.last_reports())
    seconds: list[list[float]] = [[], []]
    for number in range(repeats):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which].append(step(ways[which]))
    eager, ours = seconds
    return calls, eager, ours
