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
    `backward(grad, x)` is `grad * function'(x)`, in one pass over memory where ATen has a kernel for it.
    """

    function: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(F.silu, aten.silu_backward),
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
    "sigmoid": Activation(torch.sigmoid, lambda grad, x: aten.sigmoid_backward(grad, torch.sigmoid(x))),
    "identity": Activation(lambda x: x, lambda grad, x: grad),
}
