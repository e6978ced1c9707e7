"""Spellings that differ in their algebra: banks, biases, scales, sums, wide products, updates of low rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import gelu, linear, relu, silu

from tests.spellings.case import Case, Model, case, converted

B, T, N, H, E, F, D, O = 2, 5, 9, 3, 4, 7, 6, 8  # noqa: E741


def leaf(*shape: int, fan: int = 1) -> Tensor:
    """An input that has a gradient, for a sum of ``fan`` products."""
    return (torch.randn(*shape) * fan**-0.5).requires_grad_()


def frozen(*shape: int, fan: int = 1) -> Tensor:
    """An input that has no gradient."""
    return torch.randn(*shape) * fan**-0.5


def weight(*shape: int, fan: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * fan**-0.5)


def keys(*heads: int) -> Tensor:
    return leaf(*heads, D, F, fan=D)


def values(*heads: int) -> Tensor:
    return leaf(*heads, F, O, fan=F)


def routing() -> Tensor:
    return torch.rand(N, E).requires_grad_()


def sized(**sizes: int) -> Callable[[Callable[[], tuple[Model, tuple[Any, ...]]]], Case]:
    """Decorate a maker of a case of which the report says these sizes."""
    return lambda make: replace(case(make), sizes=sizes)


class Gated(nn.Module):
    """Three Linears and a silu."""

    def __init__(self, bias=False, inside=D, width=F, outside=O):
        super().__init__()
        self.gate, self.up = (nn.Linear(inside, width, bias=bias) for _ in range(2))
        self.down = nn.Linear(width, outside, bias=bias)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


def ungated(bias=False):
    """Two Linears and a gelu."""
    return nn.Sequential(nn.Linear(D, F, bias=bias), nn.GELU(), nn.Linear(F, O, bias=bias))


# -- banks: all sub-networks read one input -----------------------------------------------------------------


@case
def bank_by_einsum():
    def bank(x, w1, w2):
        hidden = gelu(torch.einsum("nd,edf->nef", x, w1))
        return torch.einsum("nef,efo->neo", hidden, w2)

    return bank, (leaf(N, D), keys(E), values(E))


@case
def bank_with_a_gate():
    def bank(x, k, u, v):
        hidden = silu(torch.einsum("btd,edf->btef", x, k)) * torch.einsum("btd,edf->btef", x, u)
        return torch.einsum("btef,efo->bteo", hidden, v)

    return bank, (leaf(B, T, D), keys(E), keys(E), values(E))


@case
def bank_weighted_and_summed():
    def bank(x, k, u, v, g):
        hidden = silu(torch.einsum("nd,edf->enf", x, k)) * torch.einsum("nd,edf->enf", x, u)
        return torch.einsum("eno,ne->no", torch.bmm(hidden, v), g)

    return bank, (leaf(N, D), keys(E), keys(E), values(E), routing())


@case
def bank_weighted_by_matmul():
    "each token mixes the results with a vector of weights"

    def bank(x, k, v, g):
        y = (gelu(x @ k) @ v).transpose(0, 1)
        return (g.unsqueeze(1) @ y).squeeze(1)

    return bank, (leaf(N, D), keys(E), values(E), routing())


@case
def bank_by_broadcasting():
    def bank(x, k, u, v):
        return (silu(x @ k) * (x @ u)) @ v

    return bank, (leaf(N, D), keys(E), keys(E), values(E))


@case
def bank_by_broadcasting_over_a_batch():
    def bank(x, k, u, v):
        x = x.unsqueeze(1)
        return ((silu(x @ k) * (x @ u)) @ v).transpose(1, 2).flatten(2)

    return bank, (leaf(B, T, D), keys(E), keys(E), values(E))


@case
def bank_of_an_expanded_input():
    def bank(x, k, u, v):
        x = x.unsqueeze(0).expand(E, -1, -1)
        return torch.bmm(silu(torch.bmm(x, k)) * torch.bmm(x, u), v)

    return bank, (leaf(N, D), keys(E), keys(E), values(E))


@case
def bank_of_a_repeated_input():
    "with biases of the scores"

    def bank(x, k, u, v, bk, bu):
        x = x.repeat(E, 1, 1)
        hidden = silu(torch.baddbmm(bk[:, None], x, k)) * torch.baddbmm(bu[:, None], x, u)
        return (hidden @ v).permute(1, 0, 2)

    return bank, (leaf(N, D), keys(E), keys(E), values(E), leaf(E, F), leaf(E, F))


@case
def bank_of_tokens_repeated_one_by_one():
    def bank(x, k, v):
        x = x.repeat_interleave(E, 0).view(N, E, D)
        return torch.einsum("nef,efo->neo", relu(torch.einsum("ned,edf->nef", x, k)), v)

    return bank, (leaf(N, D), keys(E), values(E))


@case
def bank_of_modules_stacked():
    class Bank(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(Gated() for _ in range(E))

        def forward(self, x):
            return torch.stack([expert(x) for expert in self.experts], -2)

    return Bank(), (torch.randn(B, T, D),)


@case
def bank_of_modules_concatenated():
    class Bank(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(ungated() for _ in range(E))

        def forward(self, x):
            return torch.cat([member(x) for member in self.members], dim=-1)

    return Bank(), (torch.randn(B, T, D),)


@case
def bank_mapped():
    def expert(x, k, u, v):
        return (silu(x @ k) * (x @ u)) @ v

    return vmap(expert, in_dims=(None, 0, 0, 0)), (leaf(N, D), keys(E), keys(E), values(E))


@case
def bank_mapped_in_another_layout():
    def expert(x, k, v):
        return linear(gelu(linear(x, k)), v)

    shapes = leaf(N, D), leaf(F, E, D, fan=D), leaf(O, F, E, fan=F)
    return vmap(expert, in_dims=(None, 1, 2), out_dims=1), shapes


@case
def bank_of_a_stacked_state():
    "torch.func's own way of an ensemble"
    template = Gated().to("meta")
    state = {name: leaf(E, *p.shape, fan=p.shape[-1]) for name, p in template.named_parameters()}

    def bank(x, *weights):
        named = dict(zip(state, weights, strict=True))
        return vmap(lambda one: functional_call(template, one, (x,)))(named)

    return bank, (leaf(N, D), *state.values())


@case
def bank_from_one_wide_linear():
    class Bank(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(D, E * F)
            self.down = weight(E, F, O, fan=F)

        def forward(self, x):
            hidden = gelu(self.up(x)).unflatten(-1, (E, F))
            return torch.einsum("...ef,efo->...eo", hidden, self.down)

    return Bank(), (torch.randn(B, T, D),)


@case
def bank_from_one_wide_convolution():
    "a dense convolution of width one, and one in groups"
    first, second = nn.Conv1d(D, E * F, 1), nn.Conv1d(E * F, E * O, 1, groups=E, bias=False)
    return nn.Sequential(first, nn.GELU(approximate="tanh"), second), (torch.randn(B, D, T),)


@case
def bank_of_heads_flattened():
    "one query for all heads, as in multi-query attention"

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.u, self.v = weight(H, F, D, fan=D), weight(H, F, D, fan=D), weight(H, F, O, fan=F)
            self.out = nn.Linear(H * O, D)

        def forward(self, x):
            gate, up = (torch.einsum("btd,hfd->bthf", x, w) for w in (self.k, self.u))
            return self.out(torch.einsum("bthf,hfo->btho", silu(gate) * up, self.v).flatten(2))

    return Heads(), (torch.randn(B, T, D),)


# -- biases behind the values -------------------------------------------------------------------------------


@case
def bias_of_values_by_einsum():
    def experts(x, k, v, b, g):
        y = torch.einsum("nef,efo->neo", silu(torch.einsum("nd,edf->nef", x, k)), v) + b
        return torch.einsum("neo,ne->no", y, g)

    return experts, (leaf(N, D), keys(E), values(E), leaf(E, O), routing())


@case
def bias_of_values_under_a_gate():
    def experts(x, k, u, v, bk, bu, bv, g):
        hidden = silu(torch.einsum("nd,edf->enf", x, k) + bk[:, None])
        hidden = hidden * (torch.einsum("nd,edf->enf", x, u) + bu[:, None])
        y = (torch.einsum("enf,efo->eno", hidden, v) + bv[:, None]) * g.T[..., None]
        return y.sum(0)

    weights = leaf(N, D), keys(E), keys(E), values(E)
    return experts, (*weights, leaf(E, F), leaf(E, F), leaf(E, O), routing())


@case
def bias_of_values_of_each_head():
    def heads(x, k, u, v, b):
        hidden = silu(torch.einsum("bthd,hdf->bthf", x, k)) * torch.einsum("bthd,hdf->bthf", x, u)
        return (torch.einsum("bthf,hfo->btho", hidden, v) + b).flatten(2)

    return heads, (leaf(B, T, H, D), keys(H), keys(H), values(H), leaf(H, O))


@case
def bias_of_values_mapped():
    def head(x, k, v, b):
        return silu(x @ k) @ v + b

    return vmap(head), (leaf(H, N, D), keys(H), values(H), leaf(H, O))


@case
def bias_of_values_mapped_over_one_input():
    def expert(x, k, u, v, b):
        return (silu(x @ k) * (x @ u)) @ v + b

    def experts(x, k, u, v, b, g):
        return torch.einsum("eno,ne->no", vmap(expert, (None, 0, 0, 0, 0))(x, k, u, v, b), g)

    return experts, (leaf(N, D), keys(E), keys(E), values(E), leaf(E, O), routing())


@case
def bias_of_values_in_modules_concatenated():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(Gated(bias=True) for _ in range(H))

        def forward(self, x):
            parts = x.chunk(H, dim=-1)
            return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], -1)

    return Heads(), (torch.randn(B, T, H * D),)


@case
def bias_of_values_in_modules_stacked():
    "an ensemble of feed-forwards that read the same input"

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(ungated(bias=True) for _ in range(E))

        def forward(self, x):
            return torch.stack([member(x) for member in self.members])

    return Ensemble(), (torch.randn(N, D),)


@case
def bias_of_values_in_modules_added_up():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, E)
            self.experts = nn.ModuleList(Gated(bias=True) for _ in range(E))

        def forward(self, x):
            scores = self.router(x).softmax(-1)
            out = 0
            for e, expert in enumerate(self.experts):
                out = out + scores[..., e, None] * expert(x)
            return out

    return Experts(), (torch.randn(B, T, D),)


@case
def bias_of_values_in_modules_of_the_best_two():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, E, bias=False)
            self.experts = nn.ModuleList(ungated(bias=True) for _ in range(E))

        def forward(self, x):
            best = self.router(x).topk(2, -1)
            scores = torch.zeros(x.shape[0], E, dtype=x.dtype)
            scores = scores.scatter(-1, best.indices, best.values.softmax(-1))
            y = torch.stack([expert(x) for expert in self.experts], 1)
            return (scores.unsqueeze(-1) * y).sum(1)

    return Experts(), (torch.randn(N, D),)


@case
def bias_of_values_by_baddbmm():
    def heads(x, k, u, v, bk, bu, bv):
        hidden = silu(torch.baddbmm(bk, x, k)) * torch.baddbmm(bu, x, u)
        return torch.baddbmm(bv, hidden, v)

    weights = leaf(H, N, D), keys(H), keys(H), values(H)
    return heads, (*weights, leaf(H, 1, F), leaf(H, 1, F), leaf(H, 1, O))


@case
def bias_of_values_by_addmm_in_a_loop():
    def heads(x, k, v, bk, bv):
        parts = []
        for h in range(H):
            hidden = gelu(torch.addmm(bk[h], x[:, h], k[h]), approximate="tanh")
            parts.append(torch.addmm(bv[h], hidden, v[h]))
        return torch.stack(parts, 1)

    return heads, (leaf(N, H, D), keys(H), values(H), leaf(H, F), leaf(H, O))


@case
def bias_of_values_by_linear_in_a_sum():
    def experts(x, k, u, v, b, g):
        return sum(
            g[:, e : e + 1] * linear(silu(linear(x, k[e])) * linear(x, u[e]), v[e], b[e]) for e in range(E)
        )

    weights = leaf(E, F, D, fan=D), leaf(E, F, D, fan=D), leaf(E, O, F, fan=F)
    return experts, (leaf(N, D), *weights, leaf(E, O), routing())


@case
def bias_of_values_in_groups_of_a_convolution():
    first, second = nn.Conv1d(H * D, H * F, 1, groups=H), nn.Conv1d(H * F, H * O, 1, groups=H)
    return nn.Sequential(first, nn.GELU(), second), (torch.randn(B, H * D, T),)


@case
def bias_of_values_of_a_stacked_state():
    members: list[nn.Module] = [ungated(bias=True) for _ in range(E)]
    state, _ = stack_module_state(members)
    template = ungated(bias=True).to("meta")

    def experts(x, g, *weights):
        def member(one, x):
            return functional_call(template, one, (x,))

        y = vmap(member, in_dims=(0, None), out_dims=1)(dict(zip(state, weights, strict=True)), x)
        return (y * g[..., None]).sum(1)

    given = tuple(value.detach().requires_grad_() for value in state.values())
    return experts, (leaf(N, D), routing(), *given)


@case
def bias_of_values_shared_by_heads():
    def heads(x, k, v, b):
        y = relu(x.transpose(1, 2) @ k).square() @ v + b
        return y.transpose(1, 2).reshape(B, T, -1)

    return heads, (leaf(B, T, H, D), keys(H), values(H), leaf(O))


@case
def bias_of_values_under_a_mean():
    "the mean of an ensemble, with a residual"

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(Gated(bias=True, outside=D) for _ in range(E))

        def forward(self, x):
            return x + torch.stack([member(x) for member in self.members]).mean(0)

    return Ensemble(), (torch.randn(B, T, D),)


# -- factors of channels ------------------------------------------------------------------------------------


@case
def scaled_hidden():
    def dense(x, k, u, v, s):
        return (silu(x @ k) * (x @ u) * s) @ v

    return dense, (leaf(N, D), keys(), keys(), values(), leaf(F))


@case
def scaled_gate():
    def dense(x, k, u, v, s):
        return (silu(x @ k * s) * (x @ u)) @ v

    return dense, (leaf(N, D), keys(), keys(), values(), leaf(F))


@case
def scaled_up():
    def dense(x, k, u, v, s):
        return (silu(x @ k) * (s * (x @ u))) @ v

    return dense, (leaf(N, D), keys(), keys(), values(), leaf(F))


@case
def scaled_hidden_of_experts():
    def experts(x, k, u, v, s, g):
        hidden = silu(torch.einsum("nd,edf->nef", x, k)) * torch.einsum("nd,edf->nef", x, u) * s
        return torch.einsum("nef,efo,ne->no", hidden, v, g)

    return experts, (leaf(N, D), keys(E), keys(E), values(E), leaf(E, F), routing())


@case
def scaled_hidden_of_heads():
    def heads(x, k, v, s):
        hidden = torch.einsum("bthf,hf->bthf", gelu(torch.einsum("bthd,hdf->bthf", x, k)), s)
        return torch.einsum("bthf,hfo->btho", hidden, v)

    return heads, (leaf(B, T, H, D), keys(H), values(H), leaf(H, F))


@case
def scaled_scores_of_heads():
    def heads(x, k, u, v, sk, su):
        gate, up = torch.bmm(x, k) * sk[:, None], torch.bmm(x, u) * su[:, None]
        return torch.bmm(silu(gate) * up, v)

    weights = keys(H), keys(H), values(H)
    return heads, (leaf(H, N, D), *weights, leaf(H, F), leaf(H, F))


@case
def scaled_gate_with_a_bias():
    def dense(x, k, u, v, s, b):
        return (silu((x @ k) * s + b) * (x @ u)) @ v

    return dense, (leaf(N, D), keys(), keys(), values(), leaf(F), leaf(F))


@case
def scaled_scores_as_in_ngpt():
    "scaling factors of gate and up, kept small and brought to size"

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc, self.down = nn.Linear(D, 2 * F, bias=False), nn.Linear(F, D, bias=False)
            self.suv = nn.Parameter(1 + 0.2 * torch.randn(2 * F))

        def forward(self, x):
            u, v = (self.suv * D**0.5 * self.c_fc(x)).chunk(2, dim=-1)
            return self.down(u * silu(v))

    return FeedForward(), (torch.randn(B, T, D),)


@case
def scaled_hidden_as_in_ia3():
    "the vector of (IA)^3 before the last Linear"

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.wi, self.wo = nn.Linear(D, F), nn.Linear(F, D)
            self.ia3_l = nn.Parameter(1 + 0.2 * torch.randn(1, F))

        def forward(self, x):
            return self.wo(gelu(self.wi(x)) * self.ia3_l.flatten())

    return FeedForward(), (torch.randn(B, T, D),)


@case
def scaled_gate_by_an_exponential():
    def dense(x, k, u, v, log_scale):
        return linear(silu(linear(x, k) * log_scale.exp()) * linear(x, u), v)

    weights = leaf(F, D, fan=D), leaf(F, D, fan=D), leaf(O, F, fan=F)
    return dense, (leaf(B, T, D), *weights, leaf(F))


@case
def scaled_to_the_norm_of_the_weight():
    "weight normalisation behind the product"

    def dense(x, k, v, length):
        return relu(linear(x, k) * (length / k.norm(dim=1))).square() @ v

    return dense, (leaf(N, D), leaf(F, D, fan=D), values(), leaf(F))


@case
def scaled_hidden_in_a_loop():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(Gated() for _ in range(H))
            self.scales = nn.ParameterList([weight(F, fan=1) for _ in range(H)])

        def forward(self, x):
            parts = []
            for part, head, scale in zip(x.split(D, -1), self.heads, self.scales, strict=True):
                parts.append(head.down(silu(head.gate(part)) * head.up(part) * scale))
            return torch.cat(parts, -1)

    return Heads(), (torch.randn(B, T, H * D),)


@case
def scaled_up_mapped():
    def head(x, k, u, v, s):
        return (gelu(x @ k) * ((x @ u) * s)) @ v

    heads = vmap(head, in_dims=(1, 0, 0, 0, 0), out_dims=1)
    return heads, (leaf(N, H, D), keys(H), keys(H), values(H), leaf(H, F))


class Int8Linear(nn.Module):
    """A weight of 8 bits with a scale for each row, applied before or behind the product."""

    def __init__(self, inside, outside, before=False, bias=False):
        super().__init__()
        self.before = before
        self.register_buffer("weight", torch.randint(-127, 128, (outside, inside), dtype=torch.int8))
        self.register_buffer("scale", (0.5 + torch.rand(outside)) / 64 / inside**0.5)
        self.register_buffer("bias", torch.randn(outside) if bias else None)

    def forward(self, x):
        if self.before:
            return linear(x, self.weight.to(x.dtype) * self.scale[:, None], self.bias)
        y = linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


class Int8FeedForward(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.gate, self.up = Int8Linear(D, F, **how), Int8Linear(D, F, **how)
        self.down = Int8Linear(F, D, **how)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


@case
def int8_scaled_behind_the_product():
    return Int8FeedForward(), (leaf(B, T, D),)


@case
def int8_scaled_before_the_product():
    return Int8FeedForward(before=True), (leaf(B, T, D),)


@case
def int8_scaled_with_biases():
    return Int8FeedForward(bias=True), (leaf(B, T, D),)


@case
def int8_experts():
    "scales of experts behind each product, weighted and summed"

    def experts(x, k, u, v, sk, su, sv, g):
        gate = torch.einsum("nd,efd->nef", x, k.to(x.dtype)) * sk
        up = torch.einsum("nd,efd->nef", x, u.to(x.dtype)) * su
        y = torch.einsum("nef,eof->neo", silu(gate) * up, v.to(x.dtype)) * sv
        return (y * g[..., None]).sum(1)

    k, u, v = (torch.randint(-9, 10, (E, *s), dtype=torch.int8) for s in ((F, D), (F, D), (O, F)))
    scales = (0.05 + 0.1 * torch.rand(E, size) for size in (F, F, O))
    return experts, (leaf(N, D), k, u, v, *scales, routing())


@case
def int8_heads_scaled_before_the_product():
    def heads(x, k, v, sk, sv):
        hidden = gelu(torch.bmm(x, k.to(x.dtype) * sk))
        return torch.bmm(hidden, v.to(x.dtype) * sv)

    k, v = (torch.randint(-9, 10, (H, *s), dtype=torch.int8) for s in ((D, F), (F, O)))
    return heads, (leaf(H, N, D), k, v, 0.1 * torch.rand(H, 1, F), 0.1 * torch.rand(H, 1, O))


# -- heads summed with the values ---------------------------------------------------------------------------


@case
def heads_summed_by_einsum():
    def heads(x, k, v):
        return torch.einsum("nhf,hfo->no", silu(torch.einsum("nhd,hdf->nhf", x, k)), v)

    return heads, (leaf(N, H, D), keys(H), values(H))


@case
def heads_summed_under_a_gate():
    def heads(x, k, u, v):
        hidden = silu(torch.einsum("bthd,hdf->bthf", x, k)) * torch.einsum("bthd,hdf->bthf", x, u)
        return torch.einsum("bthf,hfo->bto", hidden, v)

    return heads, (leaf(B, T, H, D), keys(H), keys(H), values(H))


@case
def heads_summed_by_a_matrix():
    def heads(x, k, u, v):
        gate, up = (torch.einsum("nhd,hdf->nhf", x, w) for w in (k, u))
        return (silu(gate) * up).flatten(1) @ v

    return heads, (leaf(N, H, D), keys(H), keys(H), leaf(H * F, O, fan=H * F))


@case
def heads_summed_by_a_linear():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.u = weight(H, D, F, fan=D), weight(H, D, F, fan=D)
            self.out = nn.Linear(H * F, O)

        def forward(self, x):
            x = x.view(B, T, H, D).transpose(1, 2)
            hidden = silu(x @ self.k) * (x @ self.u)
            return self.out(hidden.transpose(1, 2).reshape(B, T, H * F))

    return Heads(), (torch.randn(B, T, H * D),)


@case
def heads_summed_in_a_loop():
    def heads(x, k, u, v):
        out = 0
        for h, part in enumerate(x.chunk(H, -1)):
            out = out + (silu(part @ k[h]) * (part @ u[h])) @ v[h]
        return out

    return heads, (leaf(B, T, H * D), keys(H), keys(H), values(H))


@case
def heads_summed_in_modules():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(ungated() for _ in range(H))

        def forward(self, x):
            return sum(head(part) for head, part in zip(self.heads, x.unbind(-2), strict=True))

    return Heads(), (torch.randn(B, T, H, D),)


@case
def heads_summed_by_a_convolution():
    "groups, and then all channels"
    first, second = nn.Conv1d(H * D, H * F, 1, groups=H), nn.Conv1d(H * F, O, 1)
    return nn.Sequential(first, nn.GELU(), second), (torch.randn(B, H * D, T),)


@case
def heads_summed_by_tensordot():
    def heads(x, k, v):
        return torch.tensordot(gelu(torch.einsum("nhd,hdf->nhf", x, k)), v, dims=2)

    return heads, (leaf(N, H, D), keys(H), values(H))


@case
def heads_summed_behind_bmm():
    def heads(x, k, u, v):
        return torch.bmm(silu(torch.bmm(x, k)) * torch.bmm(x, u), v).sum(0)

    return heads, (leaf(H, N, D), keys(H), keys(H), values(H))


@case
def heads_summed_behind_a_map():
    def head(x, k, u, v):
        return (silu(x @ k) * (x @ u)) @ v

    def heads(x, k, u, v):
        return vmap(head, in_dims=(1, 0, 0, 0))(x, k, u, v).sum(0)

    return heads, (leaf(N, H, D), keys(H), keys(H), values(H))


@case
def heads_summed_by_addmm():
    def heads(x, k, v):
        out = x.new_zeros(N, O)
        for h in range(H):
            out = torch.addmm(out, relu(x[:, h] @ k[h]).square(), v[h])
        return out

    return heads, (leaf(N, H, D), keys(H), values(H))


@case
def heads_summed_behind_a_concatenation():
    "the hidden values of all heads, side by side"

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.gates, self.ups = (
                nn.ModuleList(nn.Linear(D, F, bias=False) for _ in range(H)) for _ in range(2)
            )
            self.out = nn.Linear(H * F, D, bias=False)

        def forward(self, x):
            hidden = []
            for part, gate, up in zip(x.split(D, -1), self.gates, self.ups, strict=True):
                hidden.append(silu(gate(part)) * up(part))
            return self.out(torch.cat(hidden, -1))

    return Heads(), (torch.randn(B, T, H * D),)


@case
def heads_summed_with_sub_networks():
    def heads(x, k, u, v, r):
        hidden = silu(torch.einsum("bthd,hedf->bthef", x, k)) * torch.einsum("bthd,hedf->bthef", x, u)
        return torch.einsum("bthef,hefo,bthe->bto", hidden, v, r)

    weights = keys(H, E), keys(H, E), values(H, E)
    return heads, (leaf(B, T, H, D), *weights, torch.rand(B, T, H, E).requires_grad_())


@case
def heads_summed_with_weights():
    "each head has a weight, as an expert with an input of its own"

    def heads(x, k, u, v, g):
        hidden = silu(torch.bmm(x, k)) * torch.bmm(x, u)
        return (torch.bmm(hidden, v) * g.T[..., None]).sum(0)

    return heads, (leaf(E, N, D), keys(E), keys(E), values(E), routing())


@case
def heads_summed_with_a_bias():
    def heads(x, k, v, bk, bv):
        hidden = gelu(torch.einsum("nhd,hdf->nhf", x, k) + bk)
        return torch.einsum("nhf,hfo->no", hidden, v) + bv

    return heads, (leaf(N, H, D), keys(H), values(H), leaf(H, F), leaf(O))


# -- a part of a wider product ------------------------------------------------------------------------------


def attention(q, k, v):
    """Causal attention of one head."""
    return nnf.scaled_dot_product_attention(q, k, v, is_causal=True)


@case
def wide_block_of_palm():
    "attention with one key for all heads beside a gated feed-forward, one Linear for all"

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = H * D, D, D, 2 * F
            self.norm = nn.LayerNorm(D)
            self.fused = nn.Linear(D, sum(self.sizes), bias=False)
            self.attn_out, self.ff_out = nn.Linear(H * D, D, bias=False), nn.Linear(F, D, bias=False)

        def forward(self, x):
            q, k, v, ff = self.fused(self.norm(x)).split(self.sizes, dim=-1)
            q = q.unflatten(-1, (H, D)).transpose(1, 2)
            a = attention(q, k.unsqueeze(1).expand_as(q), v.unsqueeze(1).expand_as(q))
            x_part, gate = ff.chunk(2, dim=-1)
            return x + self.attn_out(a.transpose(1, 2).flatten(2)) + self.ff_out(silu(gate) * x_part)

    return Block(), (torch.randn(B, T, D),)


@case
def wide_block_of_vit_22b():
    "the feed-forward first, and a bias of its part of the Linear only"

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(D)
            self.in_proj = nn.Linear(D, F + 3 * D, bias=False)
            self.mlp_bias = weight(F, fan=4)
            self.mlp_out, self.attn_out = nn.Linear(F, D), nn.Linear(D, D)

        def forward(self, x):
            y = self.in_proj(self.norm(x))
            mlp, q, k, v = torch.split(y, [F, D, D, D], dim=-1)
            a = self.attn_out(attention(q, k, v))
            return x + a + self.mlp_out(gelu(mlp + self.mlp_bias))

    return Block(), (torch.randn(B, T, D),)


@case
def wide_block_of_timm():
    "timm's parallel block of ViT-22B: one bias, for all of the Linear"

    class ParallelScalingBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_norm, self.in_proj = nn.LayerNorm(D), nn.Linear(D, F + 3 * D)
            self.q_norm, self.k_norm = nn.LayerNorm(D), nn.LayerNorm(D, bias=False)  # whose gradient is zero
            self.attn_out_proj, self.mlp_out_proj = nn.Linear(D, D), nn.Linear(F, D)

        def forward(self, x):
            y = self.in_proj(self.in_norm(x))
            x_mlp, q, k, v = torch.split(y, [F, D, D, D], dim=-1)
            x_attn = attention(self.q_norm(q), self.k_norm(k), v)
            return x + self.attn_out_proj(x_attn) + self.mlp_out_proj(gelu(x_mlp))

    return ParallelScalingBlock(), (torch.randn(B, T, D),)


@case
def wide_block_of_gpt_j():
    "the feed-forward in the middle, cut out with narrow"

    def block(x, w, wo, down):
        y = x @ w
        q, k = y.narrow(-1, 0, D), y.narrow(-1, D, D)
        hidden = gelu(y.narrow(-1, 2 * D, F), approximate="tanh")
        v = y.narrow(-1, 2 * D + F, D)
        return x + attention(q, k, v) @ wo + hidden @ down

    width = 3 * D + F
    return block, (leaf(B, T, D), leaf(D, width, fan=D), leaf(D, D, fan=D), leaf(F, D, fan=F))


@case
def wide_block_of_flux():
    "one Linear before, and one behind, of attention and feed-forward side by side"

    class SingleStreamBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre_norm = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
            self.linear1, self.linear2 = nn.Linear(D, 3 * D + F), nn.Linear(D + F, D)
            self.mlp_act = nn.GELU(approximate="tanh")

        def forward(self, x):
            qkv, mlp = torch.split(self.linear1(self.pre_norm(x)), [3 * D, F], dim=-1)
            q, k, v = qkv.chunk(3, dim=-1)
            return x + self.linear2(torch.cat((attention(q, k, v), self.mlp_act(mlp)), 2))

    return SingleStreamBlock(), (torch.randn(B, T, D),)


@case
def wide_with_a_skip_by_chunk():
    "a third of the product is added to the result"

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(D, 3 * F), nn.Linear(F, F)

        def forward(self, x):
            gate, up, skip = self.up(x).chunk(3, dim=-1)
            return self.down(silu(gate) * up) + skip

    return FeedForward(), (torch.randn(B, T, D),)


@case
def wide_with_a_skip_by_slices():
    "a part that is read first"

    def dense(x, w, v):
        y = x @ w
        return y[..., :O] + (silu(y[..., O : O + F]) * y[..., O + F :]) @ v

    return dense, (leaf(B, T, D), leaf(D, O + 2 * F, fan=D), values())


@case
def wide_with_a_skip_by_tensor_split():
    def dense(x, w, b, v):
        gate, skip, up = torch.addmm(b, x, w).tensor_split((F, F + O), dim=1)
        return torch.addmm(skip, gelu(gate) * up, v)

    width = 2 * F + O
    return dense, (leaf(N, D), leaf(D, width, fan=D), leaf(width), values())


@case
def wide_with_a_weight_of_the_token():
    "one more column scales the result of its token"

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(D, F + 1, bias=False), nn.Linear(F, D, bias=False)

        def forward(self, x):
            scores, alpha = self.up(x).split([F, 1], dim=-1)
            return x + alpha * self.down(relu(scores).square())

    return FeedForward(), (torch.randn(B, T, D),)


@case
def wide_with_the_router():
    "the router's logits from the Linear of all experts"

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fused, self.down = nn.Linear(D, 2 * E * F + E), weight(E, F, D, fan=F)

        def forward(self, x):
            gate, up, logits = self.fused(x).split([E * F, E * F, E], dim=-1)
            hidden = (silu(gate) * up).unflatten(-1, (E, F))
            return torch.einsum("btef,efd,bte->btd", hidden, self.down, logits.softmax(-1))

    return Experts(), (torch.randn(B, T, D),)


@case
def wide_with_the_router_first():
    "experts one by one, each from its slice, weighted and summed"

    def experts(x, w, v):
        y = linear(x, w)
        scores = y[:, :E].softmax(-1)
        out = 0
        for e, part in enumerate(y[:, E:].split(F, dim=1)):
            out = out + scores[:, e : e + 1] * linear(gelu(part), v[e])
        return out

    return experts, (leaf(N, D), leaf(E + E * F, D, fan=D), leaf(E, O, F, fan=F))


@case
def wide_in_batches():
    "heads with a projection of the skip from the same bmm"

    def heads(x, w, v):
        gate, up, skip = torch.bmm(x, w).split([F, F, O], dim=-1)
        return torch.baddbmm(skip, silu(gate) * up, v)

    return heads, (leaf(H, N, D), leaf(H, D, 2 * F + O, fan=D), values(H))


@case
def wide_in_batches_with_weights_of_sub_networks():
    "each head routes itself with columns of its own"

    def heads(x, w, v):
        y = torch.einsum("bthd,hdw->bthw", x, w)
        hidden = silu(y[..., : E * F]) * y[..., E * F : -E]
        return torch.einsum("bthef,hefo,bthe->btho", hidden.unflatten(-1, (E, F)), v, y[..., -E:].sigmoid())

    return heads, (leaf(B, T, H, D), leaf(H, D, 2 * E * F + E, fan=D), values(H, E))


@case
def wide_by_an_axis_of_parts():
    "four parts of one size by einsum and unbind"

    def block(x, w, down):
        gate, q, up, k = torch.einsum("btd,dcf->btcf", x, w).unbind(2)
        return (silu(gate) * up) @ down + (q * k).sum(-1, keepdim=True)

    return block, (leaf(B, T, D), leaf(D, 4, F, fan=D), values())


@case
def wide_by_a_convolution():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand, self.project = nn.Conv1d(D, 2 * F + O, 1), nn.Conv1d(F, O, 1)

        def forward(self, x):
            gate, up, skip = self.expand(x).split([F, F, O], dim=1)
            return self.project(silu(gate) * up) + skip

    return Block(), (torch.randn(B, D, T),)


# -- numbers added to scores --------------------------------------------------------------------------------


@case
def number_added_to_up():
    def dense(x, k, u, v):
        return ((x @ u + 1) * silu(x @ k)) @ v

    return dense, (leaf(N, D), keys(), keys(), values())


@case
def number_added_to_up_of_experts():
    "as gpt-oss without its clamps: a slope of 1.702, biases and 1"

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj, self.gate_up_bias = weight(E, D, 2 * F, fan=D), weight(E, 2 * F, fan=4)
            self.down_proj = weight(E, F, D, fan=F)
            self.router = nn.Linear(D, E)

        def forward(self, x):
            states = x.expand(E, N, D)
            gate_up = torch.bmm(states, self.gate_up_proj) + self.gate_up_bias[..., None, :]
            gate, up = gate_up[..., ::2], gate_up[..., 1::2]
            glu = gate * torch.sigmoid(gate * 1.702)
            out = torch.bmm((up + 1) * glu, self.down_proj)
            return (out * self.router(x).softmax(-1).T[..., None]).sum(0)

    return Experts(), (torch.randn(N, D),)


@case
def number_added_to_up_of_heads():
    def heads(x, k, u, v):
        up = 1.0 + torch.einsum("bthd,hdf->bthf", x, u)
        return torch.einsum("bthf,hfo->btho", gelu(torch.einsum("bthd,hdf->bthf", x, k)) * up, v)

    return heads, (leaf(B, T, H, D), keys(H), keys(H), values(H))


@case
def number_added_to_gate():
    def dense(x, k, u, v):
        return linear(silu(linear(x, k) + 0.5) * linear(x, u), v)

    return dense, (leaf(B, T, D), leaf(F, D, fan=D), leaf(F, D, fan=D), leaf(O, F, fan=F))


@case
def number_subtracted_from_gate_and_up():
    def heads(x, k, u, v):
        return torch.bmm(silu(torch.bmm(x, k).sub(0.25)) * torch.bmm(x, u).sub(0.5), v)

    return heads, (leaf(H, N, D), keys(H), keys(H), values(H))


@case
def number_subtracted_as_a_threshold():
    def dense(x, k, v):
        return relu(x @ k - 0.3).square() @ v

    return dense, (leaf(B, T, D), keys(), values())


@case
def number_added_in_modules():
    "on top of the bias of a Linear"

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Gated(bias=True)

        def forward(self, x):
            return self.net.down(silu(self.net.gate(x)) * (1 + self.net.up(x)))

    return FeedForward(), (torch.randn(B, T, D),)


@case
def number_added_by_addcmul():
    "act + act * up"

    def dense(x, k, u, v):
        act = silu(x @ k)
        return torch.addcmul(act, act, x @ u) @ v

    return dense, (leaf(N, D), keys(), keys(), values())


@case
def number_added_by_a_sum_of_products():
    def dense(x, k, u, v):
        act = gelu(x @ k)
        return (act * (x @ u) + act) @ v

    return dense, (leaf(N, D), keys(), keys(), values())


@case
def number_added_by_a_tensor_of_ones():
    def dense(x, k, u, v):
        up = x @ u
        return (silu(x @ k) * (up + torch.ones_like(up))) @ v

    return dense, (leaf(N, D), keys(), keys(), values())


@case
def number_added_in_place():
    def dense(x, k, u, v):
        return (silu(x @ k) * (x @ u).add_(1)) @ v

    return dense, (leaf(N, D), keys(), keys(), values())


@case
def number_added_in_a_loop():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, E, bias=False)
            self.experts = nn.ModuleList(Gated() for _ in range(E))

        def forward(self, x):
            scores, out = self.router(x).sigmoid(), 0
            for e, expert in enumerate(self.experts):
                hidden = silu(expert.gate(x)) * (expert.up(x) + 1)
                out = out + scores[..., e, None] * expert.down(hidden)
            return out

    return Experts(), (torch.randn(B, T, D),)


@case
def number_added_mapped():
    def head(x, k, u, v, b):
        return (silu(x @ k) * torch.add(x @ u + b, 1, alpha=2)) @ v

    return vmap(head), (leaf(H, N, D), keys(H), keys(H), values(H), leaf(H, F))


@case
def number_added_then_scaled():
    def dense(x, k, u, v):
        return (silu(2 * (x @ k + 0.5)) * (0.5 * (x @ u) + 1)) @ v

    return dense, (leaf(N, D), keys(), keys(), values())


# -- updates of low rank, and weights in two parts: without gradients of their own --------------------------

MANY, INSIDE, WIDTH, RANK = 512, 16, 32, 2
"""Tokens and sizes at which one product of a merged weight takes less than three."""


def low_rank(inside: int, outside: int, *heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight and the two factors of its update."""
    factors = frozen(*heads, inside, RANK, fan=inside), frozen(*heads, RANK, outside, fan=RANK)
    return frozen(*heads, inside, outside, fan=inside), *factors


