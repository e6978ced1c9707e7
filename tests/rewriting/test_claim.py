"""Which regions are of one structure, so that one proof serves them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mhf_compile.rewriting.claim import claim
from tests.rewriting.programs import biased, gated, layers, matches

WEIGHTS = [torch.randn(2, 5, 4) for _ in range(6)]

QUERY = torch.randn(2, 3, 2, 4)


def structures(program: Callable[..., Tensor], *tensors: Tensor) -> list[object]:
    return [claim(match, region) for match, region in matches(program, *tensors)]


def test_layers_with_weights_of_their_own_are_of_one_structure() -> None:
    first, second = structures(layers, QUERY, *WEIGHTS)
    assert first == second
    assert hash(first) == hash(second)


DIFFERENT: dict[str, Callable[..., Tensor]] = {
    "a constant": lambda q, k, u, v: 2 * gated(q, k, u, v),
    "another constant": lambda q, k, u, v: 3 * gated(q, k, u, v),
    "a bias": lambda q, k, u, v: biased(q, k, u, v, 1),
    "a bias twice": lambda q, k, u, v: biased(q, k, u, v, 2),
    "one tensor twice": lambda q, k, u, v: gated(q, k, k, v),
    "another tensor twice": lambda q, k, u, v: gated(q, k, v, v),
    "a permutation of the heads": lambda q, k, u, v: gated(q.permute(1, 0, 2, 3), k, u, v),
    "a part": lambda q, k, u, v: gated(q, k[:, :3], u[:, :3], v[:, :3]),
    "another part": lambda q, k, u, v: gated(q, k[:, 2:], u[:, 2:], v[:, 2:]),
    "dtype": lambda q, k, u, v: gated(q.double(), k.double(), u.double(), v.double()),
}


def test_regions_that_differ_in_anything_are_of_different_structures() -> None:
    found = {name: structures(program, QUERY, *WEIGHTS[:3]) for name, program in DIFFERENT.items()}
    found["width"] = structures(gated, QUERY, *(torch.randn(2, 6, 4) for _ in range(3)))
    found["tokens"] = structures(gated, torch.randn(2, 4, 2, 4), *WEIGHTS[:3])
    found["plain"] = structures(gated, QUERY, *WEIGHTS[:3])
    assert {name: len(s) for name, s in found.items()} == dict.fromkeys(found, 1)
    names = list(found)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert found[a] != found[b], (a, b)
