"""What hidden values are of their scores: functions of the gate, by name, and expressions of gate and up."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mhf_compile.kernels import expressions
from mhf_compile.kernels.expressions import GRADIENT, Expression, Variable, evaluate, evaluate_all

aten = torch.ops.aten

GATE, UP = Variable("gate"), Variable("up")
"""The scores."""


def _scores(gated: bool) -> tuple[str, ...]:
    """The names of the scores that there are."""
    return (GATE.name, UP.name) if gated else (GATE.name,)


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


@lru_cache(maxsize=1024)
def expression_of(activation: str, gated: bool) -> Expression | None:
    """The hidden value as an expression of GATE, and UP where it is gated; None of those known by name.

    Args:
        activation: a name, or an expression; one of the gate alone is multiplied with the up score.
        gated: whether there is an up score.

    Raises:
        ValueError: it is neither.
    """
    if activation in ACTIVATIONS:
        return None
    want = f"want one of {', '.join(ACTIVATIONS)}, or an expression of gate{' and up' * gated}"
    try:
        expression = expressions.parse(activation)
    except ValueError as error:
        raise ValueError(f"activation: found {activation!r}, {want}: {error}") from error
    names = expressions.variables(expression)
    if not {GATE.name} <= names <= {*_scores(gated)}:
        raise ValueError(f"activation: found {activation!r}, {want}")
    return expression * UP if gated and UP.name not in names else expression


def is_expression(activation: str, gated: bool) -> bool:
    """Whether an activation is an expression of the scores that there are."""
    try:
        return expression_of(activation, gated) is not None
    except ValueError:
        return False


class Hidden:
    """Hidden values of blocks of scores, and the gradients of the scores.

    Args:
        activation: as in the operator.
        gated: whether there is an up score.
    """

    def __init__(self, activation: str, gated: bool) -> None:
        self.named = ACTIVATIONS.get(activation)
        self.expression = expression_of(activation, gated)
        self.gradients = expressions.gradients(self.expression, _scores(gated)) if self.expression else ()

    def __call__(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """Hidden values, differentiable any number of times."""
        if self.expression is not None:
            return evaluate(self.expression, _given(gate, up))
        assert self.named is not None
        activated = self.named.function(gate)
        return activated if up is None else activated * up

    def forward(self, gate: Tensor, up: Tensor | None) -> Tensor:
        """Hidden values, where there is no further use of the scores: they may be overwritten."""
        if self.named is None or up is None:
            return self(gate, up)
        return up.mul_(self.named.function(gate))

    def again(self, gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Hidden values, and what ``backward`` needs beside the scores."""
        if self.named is None:
            hidden = self(gate, up)
            return hidden.clone() if hidden is gate or hidden is up else hidden, None
        activated = self.named.function(gate)
        return activated if up is None else activated * up, activated

    def backward(
        self, gradient: Tensor, gate: Tensor, up: Tensor | None, activated: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of gate and up by that of hidden values. All that is given may be overwritten."""
        if self.named is None:
            d_gate, *others = evaluate_all(self.gradients, {**_given(gate, up), GRADIENT.name: gradient})
            return d_gate, others[0] if others else None
        if up is None:
            return self.named.backward(gradient, gate), None
        assert activated is not None
        d_up = activated.mul_(gradient)
        return self.named.backward(up.mul_(gradient), gate), d_up


def _given(gate: Tensor, up: Tensor | None) -> dict[str, Tensor]:
    return {GATE.name: gate} if up is None else {GATE.name: gate, UP.name: up}


hidden_of = lru_cache(maxsize=1024)(Hidden)
"""The Hidden of an activation, made once."""


@lru_cache(maxsize=1024)
def compiled_in(activation: str, gated: bool) -> str:
    """What kernels are compiled with: a name, or the programs of the hidden value and of its gradients."""
    expression = expression_of(activation, gated)
    if expression is None:
        return activation
    names = _scores(gated)
    forward = expressions.program((expression,), names)
    backward = expressions.program(expressions.gradients(expression, names), (*names, GRADIENT.name))
    return f"{forward} | {backward}"