@case
def lora_on_all():
    def dense(x, k, ka, kb, u, ua, ub, v, va, vb):
        gate = x @ k + 0.5 * (x @ ka) @ kb
        up = x @ u + 0.5 * (x @ ua) @ ub
        hidden = silu(gate) * up
        return hidden @ v + 0.5 * (hidden @ va) @ vb

    weights = *low_rank(INSIDE, WIDTH), *low_rank(INSIDE, WIDTH), *low_rank(WIDTH, INSIDE)
    return dense, (leaf(MANY, INSIDE), *weights)


@case
def lora_on_the_gate():
    def dense(x, k, a, b, u, v):
        return (silu(x @ k + 2.0 * (x @ a @ b)) * (x @ u)) @ v

    weights = *low_rank(INSIDE, WIDTH), frozen(INSIDE, WIDTH, fan=INSIDE), frozen(WIDTH, INSIDE, fan=WIDTH)
    return dense, (leaf(MANY, INSIDE), *weights)


@case
def lora_on_the_up_projection():
    def dense(x, k, u, a, b, v):
        up = linear(x, u.T)
        up = up + linear(linear(x, a.T), b.T) * 0.25
        return linear(silu(linear(x, k.T)) * up, v.T)

    weights = frozen(INSIDE, WIDTH, fan=INSIDE), *low_rank(INSIDE, WIDTH), frozen(WIDTH, INSIDE, fan=WIDTH)
    return dense, (leaf(2, MANY // 2, INSIDE), *weights)


@case
def lora_on_the_values():
    def dense(x, k, u, v, a, b):
        hidden = silu(x @ k) * (x @ u)
        return hidden @ v + (hidden @ a) @ b * 0.5

    weights = frozen(INSIDE, WIDTH, fan=INSIDE), frozen(INSIDE, WIDTH, fan=INSIDE), *low_rank(WIDTH, INSIDE)
    return dense, (leaf(MANY, INSIDE), *weights)


@case
def lora_without_a_gate():
    "by einsum, with biases"

    def dense(x, k, ka, kb, bk, v, va, vb, bv):
        hidden = gelu(x @ k + bk + torch.einsum("nd,dr,rf->nf", x, ka, kb))
        return hidden @ v + bv + torch.einsum("nf,fr,ro->no", hidden, va, vb)

    up = *low_rank(INSIDE, WIDTH), frozen(WIDTH)
    return dense, (leaf(MANY, INSIDE), *up, *low_rank(WIDTH, INSIDE), frozen(INSIDE))


@case
def lora_by_addmm():
    def dense(x, k, a, b, u, v):
        gate = torch.addmm(x @ k, x @ a, b, alpha=0.5)
        return torch.mm(silu(gate) * torch.mm(x, u), v)

    weights = *low_rank(INSIDE, WIDTH), frozen(INSIDE, WIDTH, fan=INSIDE), frozen(WIDTH, INSIDE, fan=WIDTH)
    return dense, (leaf(MANY, INSIDE), *weights)


class LoraLinear(nn.Module):
    """As PEFT has it: a frozen base, and a dictionary of adapters that add to its result."""

    def __init__(self, base, adapters=("default",), scaling=2.0, dropout=0.0):
        super().__init__()
        self.base_layer, self.scaling = base, dict.fromkeys(adapters, scaling)
        drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_dropout = nn.ModuleDict(dict.fromkeys(adapters, drop))
        inside, outside = base.in_features, base.out_features
        self.lora_A = nn.ModuleDict({name: nn.Linear(inside, RANK, bias=False) for name in adapters})
        self.lora_B = nn.ModuleDict({name: nn.Linear(RANK, outside, bias=False) for name in adapters})

    def forward(self, x):
        result = self.base_layer(x)
        for name, lora_A in self.lora_A.items():
            x = x.to(lora_A.weight.dtype)
            branch = self.lora_B[name](lora_A(self.lora_dropout[name](x)))
            result = result + branch * self.scaling[name]
        return result


def adapted(model: nn.Module, *names: str, **how: Any) -> nn.Module:
    """A model in evaluation, with adapters on some of its Linears, and no gradients of weights."""
    for name in names:
        setattr(model, name, LoraLinear(getattr(model, name), **how))
    return model.requires_grad_(False).eval()


@case
def lora_of_peft():
    model = adapted(Gated(inside=INSIDE, width=WIDTH, outside=INSIDE), "gate", "up", "down")
    return model, (leaf(2, MANY // 2, INSIDE),)


@case
def lora_of_peft_with_biases_and_dropout():
    "in evaluation, where dropout does nothing"
    model = Gated(bias=True, inside=INSIDE, width=WIDTH, outside=INSIDE)
    return adapted(model, "gate", "up", dropout=0.1), (leaf(2, MANY // 2, INSIDE),)


@case
def lora_of_peft_with_two_adapters():
    model = Gated(inside=INSIDE, width=WIDTH, outside=INSIDE)
    return adapted(model, "gate", "down", adapters=("style", "task")), (leaf(MANY, INSIDE),)


@case
def lora_of_heads():
    def heads(x, k, ka, kb, u, ua, ub, v):
        gate = torch.einsum("nhd,hdf->nhf", x, k)
        gate = gate + torch.einsum("nhr,hrf->nhf", torch.einsum("nhd,hdr->nhr", x, ka), kb)
        up = torch.einsum("nhd,hdf->nhf", x, u)
        up = up + torch.einsum("nhr,hrf->nhf", torch.einsum("nhd,hdr->nhr", x, ua), ub)
        return torch.einsum("nhf,hfo->nho", silu(gate) * up, v)

    weights = *low_rank(INSIDE, WIDTH, H), *low_rank(INSIDE, WIDTH, H)
    return heads, (leaf(MANY, H, INSIDE), *weights, frozen(H, WIDTH, INSIDE, fan=WIDTH))


@case
def lora_of_experts():
    "weighted and summed, with the update of the values before the weights"

    def experts(x, k, ka, kb, v, va, vb, g):
        x = x.expand(E, -1, -1)
        hidden = gelu(torch.baddbmm(torch.bmm(x, k), torch.bmm(x, ka), kb, alpha=0.5))
        y = torch.baddbmm(torch.bmm(hidden, v), torch.bmm(hidden, va), vb, alpha=0.5)
        return (y * g.T[..., None]).sum(0)

    weights = *low_rank(INSIDE, WIDTH, E), *low_rank(WIDTH, INSIDE, E)
    return experts, (leaf(MANY, INSIDE), *weights, torch.rand(MANY, E))


@case
def lora_of_heads_in_a_loop():
    "a module for each head, with adapters"

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            one = partial(Gated, inside=INSIDE, width=WIDTH, outside=INSIDE)
            self.heads = nn.ModuleList(adapted(one(), "gate", "up") for _ in range(H))

        def forward(self, x):
            parts = x.chunk(H, dim=-1)
            return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], -1)

    return Heads(), (leaf(MANY, H * INSIDE),)


@case
def lora_mapped():
    "one input, and an adapter of each of a few tasks on shared weights"

    def task(x, a, b, k, v):
        return silu(x @ k + (x @ a) @ b) @ v

    tasks = vmap(task, in_dims=(None, 0, 0, None, None))
    k, a, b = low_rank(INSIDE, WIDTH)[0], *low_rank(INSIDE, WIDTH, E)[1:]
    return tasks, (leaf(MANY, INSIDE), a, b, k, frozen(WIDTH, INSIDE, fan=WIDTH))


@case
def two_weights_of_the_gate():
    def dense(x, w1, w2, u, v):
        return (silu(x @ w1 + x @ w2) * (x @ u)) @ v

    weights = (frozen(INSIDE, WIDTH, fan=INSIDE) for _ in range(3))
    return dense, (leaf(MANY, INSIDE), *weights, frozen(WIDTH, INSIDE, fan=WIDTH))


@case
def two_weights_with_gradients():
    "a shared weight and one of each head"

    def heads(x, shared, own, v):
        return torch.bmm(gelu(x @ shared + torch.bmm(x, own)), v)

    weights = leaf(INSIDE, WIDTH, fan=INSIDE), leaf(H, INSIDE, WIDTH, fan=INSIDE)
    return heads, (leaf(H, MANY, INSIDE), *weights, leaf(H, WIDTH, INSIDE, fan=WIDTH))


@case
def two_weights_of_the_values():
    def dense(x, k, u, v1, v2):
        hidden = silu(x @ k) * (x @ u)
        return hidden @ v1 + 0.1 * (hidden @ v2)

    weights = (frozen(INSIDE, WIDTH, fan=INSIDE) for _ in range(2))
    return dense, (leaf(MANY, INSIDE), *weights, *(frozen(WIDTH, INSIDE, fan=WIDTH) for _ in range(2)))


# -- tokens in any digit: an axis that the weights lack is no head ------------------------------------------

GROUPS, EACH = 4, 16
"""Groups of tokens, and the tokens of each."""

grouped = sized(heads=GROUPS, tokens=EACH)


@grouped
def tokens_viewed_in_groups():
    def experts(x, k, u, v):
        h = x.view(GROUPS, -1, D)
        return (silu(h @ k) * (h @ u)) @ v

    return experts, (leaf(GROUPS * EACH, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


@grouped
def tokens_split_in_groups():
    def experts(x, k, u, v):
        parts = enumerate(x.split(EACH))
        return torch.cat([(silu(part @ k[i]) * (part @ u[i])) @ v[i] for i, part in parts])

    return experts, (leaf(GROUPS * EACH, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


@grouped
def tokens_in_buffers():
    "the capacity buffers of experts"

    def experts(buffers, k, v):
        hidden = gelu(torch.einsum("ecd,edf->ecf", buffers, k))
        return torch.einsum("ecf,efo->eco", hidden, v)

    return experts, (leaf(GROUPS, EACH, D), keys(GROUPS), values(GROUPS))


@grouped
def tokens_in_buffers_of_groups():
    "groups of tokens before the experts, as GShard and Switch have them"

    def experts(buffers, k, u, v):
        gate, up = (torch.einsum("gecd,edf->gecf", buffers, w) for w in (k, u))
        return torch.einsum("gecf,efo->geco", silu(gate) * up, v)

    return experts, (leaf(2, GROUPS, EACH // 2, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


@grouped
def tokens_in_buffers_of_groups_after_the_experts():
    "behind an exchange between devices: experts, groups, places"

    def experts(buffers, k, u, v):
        flat = buffers.reshape(GROUPS, -1, D)
        hidden = silu(torch.bmm(flat, k)) * torch.bmm(flat, u)
        return torch.bmm(hidden, v).view(GROUPS, 2, -1, O).transpose(0, 1)

    return experts, (leaf(GROUPS, 2, EACH // 2, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


@grouped
def tokens_of_the_experts_of_llama4():
    class Llama4TextExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_experts, self.hidden_size = GROUPS, D
            self.gate_up_proj, self.down_proj = weight(GROUPS, D, 2 * F, fan=D), weight(GROUPS, F, D, fan=F)
            self.act_fn = nn.SiLU()

        def forward(self, hidden_states):
            hidden_states = hidden_states.view(self.gate_up_proj.shape[0], -1, self.hidden_size)
            gate_up = torch.bmm(hidden_states, self.gate_up_proj)
            gate, up = gate_up.chunk(2, dim=-1)
            next_states = torch.bmm((up * self.act_fn(gate)), self.down_proj)
            return next_states.view(-1, self.hidden_size)

    return Llama4TextExperts(), (torch.randn(GROUPS * EACH, D),)


@grouped
def tokens_of_a_batch_viewed_in_groups():
    def experts(x, k, u, v):
        h = x.reshape(GROUPS, -1, D)
        return ((silu(h @ k) * (h @ u)) @ v).view(*x.shape[:-1], O)

    return experts, (leaf(2, GROUPS * EACH // 2, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


@grouped
def tokens_taken_in_turns():
    "each fourth token to the same expert"

    def experts(x, k, v):
        h = x.unflatten(0, (-1, GROUPS))
        hidden = relu(torch.einsum("ned,edf->nef", h, k)).square()
        return torch.einsum("nef,efo->neo", hidden, v).flatten(0, 1)

    return experts, (leaf(GROUPS * EACH, D), keys(GROUPS), values(GROUPS))


@grouped
def tokens_of_a_sequence_in_groups():
    "modules for parts of a sequence"

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(Gated() for _ in range(GROUPS))

        def forward(self, x):
            parts = x.chunk(GROUPS, dim=1)
            return torch.cat([part(c) for part, c in zip(self.parts, parts, strict=True)], dim=1)

    return Parts(), (torch.randn(2, GROUPS * EACH // 2, D),)


@grouped
def tokens_in_groups_mapped():
    def expert(x, k, u, v):
        return (gelu(x @ k) * (x @ u)) @ v

    def experts(x, k, u, v):
        return vmap(expert)(x.unflatten(0, (GROUPS, EACH)), k, u, v).flatten(0, 1)

    return experts, (leaf(GROUPS * EACH, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


@grouped
def tokens_in_groups_with_biases():
    def experts(x, k, u, v, bk, bu):
        h = x.view(GROUPS, EACH, D)
        hidden = silu(torch.baddbmm(bk, h, k)) * torch.baddbmm(bu, h, u)
        return torch.bmm(hidden, v).view(-1, O)

    weights = keys(GROUPS), keys(GROUPS), values(GROUPS)
    return experts, (leaf(GROUPS * EACH, D), *weights, leaf(GROUPS, 1, F), leaf(GROUPS, 1, F))


@grouped
def tokens_in_groups_written_to_a_buffer():
    def experts(x, k, u, v):
        out = x.new_empty(GROUPS * EACH, O)
        for i in range(GROUPS):
            rows = slice(i * EACH, (i + 1) * EACH)
            out[rows] = (silu(x[rows] @ k[i]) * (x[rows] @ u[i])) @ v[i]
        return out

    return experts, (leaf(GROUPS * EACH, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


@grouped
def tokens_on_both_sides_of_the_group():
    "a batch before the group, and rows and columns of a window behind it"

    def experts(x, k, u, v):
        h = x.view(2, GROUPS, 4, 2, D)
        gate, up = (torch.einsum("bgijd,gdf->bgijf", h, w) for w in (k, u))
        return torch.einsum("bgijf,gfo->bgijo", silu(gate) * up, v).reshape(2, -1, O)

    return experts, (leaf(2, GROUPS * 8, D), keys(GROUPS), keys(GROUPS), values(GROUPS))


# -- exported and decomposed --------------------------------------------------------------------------------

parts = sized(subnetworks=E)


def decomposed(model: Model, inputs: tuple[Any, ...]) -> tuple[Model, tuple[Any, ...]]:
    """The module of a decomposed export, in the dtype of the tests, which is then a part of its graph."""
    model, inputs = converted(model, inputs, torch.float64)

    class Module(nn.Module):
        def forward(self, *given):
            return model(*given)

    module = model if isinstance(model, nn.Module) else Module()
    return torch.export.export(module, inputs).run_decompositions().module(), inputs


@parts
def exported_einsums():
    def experts(x, k, u, v, g):
        gate, up = (torch.einsum("nd,edf->nef", x, w) for w in (k, u))
        return torch.einsum("nef,efo,ne->no", silu(gate) * up, v, g)

    return decomposed(experts, (leaf(N, D), keys(E), keys(E), values(E), routing()))


@parts
def exported_heads():
    "with heads, and the routing within"

    def heads(x, k, u, v, wr):
        r = torch.einsum("bthd,hde->bthe", x, wr).softmax(-1)
        gate, up = (torch.einsum("bthd,hedf->bthef", x, w) for w in (k, u))
        return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, v)

    weights = keys(H, E), keys(H, E), values(H, E)
    return decomposed(heads, (leaf(B, T, H, D), *weights, leaf(H, D, E, fan=D)))


@parts
def exported_loop():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, E)
            self.experts = nn.ModuleList(Gated() for _ in range(E))

        def forward(self, x):
            scores = self.router(x).softmax(-1)
            return sum(scores[..., e, None] * expert(x) for e, expert in enumerate(self.experts))

    return decomposed(Experts(), (torch.randn(B, T, D),))


@parts
def exported_loop_from_zeros():
    "of an accumulator an export leaves a tensor filled with a number"

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, E)
            self.experts = nn.ModuleList(Gated(outside=D) for _ in range(E))

        def forward(self, x):
            scores, out = self.router(x).softmax(-1), torch.zeros_like(x)
            for e, expert in enumerate(self.experts):
                out = out + scores[..., e : e + 1] * expert(x)
            return out

    return decomposed(Experts(), (torch.randn(B, T, D),))


@parts
def exported_loop_in_place():
    "rows of tokens, and the best expert of each"

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, E, bias=False)
            self.experts = nn.ModuleList(ungated() for _ in range(E))

        def forward(self, x):
            rows = x.flatten(0, 1)
            best = self.router(rows).softmax(-1).max(-1, keepdim=True)
            out = rows.new_zeros(rows.shape[0], O)
            for e, expert in enumerate(self.experts):
                out += expert(rows) * torch.where(best.indices == e, best.values, 0)
            return out.view(*x.shape[:2], O)

    return decomposed(Experts(), (torch.randn(B, T, D),))


@parts
def exported_loop_with_biases():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, E)
            self.experts = nn.ModuleList(Gated(bias=True) for _ in range(E))

        def forward(self, x):
            y = torch.stack([expert(x) for expert in self.experts], 2)
            return torch.einsum("bteo,bte->bto", y, self.router(x).softmax(-1))

    return decomposed(Experts(), (torch.randn(B, T, D),))


@sized(subnetworks=1, width=E * F)
def exported_loop_without_weights():
    "sub-networks that are added up as they are: one of their widths together"

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(ungated() for _ in range(E))

        def forward(self, x):
            return torch.stack([expert(x) for expert in self.experts]).sum(0)

    return decomposed(Experts(), (torch.randn(N, D),))


@parts
def exported_broadcast():
    def experts(x, k, u, v, g):
        return (g.T[..., None] * ((silu(x @ k) * (x @ u)) @ v)).sum(0)

    return decomposed(experts, (leaf(N, D), keys(E), keys(E), values(E), routing()))


@parts
def exported_bmm():
    "an expanded input, with biases"

    def experts(x, k, u, v, bk, bu, g):
        x = x.expand(E, N, D)
        hidden = silu(torch.baddbmm(bk, x, k)) * torch.baddbmm(bu, x, u)
        return torch.einsum("eno,ne->no", torch.bmm(hidden, v), g)

    weights = keys(E), keys(E), values(E), leaf(E, 1, F), leaf(E, 1, F)
    return decomposed(experts, (leaf(N, D), *weights, routing()))


@parts
def exported_accumulation():
    "in place before the export"

    def experts(x, k, u, v, g):
        out = x.new_zeros(N, O)
        for e in range(E):
            out.addmm_(g[:, e : e + 1] * silu(x @ k[e]) * (x @ u[e]), v[e])
        return out

    return decomposed(experts, (leaf(N, D), keys(E), keys(E), values(E), routing()))


@parts
def exported_mapping():
    def expert(x, k, u, v):
        return (silu(x @ k) * (x @ u)) @ v

    def experts(x, k, u, v, g):
        return torch.einsum("eno,ne->no", vmap(expert, (None, 0, 0, 0))(x, k, u, v), g)

    return decomposed(experts, (leaf(N, D), keys(E), keys(E), values(E), routing()))


@parts
def exported_wide_linears():
    "all experts in one Linear for each score"

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(D, E * F), nn.Linear(D, E * F)
            self.router, self.down = nn.Linear(D, E), weight(E, F, D, fan=F)

        def forward(self, x):
            hidden = (silu(self.gate(x)) * self.up(x)).unflatten(-1, (E, F))
            return torch.einsum("btef,efd,bte->btd", hidden, self.down, self.router(x).sigmoid())

    return decomposed(Experts(), (torch.randn(B, T, D),))


@parts
def exported_squared_relu():
    def experts(x, k, v, g):
        hidden = relu(torch.einsum("nd,efd->nef", x, k)).square() * g[..., None]
        return torch.tensordot(hidden, v, dims=2)

    return decomposed(experts, (leaf(N, D), leaf(E, F, D, fan=D), values(E), routing()))


@sized(heads=2, subnetworks=2)
def exported_heads_in_modules():
    "modules in modules: heads, each with sub-networks"

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(D, 2, bias=False)
            self.experts = nn.ModuleList(ungated() for _ in range(2))

        def forward(self, x):
            r = self.router(x).softmax(-1).unsqueeze(-2)
            return (r * torch.stack([expert(x) for expert in self.experts], -1)).sum(-1)

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(Head() for _ in range(2))

        def forward(self, x):
            first, second = x.chunk(2, dim=-1)
            return torch.cat([self.heads[0](first), self.heads[1](second)], -1)

    return decomposed(Heads(), (torch.randn(N, 2 * D),))


CASES = [value for value in globals().values() if isinstance(value, Case)]
