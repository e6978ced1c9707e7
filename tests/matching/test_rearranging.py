"""Rearranging a program changes no verdict: operands commute, views and copies and factors come in pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from tests.matching.programs import (
    E,
    F,
    H,
    check,
    tensors,
)

SHUFFLES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x.transpose(0, -1).transpose(-1, 0),
    lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    lambda x: x.reshape(-1).view(x.shape),
    lambda x: x.flatten(-2).unflatten(-1, x.shape[-2:]),
    lambda x: x.unsqueeze(1).squeeze(1),
    lambda x: x.permute(*range(1, x.dim()), 0).clone().permute(-1, *range(x.dim() - 1)),
]
JOINS: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.cat(x.split(1, 0), 0),
    lambda x: torch.stack(x.unbind(1), 1),
]
FACTORS: list[Callable[[Tensor], Tensor]] = [lambda x: 2 * x * 0.5, lambda x: -(x / -1)]
FUNCTIONS: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    (silu, lambda x: torch.sigmoid(x) * x),
    (gelu, lambda x: x / 2 * (1 + torch.erf(x / 2**0.5))),
    (lambda x: relu(x).square(), lambda x: x * relu(x)),
    (torch.sigmoid, lambda x: 1 / (1 + torch.exp(-x))),
]
"""Two spellings each."""


@settings(max_examples=24, derandomize=True, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_rearranging_changes_no_verdict(data: st.DataObject) -> None:
    """Operands commute; views, copies and factors come in pairs; a product is split in two."""

    looped = data.draw(st.booleans())
    moved = {name: data.draw(st.sampled_from(SHUFFLES + JOINS)) for name in "qkuv"}
    moved["r"] = data.draw(st.sampled_from(SHUFFLES))
    inner = {
        name: data.draw(st.sampled_from(SHUFFLES + FACTORS)) for name in ("gate", "up", "hidden", "part")
    }
    inner["out"] = data.draw(st.sampled_from(SHUFFLES + FACTORS + JOINS))
    flips = {name: data.draw(st.booleans()) for name in ("gate", "weight", "sum", "keys", "function")}
    place = data.draw(st.sampled_from(["up", "hidden", "part", "twice"]))
    order = data.draw(st.permutations(range(E)))
    function = data.draw(st.sampled_from(FUNCTIONS))
    is_gated = place == "up" or data.draw(st.booleans())
    names = "qkuvr" if is_gated else "qkvr"

    def multiply(a: Tensor, b: Tensor, name: str) -> Tensor:
        return b * a if flips[name] else a * b

    def weigh(x: Tensor, weight: Tensor, here: str) -> Tensor:
        if place == "twice" and here in ("up", "part"):
            return multiply(x, weight.sigmoid() if here == "up" else weight, "weight")
        return multiply(x, weight, "weight") if place == here else x

    def contract(equation: str, a: Tensor, b: Tensor) -> Tensor:
        if not flips["keys"]:
            return torch.einsum(equation, a, b)
        left, right = equation.split("->")[0].split(",")
        return torch.einsum(f"{right},{left}->{equation.split('->')[1]}", b, a)

    def activation(x: Tensor) -> Tensor:
        return function[flips["function"]](x)

    def network(q: Tensor, k: Tensor, u: Tensor | None, v: Tensor, r: Tensor, e: str) -> Tensor:
        gate = inner["gate"](contract(f"bthd,h{e}fd->bth{e}f", q, k))
        hidden = activation(gate)
        if u is not None:
            up = weigh(inner["up"](contract(f"bthd,h{e}fd->bth{e}f", q, u)), r[..., None], "up")
            hidden = multiply(hidden, up, "gate")
        hidden = weigh(inner["hidden"](hidden), r[..., None], "hidden")
        part = inner["part"](contract(f"bth{e}f,h{e}fo->bth{e}o", hidden, v))
        return weigh(part, r[..., None], "part")

    def program(*given: Tensor) -> Tensor:
        named = {name: moved[name](tensor) for name, tensor in zip(names, given, strict=True)}
        q, k, u, v, r = (named.get(name) for name in "qkuvr")
        if not looped:
            return inner["out"](network(q, k, u, v, r, "e").sum(3))
        out = torch.zeros_like(q)
        for e in order:
            part = network(q, k[:, e], u if u is None else u[:, e], v[:, e], r[..., e], "")
            out = part + out if flips["sum"] else out + part
        return inner["out"](out)

    rewrite = check(program, tensors(" ".join(names)))
    assert (rewrite.heads, rewrite.subnetworks, rewrite.width) == (H, E, F)
    assert rewrite.pattern == ("flash_mhf" if is_gated else "ungated_mhf")
