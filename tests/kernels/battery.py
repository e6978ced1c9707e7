"""One battery for every implementation of the operator: cases, a float64 oracle and a bound on the error.

An implementation is a module with `forward` and `backward`, as `mhf_compile.kernels.flash_mhf.blocked`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

NAMES = ("q", "k", "u", "v", "r", "gate_bias", "up_bias")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
    "relu_squared": lambda x: x.clamp(min=0) ** 2,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
EXPRESSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mish(gate)": lambda gate, up: gate * torch.tanh(torch.log1p(torch.exp(gate))) * up,
    "leaky_relu(gate, 0.2) + gate / 3": lambda gate, up: (torch.maximum(gate, 0.2 * gate) + gate / 3) * up,
    "silu(1.702 * clamp(gate, -inf, 0.7)) * (clamp(up, -0.5, 0.5) + 1)": lambda gate, up: (
        1.702 * gate.clamp(max=0.7) * torch.sigmoid(1.702 * gate.clamp(max=0.7)) * (up.clamp(-0.5, 0.5) + 1)
    ),
    "where(either(opposite(gt(gate, 90)), ne(gate, 90)), maximum(gate, up), up) + minimum(gate, up / 2)": (
        lambda gate, up: torch.maximum(gate, up) + torch.minimum(gate, up / 2)
    ),
}
"""Hidden values by their expressions: of gate, which are multiplied with up, and of both."""

UNGATED = ("relu", "gelu", "gelu_tanh", "relu_squared", "silu")  # those in use without a gate


@dataclass(frozen=True)
class Case:
    """One call.

    `layout` says how the operands lie in memory, see `Case.operands`; `shift` is added to gates, by a column
    of ones in q.
    """

    batch: int = 2
    length: int = 19
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 16
    subnetworks: int = 3
    width: int = 20
    out_dim: int = 16
    activation: str = "silu"
    gated: bool = True
    router: bool = True
    biases: bool = False
    layout: str = "contiguous"
    gate_scale: float = 1.0
    scale: float = 1.0
    shift: float = 0.0

    def operands(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor | None, ...]:
        """q, k, u, v, r (float32), gate_bias, up_bias with entries that half precision holds exactly."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, std: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
            x = (torch.randn(shape, generator=generator) * std).bfloat16().half().to(device, dtype)
            return self._lay_out(x)

        weight = (self.kv_heads, self.subnetworks, self.width)
        tokens = (self.batch, self.length, self.heads)
        q, k = normal(*tokens, self.head_dim), normal(*weight, self.head_dim, std=self.head_dim**-0.5)
        if self.shift:
            q[..., 0], k[..., 0] = 1, self.shift
        return (
            q,
            k,
            normal(*weight, self.head_dim, std=self.head_dim**-0.5) if self.gated else None,
            normal(*weight, self.out_dim, std=self.width**-0.5),
            normal(*tokens, self.subnetworks, dtype=torch.float32) if self.router else None,
            normal(*weight) if self.biases else None,
            normal(*weight) if self.biases and self.gated else None,
        )

    def _lay_out(self, x: Tensor) -> Tensor:
        match self.layout:
            case "reversed axes":
                return (
                    x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
                    if x.dim() == 4
                    else x.mT.contiguous().mT
                )
            case "every other":
                return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]
            case "expanded":
                return x[:, :1].expand_as(x)
            case _:
                return x

    @property
    def constants(self) -> tuple[str, float, float]:
        """activation, gate_scale and scale."""
        return self.activation, self.gate_scale, self.scale


CASES = {
    "plain": Case(),
    "one token": Case(batch=1, length=1),
    "odd sizes": Case(length=17, heads=3, kv_heads=1, head_dim=5, subnetworks=2, width=7, out_dim=3),
    "wide head": Case(
        batch=1, length=33, heads=1, kv_heads=1, head_dim=96, subnetworks=2, width=33, out_dim=40
    ),
    "columns in blocks": Case(batch=1, length=5, heads=1, kv_heads=1, head_dim=150, width=9, out_dim=135),
    "grouped heads": Case(heads=4, kv_heads=2),
    "no router": Case(router=False, subnetworks=1),
    "biases": Case(biases=True, gate_scale=0.7, scale=1.3),
    "no router, biases": Case(biases=True, router=False, scale=-0.5),
    "reversed axes": Case(layout="reversed axes", biases=True),
    "every other": Case(layout="every other", biases=True),
    "expanded": Case(layout="expanded"),
    **{name: Case(length=9, activation=name, biases=True) for name in ACTIVATIONS if name != "silu"},
    **{text: Case(length=9, activation=text, biases=True) for text in EXPRESSIONS},
    "ungated expression": Case(
        length=9, gated=False, activation="mish(gate)", head_dim=150, out_dim=135, width=9, gate_scale=0.7
    ),
    "ungated relu": Case(length=9, gated=False, activation="relu"),
    "ungated gelu": Case(length=9, gated=False, activation="gelu", biases=True, gate_scale=0.7, scale=1.3),
    "ungated gelu_tanh": Case(
        length=9, gated=False, activation="gelu_tanh", biases=True, router=False, subnetworks=1
    ),
    "ungated relu_squared": Case(
        batch=1,
        length=17,
        heads=4,
        gated=False,
        activation="relu_squared",
        router=False,
        layout="every other",
    ),
    "ungated silu": Case(
        batch=1, length=5, heads=1, kv_heads=1, head_dim=150, width=9, out_dim=135, gated=False, biases=True
    ),
}
EMPTY = {"no batch": Case(batch=0), "no tokens": Case(length=0, biases=True)}


