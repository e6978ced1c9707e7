"""Any elementwise function of the gate: found in five layouts at once, right in values and all gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mhf_compile
from tests.comparison import LONGEST_SUM, counted_calls

Function = Callable[[Tensor], Tensor]

TOKENS, HEADS, NETWORKS, WIDTH, DIM = 7, 3, 2, 6, 5
OPTIONS = {"flashmhf.strict": True, "flashmhf.inner": "eager", "flashmhf.dense": "always"}

FUNCTIONS: dict[str, Function] = {
    "mish": F.mish,
    "mish, spelled out": lambda x: x * torch.tanh(F.softplus(x)),
    "mish, by exp": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "hardswish": F.hardswish,
    "hardswish, spelled out": lambda x: x * F.relu6(x + 3) / 6,
    "hardsigmoid": F.hardsigmoid,
    "relu6": F.relu6,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softplus, sharper": lambda x: F.softplus(x, beta=2.0, threshold=3.0),
    "leaky relu": F.leaky_relu,
    "leaky relu, steeper": lambda x: F.leaky_relu(x, 0.2),
    "star relu": lambda x: 0.8944 * F.relu(x) ** 2 - 0.4472,
    "softcap": lambda x: 0.5 * torch.tanh(x / 0.5),
    "silu of a softcap": lambda x: F.silu(0.5 * torch.tanh(x / 0.5)),
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 2.0),
    "relu, by clamp": lambda x: x.clamp(min=0),
    "clamp": lambda x: torch.clamp(x, -0.5, 0.7),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "silu of a clamp": lambda x: F.silu(x.clamp(max=0.3)),
    "swish of a clamp": lambda x: x.clamp(max=0.3) * torch.sigmoid(1.702 * x.clamp(max=0.3)),
    "a clamp of silu": lambda x: F.silu(x).clamp(max=0.3),
    "silu, squared": lambda x: F.silu(x) ** 2,
    "silu, plus 1": lambda x: F.silu(x) + 1,
    "swish, shifted": lambda x: x * torch.sigmoid(x + 1),
    "gelu, nearly": lambda x: 0.5 * x * (1 + torch.erf(x / 1.414)),
    "relu, cubed": lambda x: F.relu(x).pow(3),
    "log sigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "serf": lambda x: x * torch.erf(F.softplus(x)),
    "phish": lambda x: x * torch.tanh(F.gelu(x)),
    "snake": lambda x: x + torch.sin(x) ** 2,
    "laplace": lambda x: (
        0.5 * (1 + torch.erf((x - math.sqrt(0.5)) / (math.sqrt(2) * math.sqrt(0.25 / math.pi))))
    ),
    "gauss": lambda x: torch.exp(-x * x / 2),
    "two functions of one score": lambda x: F.relu(x) + 0.1 * F.gelu(x),
    "logarithm": lambda x: torch.log1p(F.relu(x)),
    "cosine": torch.cos,
    "erf": torch.erf,
    "abs": torch.abs,
    "sign and root": lambda x: torch.sign(x) * x.abs().sqrt(),
    "square": lambda x: x.square(),
    "square, by a product": lambda x: x * x,
    "cube": lambda x: x**3,
    "polynomial": lambda x: 0.5 * x + 0.044715 * x**3,
    "leaky relu, by a comparison": lambda x: torch.where(x > 0, x, 0.1 * x),
    "leaky relu, by a maximum": lambda x: torch.maximum(x, 0.1 * x),
    "relu, by a comparison": lambda x: torch.where(x <= 0, 0.0, x),
    "relu, by a mask": lambda x: x.masked_fill(x < 0, 0.0),
    "silu where it is small": lambda x: torch.where((x > -1) & ~(x >= 1), F.silu(x), x),
    "clamp, by extrema": lambda x: torch.minimum(torch.max(x, -0.5 + 0 * x), 0.3 * x + 0.5),
    "tanh far out": lambda x: torch.where((x.abs() < 0.5) | (x == 1), x, x.tanh()),
}


class Weights(nn.Module):
    """A function of scores, and the weights of feed-forwards in several layouts."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        weight, down = (HEADS, NETWORKS, WIDTH, DIM), (HEADS, WIDTH, DIM)
        self.k, self.u, self.v = (nn.Parameter(torch.randn(weight) * DIM**-0.5) for _ in range(3))
        self.gates, self.ups, self.downs = (nn.Parameter(torch.randn(down) * DIM**-0.5) for _ in range(3))
        self.gate, self.up = nn.Linear(DIM, WIDTH), nn.Linear(DIM, WIDTH)
        self.down = nn.Linear(WIDTH, DIM)


