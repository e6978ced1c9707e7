"""The elementwise functions a gate may use."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


class Activation(NamedTuple):
    """An elementwise function and its chain rule.

    `function(x)` is the function, differentiable any number of times.
    `backward(grad, x)` is `grad * function'(x)`, in one pass over memory where ATen has a good kernel for it.
    """

    function: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """`grad * sigmoid(x) * (1 + x * sigmoid(-x))`.

    ATen's has 1 - sigmoid(x) for sigmoid(-x), of which little is left where x is large: an error of x/2
    roundings, which eager has not if silu is spelled x / (1 + exp(-x)).
    """
    passed = torch.sigmoid(x).mul_(grad)
    return passed.addcmul_(passed, F.silu(-x), value=-1)


def _sigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    """`grad * sigmoid(x) * sigmoid(-x)`; for the latter see `_silu_backward`."""
    return torch.sigmoid(x).mul_(torch.sigmoid(-x)).mul_(grad)


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(F.silu, _silu_backward),
    "gelu": Activation(F.gelu, aten.gelu_backward),
    "gelu_tanh": Activation(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh"),
    ),
    "relu": Activation(F.relu, lambda grad, x: aten.threshold_backward(grad, x, 0)),
    "relu_squared": Activation(
        lambda x: F.relu(x).square(),
        lambda grad, x: aten.threshold_backward(grad, x, 0).mul_(F.relu(x)).mul_(2),
    ),
    "sigmoid": Activation(torch.sigmoid, _sigmoid_backward),
    "identity": Activation(lambda x: x, lambda grad, x: grad),
}