SLOPES: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "silu": lambda x, s, c: (s, x * s * c),
    "sigmoid": lambda x, s, c: (s * c,),
}
"""Slopes as sums of what has all its digits, in x, sigmoid(x) and sigmoid(-x)."""


def check_slope(slope: Callable[[Tensor], Tensor], activation: str, device: str = "cpu") -> None:
    """Assert that a slope in float32 has its digits wherever x is, as eager's has of `x / (1 + exp(-x))`.

    Six roundings of half a unit each are allowed for. And the exponential's argument is rounded, which moves
    a sigmoid by `abs(x) * sigmoid(x) * sigmoid(-x)` units, and what is multiplied with x by so much more.
    """
    x = torch.linspace(-30, 30, 5001, device=device)
    exact = x.double()
    s, c = exact.sigmoid(), (-exact).sigmoid()
    parts = SLOPES[activation](exact, s, c)
    units = 3 * sum(part.abs() for part in parts) + exact.abs() * (1 + exact.abs()) * s * c
    error = (slope(x).double() - sum(parts)).abs() / torch.finfo(torch.float32).eps
    assert (error <= units).all(), f"{error.max()} units at {x[error.argmax()]}"


def formula(
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor,
    r: Tensor | None,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gate_scale: float,
    scale: float,
) -> Tensor:
    """The definition, in whatever dtype q has."""
    k, u, v, gate_bias, up_bias = (
        None if x is None else x.repeat_interleave(q.shape[2] // x.shape[0], 0)
        for x in (k, u, v, gate_bias, up_bias)
    )
    gate = torch.einsum("bthd,hefd->bthef", q, k) * gate_scale
    gate = gate if gate_bias is None else gate + gate_bias
    up = torch.ones_like(gate) if u is None else torch.einsum("bthd,hefd->bthef", q, u)
    up = up if up_bias is None else up + up_bias
    hidden = (
        EXPRESSIONS[activation](gate, up) if activation in EXPRESSIONS else ACTIVATIONS[activation](gate) * up
    )
    hidden = hidden if r is None else hidden * r[..., None].to(q.dtype)
    return torch.einsum("bthef,hefo->btho", hidden, v) * scale


def results(
    f: Callable[..., Tensor],
    operands: tuple[Tensor | None, ...],
    grad: Tensor,
    dtype: torch.dtype,
    constants: tuple,
) -> list[Tensor]:
    """Output and gradients of an autograd function on the operands, cast to `dtype`."""
    xs = [None if x is None else x.to(dtype, copy=True).requires_grad_() for x in operands]
    out = f(*xs, *constants)
    return [out, *torch.autograd.grad(out, [x for x in xs if x is not None], grad.to(dtype))]


def check(
    implementation: ModuleType,
    case: Case,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    expanded_grad: bool = False,
) -> None:
    """Assert that output and gradients err at most twice as much as eager in the same dtype does.

    Errors are Frobenius norms against float64, relative to the norm of the exact result. Where a result is a
    handful of numbers eager can be luckier than its dtype warrants. So the bound adds what rounding alone may
    do: one unit roundoff of the dtype for the result, and eight of the compute dtype for the values before it
    (gate, its scale, activation, up, their product, r, the product with v, scale).
    """
    operands = case.operands(dtype, device)
    shape = (*operands[0].shape[:3], case.out_dim)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().half().to(device, dtype)
    if expanded_grad:
        grad = grad.new_ones(()).expand(shape)
    exact = results(formula, operands, grad, torch.float64, case.constants)
    eager = results(formula, operands, grad, dtype, case.constants)
    out = implementation.forward(*operands, *case.constants)
    grads = implementation.backward(grad, *operands, *case.constants, [x is not None for x in operands])

    given = [(name, x) for name, x in zip(NAMES, operands, strict=True) if x is not None]
    assert out.dtype == dtype and out.is_contiguous()
    for (name, x), g in zip(given, grads, strict=True):
        assert (g.dtype, g.shape, g.is_contiguous()) == (x.dtype, x.shape, True), name
    for name, got, naive, want in zip(
        ["out", *(n for n, _ in given)], [out, *grads], eager, exact, strict=True
    ):
        norm = want.norm()
        error, allowed = (got.double() - want).norm(), 2 * (naive.double() - want).norm()
        floor = (torch.finfo(dtype).eps + 8 * torch.finfo(torch.float32).eps) / 2 * norm
        assert error <= allowed + floor, f"{name}: {error / norm:.2e}, eager {allowed / 2 / norm:.2e}"


def check_each_gradient_alone(
    implementation: ModuleType, case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Assert that each gradient wanted alone is, bit for bit, the one that comes among all of them."""
    operands = case.operands(dtype, device)
    grad = torch.ones(*operands[0].shape[:3], case.out_dim, dtype=dtype, device=device)
    everything = iter(implementation.backward(grad, *operands, *case.constants, [True] * 7))
    for needed, operand in enumerate(operands):
        alone = implementation.backward(grad, *operands, *case.constants, [i == needed for i in range(7)])
        assert len(alone) == (operand is not None)
        assert all(torch.equal(x, next(everything)) for x in alone), NAMES[needed]