class Layouts(Weights):
    """Five feed-forwards with one function: experts, heads in a loop, dense, ungated, mapped over weights."""

    def forward(self, x: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        """Of x [TOKENS, HEADS, DIM] and r [TOKENS, HEADS, NETWORKS], the result of each."""
        act = self.function
        gate, up = (torch.einsum("nhd,hefd->nhef", x, weight) for weight in (self.k, self.u))
        experts = torch.einsum("nhef,nhe,hefo->nho", act(gate) * up, r, self.v)
        heads = [
            (act(x[:, h] @ k.mT) * (x[:, h] @ u.mT)) @ v
            for h, (k, u, v) in enumerate(zip(self.gates, self.ups, self.downs, strict=True))
        ]
        dense = self.down(self.up(x[:, 0]).mul(act(self.gate(x[:, 0]))))
        ungated = act(x.transpose(0, 1).bmm(self.gates.mT)) @ self.downs
        mapped = torch.func.vmap(lambda k, v: F.linear(act(F.linear(x[:, 1], k)), v.t()))(
            self.ups, self.downs
        )
        return experts, torch.stack(heads, 1), dense, ungated, mapped


class GatedLayouts(Weights):
    """Five feed-forwards with a function of two scores: experts, heads in a loop, dense, packed, mapped."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(function)
        self.both = nn.Linear(DIM, 2 * WIDTH)

    def forward(self, x: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        """Of x [TOKENS, HEADS, DIM] and r [TOKENS, HEADS, NETWORKS], the result of each."""
        hidden = self.function
        gate, up = (torch.einsum("nhd,hefd->nhef", x, weight) for weight in (self.k, self.u))
        experts = torch.einsum("nhef,nhe,hefo->nho", hidden(gate, up), r, self.v)
        heads = [
            hidden(x[:, h] @ k.mT, x[:, h] @ u.mT) @ v
            for h, (k, u, v) in enumerate(zip(self.gates, self.ups, self.downs, strict=True))
        ]
        dense = self.down(hidden(self.gate(x[:, 0]), self.up(x[:, 0])))
        scores = self.both(x[:, 1])
        packed = self.down(hidden(scores[..., ::2], scores[..., 1::2]))
        mapped = torch.func.vmap(lambda k, u, v: hidden(F.linear(x[:, 1], k), F.linear(x[:, 1], u)) @ v)(
            self.ups, self.gates, self.downs
        )
        return experts, torch.stack(heads, 1), dense, packed, mapped


def _gpt_oss(gate: Tensor, up: Tensor, limit: float = 0.7, alpha: float = 1.702) -> Tensor:
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gpt-oss": _gpt_oss,
    "gpt-oss, multiplied out": lambda g, u: (
        (glu := g * torch.sigmoid(1.702 * g)) + glu * u.clamp(min=-0.7, max=0.7)
    ),
    "clamps of both": lambda g, u: F.silu(g.clamp(max=0.5)) * u.clamp(-0.5, 0.5),
    "a clamp of up": lambda g, u: F.silu(g) * u.clamp(-0.5, 0.5),
    "a clamp of the product": lambda g, u: (F.silu(g) * u).clamp(-0.3, 0.3),
    "WaveNet": lambda g, u: torch.tanh(u) * torch.sigmoid(g),
    "two activations": lambda g, u: F.gelu(g) * F.relu(u - 0.1),
    "a function of the product": lambda g, u: F.gelu(0.5 * g * u),
    "a function of the sum": lambda g, u: F.silu(2 * g + F.relu(u)),
    "up in two places": lambda g, u: F.silu(g) * u + 0.1 * torch.tanh(u) * g,
    "a scaled up": lambda g, u: F.silu(g) * torch.tanh(0.5 * u),
    "squares": lambda g, u: g.square() * u.square(),
    "a quotient": lambda g, u: g / (1 + u.abs()),
    "the larger": torch.maximum,
    "the smaller, of functions": lambda g, u: torch.minimum(F.silu(g), u + 0.5),
    "one where the other is positive": lambda g, u: torch.where(g > 0, u * g, 0.1 * u),
    "one where it is less than the other": lambda g, u: torch.where(g < u, g.tanh(), u),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_function_of_the_gate_is_found(name: str) -> None:
    check(name, Layouts(FUNCTIONS[name]))


@pytest.mark.parametrize("name", OF_TWO)
def test_any_function_of_gate_and_up_is_found(name: str) -> None:
    check(name, GatedLayouts(OF_TWO[name]))


def check(name: str, model: nn.Module) -> None:
    """Require five fused calls, no misses, and eager's values and gradients."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = model.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=DIM**-0.5)
    x = torch.randn(TOKENS, HEADS, DIM, dtype=torch.float64, requires_grad=True)
    r = torch.rand(TOKENS, HEADS, NETWORKS, dtype=torch.float64, requires_grad=True)
    wanted = [x, r, *model.parameters()]

    def outcome(program: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        results = program(x, r)
        loss = sum(((result - 1).square().mean() for result in results), torch.zeros((), dtype=x.dtype))
        return [*(result.detach() for result in results), *torch.autograd.grad(loss, wanted)]

    before = outcome(model)
    with counted_calls() as calls:
        after = outcome(torch.compile(model, backend="flashmhf", options=OPTIONS, fullgraph=True))
    report = "\n".join(map(str, mhf_compile.last_reports()))
    assert calls[0] == 5, report
    assert not any(one.misses for one in mhf_compile.last_reports()), report
    # PyTorch has the slope of celu in float32, whatever the dtype.
    eps = torch.finfo(torch.float32 if name == "celu" else torch.float64).eps
    for a, b in zip(after, before, strict=True):
        assert float((a - b).norm()) <= LONGEST_SUM * eps * float(b.norm()), name
