"""Models that are compiled, with and without a feed-forward to rewrite, and a compiler with a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends import registry
from torch.nn import functional

from tests.programs import BY_NAME


@contextmanager
def registered(name: str, compiler: Callable[..., Any]) -> Iterator[None]:
    torch._dynamo.register_backend(compiler, name=name)
    try:
        yield
    finally:
        del registry._COMPILER_FNS[name], registry._BACKENDS[name]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 48))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(48)
        self.qkv = nn.Linear(48, 3 * 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 12)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + out.transpose(1, 2).flatten(2)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(48, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Conv1d(16, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.silu(self.norm(self.first(x.mT)))).mT


class InPlace(nn.Module):
    """An embedding, writes to a buffer and to a view, a read of an older view."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 48)
        self.register_buffer("seen", torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.embedding((x.detach()[..., 0] > 0).long())
        view = x[:, 0]
        x[:, 1:].mul_(0.5)
        x += view.unsqueeze(1)
        self.seen.add_(x.detach().mean((0, 1)))
        return x.clamp_(min=-2)


class Missed(nn.Module):
    """A gated feed-forward whose activation is used elsewhere as well."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(48, 20), nn.Linear(48, 20), nn.Linear(20, 48)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.silu(self.gate(x)) * self.up(x)
        return self.down(hidden) + hidden.mean()


MODELS = [Mlp, Attention, Convolutions, InPlace, Missed]


def two_layers(x: Tensor, *weights: Tensor) -> Tensor:
    return BY_NAME["loop"].program(BY_NAME["loop"].program(x, *weights), *weights)


def two_checkpoints(x: Tensor, *weights: Tensor) -> Tensor:
    return BY_NAME["checkpointed"].program(BY_NAME["checkpointed"].program(x, *weights), *weights)
