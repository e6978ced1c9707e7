"""One way of writing a feed-forward, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Model = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A program that is one gated multi-head feed-forward (or one dense, or one ungated).

    ``make()`` returns a model, which is an ``nn.Module`` or a function of tensors, and its inputs. Parameters
    and inputs are float32, small, and of order one; the tests convert them. Each case becomes one fused call.
    """

    name: str
    make: Callable[[], tuple[Model, tuple[Any, ...]]]
    context: Callable[[], Any] | None = None
    """The context the program runs in, such as an autocast."""
    beside: int = 0
    """Activations beside the feed-forward, which are no feed-forward."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """What the report must say of some sizes of the call, under the names of its attributes."""

    def __str__(self) -> str:
        return self.name


def case(make: Callable[[], tuple[Model, tuple[Any, ...]]], beside: int = 0) -> Case:
    """Decorate a maker: its name is the name of the case."""
    return Case(make.__name__, make, beside=beside)


def tensors(model: Model, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What a case has gradients for."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    return [t for t in (*parameters, *inputs) if isinstance(t, Tensor) and t.requires_grad]


def converted(model: Model, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Model, tuple[Any, ...]]:
    """A case in another dtype."""
    if isinstance(model, nn.Module):
        model = model.to(dtype)
    given = tuple(
        t.detach().to(dtype).requires_grad_(t.requires_grad)
        if isinstance(t, Tensor) and t.is_floating_point()
        else t
        for t in inputs
    )
    return model, given
