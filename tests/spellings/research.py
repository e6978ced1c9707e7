"""Spellings of a researcher: functions of tensors, raw parameters, einsum, loops, numerics by hand."""

from __future__ import annotations

import functools
import math
import operator

import einops
import torch
import torch.nn.functional as F
from torch import nn

from tests.spellings.case import Case, case


def weight(*shape, fan):
    return nn.Parameter(torch.randn(*shape) / math.sqrt(fan))


def leaf(*shape, fan=1):
    return (torch.randn(*shape) / math.sqrt(fan)).requires_grad_()


# Multi-head, with sub-networks.


@case
def paper_einsums():
    "the equations of the paper, letter by letter, with the routing inside the last einsum"

    class FlashMHF(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.shape = h, d
            self.wq = nn.Linear(h * d, h * d, bias=False)
            self.wo = nn.Linear(h * d, h * d, bias=False)
            self.k, self.u = weight(h, e, f, d, fan=d), weight(h, e, f, d, fan=d)
            self.v = weight(h, e, f, d, fan=f)
            self.wr = weight(h, d, e, fan=d)

        def forward(self, x):
            q = self.wq(x).unflatten(-1, self.shape)
            r = torch.einsum("bthd,hde->bthe", q, self.wr).softmax(-1)
            a = F.silu(torch.einsum("bthd,hefd->bthef", q, self.k))
            a = a * torch.einsum("bthd,hefd->bthef", q, self.u)
            y = torch.einsum("bthef,hefo,bthe->btho", a, self.v, r)
            return x + self.wo(y.flatten(2))

    return FlashMHF(), (torch.randn(2, 5, 18),)


@case
def heads_first_matmul():
    "a function of tensors in attention layout, broadcasting over the sub-networks"

    def flash(q, k, u, v, r):
        q = q.unsqueeze(2)
        hidden = F.silu(q @ k.mT) * (q @ u.mT)
        return (hidden @ v * r.permute(0, 2, 3, 1).unsqueeze(-1)).sum(2)

    h, e, f, d, o = 3, 4, 8, 6, 5
    return flash, (
        leaf(2, h, 7, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(2, 7, h, e),
    )


@case
def baddbmm_accumulation():
    "flat tokens, heads as the batch of bmm, accumulation in place"

    def flash(x, k, u, v, r):
        q = x.transpose(0, 1)
        r = r.transpose(0, 1)
        out = q.new_zeros(q.shape[0], q.shape[1], v.shape[-1])
        for e in range(k.shape[1]):
            hidden = F.silu(torch.bmm(q, k[:, e].transpose(1, 2))) * torch.bmm(q, u[:, e].transpose(1, 2))
            out.baddbmm_(hidden * r[:, :, e, None], v[:, e])
        return out.transpose(0, 1).reshape(x.shape[0], -1)

    h, e, f, d, o = 4, 3, 8, 6, 5
    return flash, (
        leaf(9, h, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        leaf(9, h, e),
    )


@case
def heads_folded_into_batch():
    "[B * H, T, D] queries against keys repeated over the batch, with the exact gelu by erf"

    class MultiHeadFFN(nn.Module):
        def __init__(self, h=3, f=8, d=6):
            super().__init__()
            self.h, self.d = h, d
            self.proj = weight(h * d, h * d, fan=h * d)
            self.k, self.u = weight(h, d, f, fan=d), weight(h, d, f, fan=d)
            self.v = weight(h, f, d, fan=f)

        def forward(self, x):
            b, t, _ = x.shape
            q = (x @ self.proj).view(b, t, self.h, self.d).transpose(1, 2).reshape(b * self.h, t, self.d)
            gate = torch.bmm(q, self.k.repeat(b, 1, 1))
            up = torch.bmm(q, self.u.repeat(b, 1, 1))
            hidden = 0.5 * gate * (1.0 + torch.erf(gate / math.sqrt(2.0))) * up
            out = torch.bmm(hidden, self.v.repeat(b, 1, 1))
            return out.view(b, self.h, t, self.d).transpose(1, 2).reshape(b, t, -1)

    return MultiHeadFFN(), (torch.randn(2, 5, 18),)


@case
def heads_concatenated():
    "a loop over heads with lists of parameters, concatenated at the end"

    class Heads(nn.Module):
        def __init__(self, h=4, f=7, d=6, o=5):
            super().__init__()
            self.k = nn.ParameterList([weight(d, f, fan=d) for _ in range(h)])
            self.u = nn.ParameterList([weight(d, f, fan=d) for _ in range(h)])
            self.v = nn.ParameterList([weight(f, o, fan=f) for _ in range(h)])

        def forward(self, x):
            outs = []
            for q, k, u, v in zip(x.chunk(len(self.k), dim=-1), self.k, self.u, self.v, strict=True):
                gate = q @ k
                outs.append((gate * torch.sigmoid(gate) * (q @ u)) @ v)
            return torch.cat(outs, dim=-1)

    return Heads(), (torch.randn(2, 9, 24),)


@case
def vmap_over_heads():
    "one head written plainly, mapped over the heads"

    def head(q, k, u, v, r):
        hidden = F.silu(torch.einsum("nd,efd->nef", q, k)) * torch.einsum("nd,efd->nef", q, u)
        return torch.einsum("ne,nef,efo->no", r, hidden, v)

    def flash(x, k, u, v, wr):
        r = torch.sigmoid(torch.einsum("nhd,hed->nhe", x, wr))
        r = r / (r.sum(-1, keepdim=True) + 1e-6)
        return torch.vmap(head, in_dims=(1, 0, 0, 0, 1), out_dims=1)(x, k, u, v, r).flatten(1)

    h, e, f, d, o = 3, 4, 8, 6, 5
    return flash, (
        leaf(9, h, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        leaf(h, e, d, fan=d),
    )


@case
def vmap_over_subnetworks():
    "all heads at once, mapped over the sub-networks, the mixture outside"

    class Mapped(nn.Module):
        def __init__(self, h=3, e=4, f=9, d=6):
            super().__init__()
            self.h = h
            self.k, self.u = weight(e, h, d, f, fan=d), weight(e, h, d, f, fan=d)
            self.v = weight(e, h, f, d, fan=f)
            self.router = nn.Linear(h * d, h * e)

        def forward(self, x):
            def subnetwork(k, u, v):
                return (F.gelu(q @ k, approximate="tanh") * (q @ u)) @ v

            q = x.unflatten(-1, (self.h, -1)).movedim(-2, 1)
            r = self.router(x).unflatten(-1, (self.h, -1)).softmax(dim=-1)
            y = torch.vmap(subnetwork)(self.k, self.u, self.v)
            return torch.einsum("ebhto,bthe->btho", y, r).flatten(-2)

    return Mapped(), (torch.randn(2, 5, 18),)


@case
def vmap_over_tokens():
    "one token, one head, matrix times vector, mapped over everything else"

    def unit(q, k, u, v):
        return (F.silu(k @ q) * (u @ q)) @ v

    def ffn(x, k, u, v):
        return torch.vmap(torch.vmap(unit), in_dims=(0, None, None, None))(x, k, u, v)

    h, f, d, o = 3, 8, 6, 5
    return ffn, (leaf(7, h, d), leaf(h, f, d, fan=d), leaf(h, f, d, fan=d), leaf(h, f, o, fan=f))


@case
def grouped_repeat_interleave():
    "neighbouring query heads share keys, as in grouped-query attention"

    class Grouped(nn.Module):
        def __init__(self, h=4, groups=2, e=3, f=7, d=6):
            super().__init__()
            self.h, self.rep = h, h // groups
            self.k, self.u = weight(groups, e, f, d, fan=d), weight(groups, e, f, d, fan=d)
            self.v = weight(groups, e, f, d, fan=f)
            self.wr = weight(h, e, d, fan=d)

        def forward(self, x):
            q = x.view(*x.shape[:2], self.h, -1)
            q = q * torch.rsqrt(q.square().mean(-1, keepdim=True) + 1e-6)
            k, u, v = (w.repeat_interleave(self.rep, dim=0) for w in (self.k, self.u, self.v))
            r = torch.softmax(torch.einsum("bthd,hed->bthe", q, self.wr), dim=-1)
            hidden = F.silu(torch.einsum("bthd,hefd->bthef", q, k)) * torch.einsum("bthd,hefd->bthef", q, u)
            return x + torch.einsum("bthef,hefo->btho", hidden * r[..., None], v).reshape(x.shape)

    return Grouped(), (torch.randn(2, 5, 24),)


@case
def grouped_expand():
    "shared keys by expand and reshape, heads first"

    def ffn(q, k, u, v):
        g, f, d = k.shape
        rep = q.shape[1] // g
        k = k[:, None].expand(g, rep, f, d).reshape(g * rep, f, d)
        u = u[:, None].expand(g, rep, f, d).reshape(g * rep, f, d)
        v = v[:, None].expand(g, rep, f, v.shape[-1]).reshape(g * rep, f, -1)
        hidden = torch.relu(q @ k.transpose(-1, -2)) * (q @ u.transpose(-1, -2))
        return torch.matmul(hidden, v)

    g, f, d, o = 2, 9, 7, 5
    return ffn, (leaf(2, 4, 6, d), leaf(g, f, d, fan=d), leaf(g, f, d, fan=d), leaf(g, f, o, fan=f))


@case
def grouped_tiled():
    "head h uses keys h mod groups: tiling by repeat, sub-networks added up in a loop"

    def ffn(x, k, u, v, r):
        reps = x.shape[-2] // k.shape[0]
        k, u, v = k.repeat(reps, 1, 1, 1), u.repeat(reps, 1, 1, 1), v.repeat(reps, 1, 1, 1)
        out = 0
        for e in range(k.shape[1]):
            gate = torch.einsum("nhd,hfd->nhf", x, k[:, e])
            up = torch.einsum("nhd,hfd->nhf", x, u[:, e])
            out = out + r[..., e : e + 1] * torch.einsum("nhf,hfo->nho", F.silu(gate) * up, v[:, e])
        return out

    g, e, f, d, o = 2, 3, 8, 6, 5
    return ffn, (
        leaf(7, 4, d),
        leaf(g, e, f, d, fan=d),
        leaf(g, e, f, d, fan=d),
        leaf(g, e, f, o, fan=f),
        leaf(7, 4, e),
    )


@case
def grouped_query_axis():
    "shared keys without copies: the queries carry a group axis"

    class Grouped(nn.Module):
        def __init__(self, g=3, rep=2, e=4, f=7, d=8):
            super().__init__()
            self.shape = g, rep, d
            self.wq = weight(g * rep * d, 11, fan=11)
            self.wr = weight(g, rep, e, 11, fan=11)
            self.k, self.u = weight(g, e, f, d, fan=d), weight(g, e, f, d, fan=d)
            self.v = weight(g, e, f, d, fan=f)

        def forward(self, x):
            q = F.linear(x, self.wq).unflatten(-1, self.shape)
            r = torch.einsum("btm,grem->btgre", x, self.wr).softmax(-1)
            gate = torch.einsum("btgrd,gefd->btgref", q, self.k)
            up = torch.einsum("btgrd,gefd->btgref", q, self.u)
            y = torch.einsum("btgref,gefo->btgreo", F.silu(gate) * up, self.v)
            return (y * r.unsqueeze(-1)).sum(-2).flatten(2)

    return Grouped(), (torch.randn(2, 5, 11),)


@case
def values_shared_by_heads():
    "keys of their own for each head, one set of values for all of them"

    def ffn(q, k, u, v):
        hidden = F.silu(torch.einsum("bhtd,hfd->bhtf", q, k)).mul(torch.einsum("bhtd,hfd->bhtf", q, u))
        return hidden @ v.expand(k.shape[0], -1, -1)

    h, f, d, o = 3, 8, 6, 5
    return ffn, (leaf(2, h, 7, d), leaf(h, f, d, fan=d), leaf(h, f, d, fan=d), leaf(1, f, o, fan=f))


@case
def double_loop_setitem():
    "loops over heads and sub-networks, one output head written at a time"

    def flash(q, k, u, v, r):
        b, t, heads, _ = q.shape
        out = torch.empty(b, t, heads, v.shape[-1], dtype=q.dtype, device=q.device)
        for h in range(heads):
            acc = 0.0
            for e in range(k.shape[1]):
                gate, up = q[:, :, h] @ k[h, e].t(), q[:, :, h] @ u[h, e].t()
                acc = acc + r[:, :, h, e].unsqueeze(-1) * ((F.silu(gate) * up) @ v[h, e])
            out[:, :, h] = acc
        return out

    h, e, f, d, o = 3, 2, 8, 6, 4
    return flash, (
        leaf(2, 5, h, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(2, 5, h, e),
    )


@case
def slices_of_a_buffer():
    "each head and sub-network adds to its columns of the output"

    class Slices(nn.Module):
        def __init__(self, h=3, e=2, f=7, d=5):
            super().__init__()
            self.h, self.e, self.d = h, e, d
            self.w1, self.w3 = weight(h, e, d, f, fan=d), weight(h, e, d, f, fan=d)
            self.w2 = weight(h, e, f, d, fan=f)
            self.mix = weight(h * d, h * e, fan=h * d)

        def forward(self, x):
            r = torch.sigmoid(x @ self.mix)
            out = torch.zeros_like(x)
            for h in range(self.h):
                cols = slice(h * self.d, (h + 1) * self.d)
                q = x[..., cols]
                for e in range(self.e):
                    gate = q @ self.w1[h, e]
                    y = (gate / (1 + torch.exp(-gate)) * (q @ self.w3[h, e])) @ self.w2[h, e]
                    i = h * self.e + e
                    out[..., cols] += r[..., i : i + 1] * y
            return out

    return Slices(), (torch.randn(2, 6, 15),)


@case
def addcmul_mixture():
    "fused multiply-add over the sub-networks"

    def flash(q, k, u, v, logits):
        r = logits.softmax(-1)
        out = torch.zeros_like(q)
        for e, (ke, ue, ve) in enumerate(zip(k.unbind(1), u.unbind(1), v.unbind(1), strict=True)):
            hidden = F.silu(torch.matmul(q, ke.mT)) * torch.matmul(q, ue.mT)
            out = torch.addcmul(out, r[..., e, None], torch.matmul(hidden, ve))
        return out

    h, e, f, d = 3, 4, 8, 6
    return flash, (
        leaf(2, h, 7, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=f),
        leaf(2, h, 7, e),
    )


@case
def stacked_and_summed():
    "a list of sub-network outputs, stacked, weighted, summed"

    class Stacked(nn.Module):
        def __init__(self, h=2, e=3, f=9, d=7):
            super().__init__()
            self.h = h
            self.k = nn.ParameterList(weight(h, d, f, fan=d) for _ in range(e))
            self.u = nn.ParameterList(weight(h, d, f, fan=d) for _ in range(e))
            self.v = nn.ParameterList(weight(h, f, d, fan=f) for _ in range(e))
            self.gate = nn.Linear(h * d, h * e, bias=False)

        def forward(self, x):
            q = x.unflatten(-1, (self.h, -1)).transpose(-3, -2)
            r = self.gate(x).unflatten(-1, (self.h, -1)).softmax(-1).transpose(-3, -2)
            ys = [(F.silu(q @ k) * (q @ u)) @ v for k, u, v in zip(self.k, self.u, self.v, strict=True)]
            y = (torch.stack(ys, dim=-2) * r[..., None]).sum(dim=-2)
            return y.transpose(-3, -2).flatten(-2)

    return Stacked(), (torch.randn(2, 5, 14),)


@case
def reduce_with_add():
    "functools.reduce over the sub-networks, gate and up interleaved in one weight"

    def flash(q, ku, v, r):
        def subnetwork(e):
            both = torch.einsum("bthd,hfd->bthf", q, ku[:, e])
            hidden = both[..., 0::2].sigmoid() * both[..., 0::2] * both[..., 1::2]
            return torch.einsum("bthf,hfo->btho", hidden, v[:, e]) * r[:, :, :, e, None]

        return functools.reduce(operator.add, map(subnetwork, range(v.shape[1])))

    h, e, f, d, o = 4, 3, 7, 6, 8
    return flash, (
        leaf(2, 5, h, d),
        leaf(h, e, 2 * f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(2, 5, h, e),
    )


@case
def routing_by_matmul():
    "the mixture as a row vector times the matrix of sub-network outputs"

    class Routed(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.h = h
            self.keys, self.gates = weight(h, e, f, d, fan=d), weight(h, e, f, d, fan=d)
            self.values = weight(h, e, f, d, fan=f)
            self.router = weight(h, d, e, fan=d)

        def forward(self, x):
            q = x.view(x.shape[0], self.h, -1)
            r = torch.matmul(q.unsqueeze(-2), self.router).softmax(-1)
            score = torch.einsum("nhd,hefd->nhef", q, self.keys)
            up = torch.einsum("nhd,hefd->nhef", q, self.gates)
            y = ((F.silu(score) * up).unsqueeze(-2) @ self.values).squeeze(-2)
            return torch.matmul(r, y).squeeze(-2).flatten(1)

    return Routed(), (torch.randn(9, 18),)


@case
def top_k_mask():
    "two of four sub-networks by a dense mask, renormalised"

    class TopK(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6, top=2):
            super().__init__()
            self.h, self.top = h, top
            self.k, self.u = weight(h, e, f, d, fan=d), weight(h, e, f, d, fan=d)
            self.v = weight(h, e, f, d, fan=f)
            self.router = weight(h, e, d, fan=d)

        def forward(self, x):
            q = x.unflatten(-1, (self.h, -1))
            p = torch.einsum("bthd,hed->bthe", q, self.router).softmax(-1)
            mask = torch.zeros_like(p).scatter(-1, p.topk(self.top, dim=-1).indices, 1.0)
            r = p * mask
            r = r / r.sum(-1, keepdim=True)
            hidden = F.silu(torch.einsum("bthd,hefd->bthef", q, self.k))
            hidden = hidden * torch.einsum("bthd,hefd->bthef", q, self.u)
            y = torch.einsum("bthef,hefo->btheo", hidden, self.v)
            return torch.einsum("bthe,btheo->btho", r, y).flatten(2)

    return TopK(), (torch.randn(2, 5, 18),)


@case
def sigmoid_routing_clamped():
    "sigmoid scores over their clamped sum, applied to the up factor"

    def flash(q, k, u, v, logits):
        r = logits.sigmoid()
        r = r / r.sum(dim=-1, keepdim=True).clamp(min=1e-3)
        gate = torch.einsum("bhtd,hefd->bhtef", q, k)
        up = torch.einsum("bhtd,hefd->bhtef", q, u) * r.unsqueeze(-1)
        return torch.einsum("bhtef,hefo->bhto", torch.relu(gate) ** 2 * up, v)

    h, e, f, d, o = 3, 4, 8, 6, 5
    return flash, (
        leaf(2, h, 7, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        leaf(2, h, 7, e),
    )


@case
def learned_mixture():
    "constant weights, learned for each head and sub-network, without a router"

    class Mixture(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.k, self.u = weight(h, e, f, d, fan=d), weight(h, e, f, d, fan=d)
            self.v = weight(h, e, f, d, fan=f)
            self.alpha = weight(h, e, fan=1)

        def forward(self, x):
            hidden = F.silu(torch.einsum("bthd,hefd->bthef", x, self.k))
            hidden = hidden * torch.einsum("bthd,hefd->bthef", x, self.u)
            return torch.einsum("bthef,hefo,he->btho", hidden, self.v, self.alpha.softmax(-1))

    return Mixture(), (torch.randn(2, 5, 3, 6),)


@case
def learned_head_gain():
    "MH-FFN with a learned gain for each head after the values, sigmoid of the reference numerics"

    def ffn(q, w1, w3, w2, gain):
        gate = q @ w1
        hidden = gate * (1 + (-gate).exp()).reciprocal() * (q @ w3)
        return gain.view(-1, 1, 1) * (hidden @ w2)

    h, f, d, o = 3, 8, 6, 5
    return ffn, (leaf(2, h, 7, d), leaf(h, d, f, fan=d), leaf(h, d, f, fan=d), leaf(h, f, o, fan=f), leaf(h))


@case
def three_scales():
    "constant multipliers on the gate score, the up score and the output"

    def flash(q, k, u, v, r):
        gate = torch.einsum("bthd,hefd->bthef", q, k) * 1.25
        up = torch.einsum("bthd,hefd->bthef", q, u) / math.sqrt(k.shape[2])
        hidden = F.silu(gate) * up * r[..., None]
        return 0.5 * torch.einsum("bthef,hefo->btho", hidden, v)

    h, e, f, d, o = 3, 4, 8, 6, 5
    return flash, (
        leaf(2, 7, h, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(2, 7, h, e),
    )


@case
def scaled_queries():
    "queries over the root of their width for the scores only, mean over the sub-networks"

    class Scaled(nn.Module):
        def __init__(self, h=3, e=4, f=8, d=7):
            super().__init__()
            self.h, self.scale = h, d**-0.5
            self.k, self.u = weight(h, e, f, d, fan=1), weight(h, e, f, d, fan=d)
            self.v = weight(h, e, f, d, fan=f)

        def forward(self, x):
            q = x.unflatten(-1, (self.h, -1))
            gate = torch.einsum("bthd,hefd->bthef", q * self.scale, self.k)
            hidden = F.silu(gate) * torch.einsum("bthd,hefd->bthef", q, self.u)
            y = torch.einsum("bthef,hefo->btheo", hidden, self.v).mean(-2)
            return x + y.flatten(-2)

    return Scaled(), (torch.randn(2, 5, 21),)


@case
def score_biases():
    "biases of the scores and of the output for each head"

    class Biased(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.k, self.u = weight(h, e, f, d, fan=d), weight(h, e, f, d, fan=d)
            self.v = weight(h, e, f, d, fan=f)
            self.bk, self.bu = weight(h, e, f, fan=4), weight(h, e, f, fan=4)
            self.bo = weight(h, d, fan=4)
            self.router = weight(h, d, e, fan=d)

        def forward(self, x):
            r = torch.einsum("bthd,hde->bthe", x, self.router).softmax(-1)
            gate = torch.einsum("bthd,hefd->bthef", x, self.k) + self.bk
            up = self.bu + torch.einsum("bthd,hefd->bthef", x, self.u)
            hidden = F.silu(gate) * up
            return torch.einsum("bthef,hefo->btho", hidden * r.unsqueeze(-1), self.v) + self.bo

    return Biased(), (torch.randn(2, 5, 3, 6),)


@case
def baddbmm_biases():
    "biases inside baddbmm, transposed storage, flat tokens, gelu by tanh"

    def ffn(x, w1, b1, w3, b3, w2, b2):
        q = x.transpose(0, 1)
        gate = torch.baddbmm(b1, q, w1)
        up = torch.baddbmm(b3, q, w3)
        inner = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate.pow(3))
        hidden = 0.5 * gate * (1.0 + torch.tanh(inner)) * up
        return torch.baddbmm(b2, hidden, w2).transpose(0, 1)

    h, f, d, o = 3, 8, 6, 5
    return ffn, (
        leaf(7, h, d),
        leaf(h, d, f, fan=d),
        leaf(h, 1, f, fan=4),
        leaf(h, d, f, fan=d),
        leaf(h, 1, f, fan=4),
        leaf(h, f, o, fan=f),
        leaf(h, 1, o, fan=4),
    )


@case
def wide_hidden():
    "all sub-networks of a head in one wide hidden layer, the routing repeated over its columns"

    class Wide(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.h, self.e, self.f = h, e, f
            self.w1, self.w3 = weight(h, d, e * f, fan=d), weight(h, d, e * f, fan=d)
            self.w2 = weight(h, e * f, d, fan=f)
            self.router = nn.Linear(d, e)

        def forward(self, x):
            q = x.view(*x.shape[:2], self.h, -1).transpose(1, 2)
            r = self.router(q).softmax(-1).repeat_interleave(self.f, dim=-1)
            hidden = F.silu(q @ self.w1) * (q @ self.w3)
            return x + ((hidden * r) @ self.w2).transpose(1, 2).flatten(2)

    return Wide(), (torch.randn(2, 5, 18),)


@case
def blocks_of_the_hidden_layer():
    "flash style: the hidden layer in blocks, never whole, summed into an accumulator"

    def ffn(q, k, u, v, block=4):
        acc = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        for start in range(0, k.shape[1], block):
            part = slice(start, start + block)
            s = torch.einsum("bhtd,hfd->bhtf", q, k[:, part])
            z = torch.einsum("bhtd,hfd->bhtf", q, u[:, part])
            acc += torch.einsum("bhtf,hfo->bhto", F.silu(s) * z, v[:, part])
        return acc

    h, f, d, o = 3, 12, 6, 5
    return ffn, (leaf(2, h, 7, d), leaf(h, f, d, fan=d), leaf(h, f, d, fan=d), leaf(h, f, o, fan=f))


@case
def heads_as_columns():
    "the weights of a dense layer, [d_ff, d_model], whose columns are cut into heads"

    class Columns(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.h, self.e = h, e
            self.k, self.u = weight(e * f, h * d, fan=d), weight(e * f, h * d, fan=d)
            self.v = weight(e * f, h * d, fan=f)
            self.router = weight(h * e, h * d, fan=h * d)

        def split(self, w):
            return w.view(self.e, -1, self.h, w.shape[-1] // self.h)

        def forward(self, x):
            q = x.unflatten(-1, (self.h, -1))
            r = (x @ self.router.t()).unflatten(-1, (self.h, self.e)).softmax(-1)
            gate = torch.einsum("bthd,efhd->bthef", q, self.split(self.k))
            up = torch.einsum("bthd,efhd->bthef", q, self.split(self.u))
            out = torch.einsum("bthe,bthef,efho->btho", r, F.silu(gate) * up, self.split(self.v))
            return out.flatten(-2)

    return Columns(), (torch.randn(2, 5, 18),)


@case
def one_parameter_for_all():
    "keys, ups and values in one tensor, taken apart by unbind"

    class Stacked(nn.Module):
        def __init__(self, h=3, e=4, f=8, d=6):
            super().__init__()
            self.kuv = weight(3, h, e, f, d, fan=d)
            self.q = weight(h, d, h * d, fan=h * d)
            self.r = weight(h, e, h * d, fan=h * d)
            self.o = weight(h, d, h * d, fan=h * d)

        def forward(self, x):
            k, u, v = self.kuv.unbind(0)
            q = torch.einsum("btm,hdm->bthd", x, self.q)
            q = F.normalize(q, dim=-1) * math.sqrt(q.shape[-1])
            r = torch.einsum("btm,hem->bthe", x, self.r).softmax(-1)
            hidden = torch.einsum("bthd,hefd->bthef", q, k)
            hidden = F.silu(hidden, inplace=True) * torch.einsum("bthd,hefd->bthef", q, u)
            y = torch.einsum("bthe,bthef,hefo->btho", r, hidden, v)
            return x + torch.einsum("btho,hom->btm", y, self.o)

    return Stacked(), (torch.randn(2, 5, 18),)


@case
def up_before_gate():
    "one weight [H, E, 2F, D] with the up half first, cut by tensor_split"

    def flash(x, wi, wo, r):
        up, gate = torch.einsum("bhtd,hefd->bhtef", x, wi).tensor_split(2, dim=-1)
        hidden = up * gate.mul(torch.sigmoid(gate))
        return (torch.einsum("bhtef,hefo->bhteo", hidden, wo) * r.unsqueeze(-1)).sum(-2)

    h, e, f, d, o = 3, 4, 7, 6, 5
    return flash, (
        leaf(2, h, 8, d),
        leaf(h, e, 2 * f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(2, h, 8, e),
    )


@case
def two_scores_in_one_einsum():
    "a leading axis of two in the weights gives both scores at once"

    class Pair(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.h = h
            self.wi = weight(2, h, e, d, f, fan=d)
            self.wo = weight(h, e, f, d, fan=f)
            self.norm = nn.LayerNorm(d)

        def forward(self, x):
            q = self.norm(x.unflatten(-1, (self.h, -1)))
            scores = torch.einsum("bthd,shedf->sbthef", q, self.wi)
            hidden = torch.exp(scores[0]) / (1 + torch.exp(scores[0])) * scores[0] * scores[1]
            return x + torch.einsum("bthef,hefo->btho", hidden, self.wo).flatten(-2)

    return Pair(), (torch.randn(2, 5, 18),)


@case
def contractions_by_hand():
    "no matrix product at all: broadcast, multiply, sum"

    def flash(q, k, u, v, r):
        q = q[..., None, None, :]
        gate, up = (q * k).sum(-1), (q * u).sum(-1)
        hidden = F.silu(gate) * up * r[..., None]
        return (hidden[..., None] * v).sum(dim=(-3, -2))

    h, e, f, d, o = 3, 2, 8, 6, 4
    return flash, (
        leaf(5, h, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(5, h, e),
    )


@case
def einsum_with_sublists():
    "numbered axes in place of letters"

    def flash(q, k, u, v, r):
        n, h, e, f, d, o = range(6)
        gate = torch.einsum(q, [n, h, d], k, [h, e, f, d], [n, h, e, f])
        up = torch.einsum(q, [n, h, d], u, [h, e, f, d], [n, h, e, f])
        return torch.einsum(F.silu(gate) * up, [n, h, e, f], r, [n, h, e], v, [h, e, f, o], [n, h, o])

    h, e, f, d, o = 3, 4, 8, 6, 5
    return flash, (
        leaf(7, h, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(7, h, e),
    )


@case
def einops_throughout():
    "rearrange, einsum and reduce of einops, words for axes"

    class Flash(nn.Module):
        def __init__(self, heads=3, nets=4, width=7, d=6):
            super().__init__()
            self.heads = heads
            self.keys = weight(heads, nets, width, d, fan=d)
            self.ups = weight(heads, nets, width, d, fan=d)
            self.values = weight(heads, nets, width, d, fan=width)
            self.router = weight(heads, nets, d, fan=d)

        def forward(self, x):
            q = einops.rearrange(x, "b t (h d) -> b h t d", h=self.heads)
            gate = einops.einsum(q, self.keys, "b h t d, h e f d -> b h e t f")
            up = einops.einsum(q, self.ups, "b h t d, h e f d -> b h e t f")
            r = einops.einsum(q, self.router, "b h t d, h e d -> b h e t").softmax(dim=2)
            y = einops.einsum(F.silu(gate) * up, self.values, "b h e t f, h e f o -> b h e t o")
            y = einops.reduce(y * einops.rearrange(r, "... -> ... 1"), "b h e t o -> b h t o", "sum")
            return x + einops.rearrange(y, "b h t o -> b t (h o)")

    return Flash(), (torch.randn(2, 5, 18),)


@case
def einops_grouped():
    "einops.repeat for shared keys and for a batch of bmm"

    def ffn(x, k, u, v):
        b = x.shape[0]
        q = einops.rearrange(x, "b t h d -> (b h) t d")
        k = einops.repeat(k, "g d f -> (b g r) d f", b=b, r=2)
        u = einops.repeat(u, "g d f -> (b g r) d f", b=b, r=2)
        v = einops.repeat(v, "g f o -> (b g r) f o", b=b, r=2)
        gate = torch.bmm(q, k)
        out = torch.bmm(gate * torch.special.expit(gate) * torch.bmm(q, u), v)
        return einops.rearrange(out, "(b h) t o -> b t (h o)", b=b)

    g, f, d, o = 2, 8, 6, 7
    return ffn, (leaf(2, 5, 4, d), leaf(g, d, f, fan=d), leaf(g, d, f, fan=d), leaf(g, f, o, fan=f))


@case
def grouped_conv():
    "channels first: one grouped convolution for both scores, another for the values"

    class Conv(nn.Module):
        def __init__(self, h=3, f=7, d=6):
            super().__init__()
            self.h, self.f = h, f
            self.inner = nn.Conv1d(h * d, h * 2 * f, kernel_size=1, groups=h)
            self.outer = nn.Conv1d(h * f, h * d, kernel_size=1, groups=h)

        def forward(self, x):
            gate, up = self.inner(x).unflatten(1, (self.h, 2, self.f)).unbind(2)
            return self.outer((F.silu(gate) * up).flatten(1, 2))

    return Conv(), (torch.randn(2, 18, 5),)


@case
def functional_conv_of_all_heads():
    "F.conv1d with groups over raw weights, the sub-networks as one more channel axis, routing channels first"

    def flash(x, wk, wu, wv, r):
        b, h, e, t = r.shape
        gate = F.conv1d(x, wk.unsqueeze(-1), groups=h)
        up = F.conv1d(x, wu.unsqueeze(-1), groups=h)
        hidden = (F.silu(gate) * up).view(b, h, e, -1, t) * r.unsqueeze(3)
        return F.conv1d(hidden.view(b, -1, t), wv.unsqueeze(-1), groups=h)

    h, e, f, d = 3, 4, 7, 6
    return flash, (
        leaf(2, h * d, 5),
        leaf(h * e * f, d, fan=d),
        leaf(h * e * f, d, fan=d),
        leaf(h * d, e * f, fan=f),
        torch.rand(2, h, e, 5),
    )


@case
def modules_of_modules():
    "a ModuleList over heads of a ModuleList over sub-networks, mixed by sum()"

    class Net(nn.Module):
        def __init__(self, d, f):
            super().__init__()
            self.k, self.u = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
            self.v = nn.Linear(f, d, bias=False)
            self.act, self.drop = nn.SiLU(), nn.Dropout(0.0)

        def forward(self, q):
            return self.v(self.drop(self.act(self.k(q)) * self.u(q)))

    class Heads(nn.Module):
        def __init__(self, h=2, e=3, f=7, d=6):
            super().__init__()
            self.heads = nn.ModuleList(nn.ModuleList(Net(d, f) for _ in range(e)) for _ in range(h))
            self.routers = nn.ModuleList(nn.Linear(d, e) for _ in range(h))

        def forward(self, x):
            outs = []
            for q, nets, router in zip(x.chunk(len(self.heads), -1), self.heads, self.routers, strict=True):
                r = router(q).softmax(-1)
                outs.append(sum(r[..., i : i + 1] * net(q) for i, net in enumerate(nets)))
            return torch.cat(outs, -1)

    return Heads(), (torch.randn(2, 5, 12),)


@case
def subnetworks_without_heads():
    "tensordot over a single head, every sub-network, dense routing as in a soft mixture of experts"

    def experts(x, k, u, v, wr):
        r = torch.softmax(x @ wr, dim=-1)
        gate = torch.tensordot(x, k, dims=([-1], [-1]))
        up = torch.tensordot(x, u, dims=([-1], [-1]))
        return torch.tensordot(F.gelu(gate) * up * r[..., None], v, dims=2)

    e, f, d, o = 4, 8, 6, 7
    return experts, (
        leaf(2, 5, d),
        leaf(e, f, d, fan=d),
        leaf(e, f, d, fan=d),
        leaf(e, f, o, fan=f),
        leaf(d, e, fan=d),
    )


@case
def fp32_gating():
    "scores cast up for the gating, back before the values, routing in float32 too"

    class Mixed(nn.Module):
        def __init__(self, h=3, e=4, f=7, d=6):
            super().__init__()
            self.k, self.u = weight(h, e, f, d, fan=d), weight(h, e, f, d, fan=d)
            self.v = weight(h, e, f, d, fan=f)
            self.router = weight(h, d, e, fan=d)

        def forward(self, x):
            wide = torch.promote_types(x.dtype, torch.float32)
            r = torch.softmax(torch.einsum("bthd,hde->bthe", x.to(wide), self.router.to(wide)), dim=-1)
            gate = torch.einsum("bthd,hefd->bthef", x, self.k).to(wide)
            up = torch.einsum("bthd,hefd->bthef", x, self.u).to(wide)
            hidden = (gate * torch.sigmoid(gate) * up * r[..., None]).to(x.dtype)
            return torch.einsum("bthef,hefo->btho", hidden, self.v)

    return Mixed(), (torch.randn(2, 5, 3, 6),)


@case
def padded_tokens():
    "the routing of padding is masked away, accumulation in float32"

    def flash(q, k, u, v, logits, keep):
        wide = torch.promote_types(q.dtype, torch.float32)
        r = logits.softmax(-1) * keep[:, None, :, None]
        out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=wide, device=q.device)
        for e in range(k.shape[1]):
            hidden = F.silu(q @ k[:, e].mT) * (q @ u[:, e].mT)
            out += (r[..., e : e + 1] * (hidden @ v[:, e])).to(wide)
        return out.to(q.dtype)

    h, e, f, d, o = 4, 3, 8, 6, 5
    return flash, (
        leaf(2, h, 7, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        leaf(2, h, 7, e),
        torch.tensor([[1.0] * 7, [1.0] * 4 + [0.0] * 3]),
    )


@case
def multihead_glu():
    "sigmoid gates by F.glu: the second half is the gate"

    class GLU(nn.Module):
        def __init__(self, h=3, f=7, d=6, o=5):
            super().__init__()
            self.h = h
            self.wi = weight(h, d, 2 * f, fan=d)
            self.wo = weight(h, f, o, fan=f)

        def forward(self, x):
            q = x.unflatten(-1, (self.h, -1)).transpose(-3, -2)
            return (F.glu(q @ self.wi, dim=-1) @ self.wo).transpose(-3, -2).flatten(-2)

    return GLU(), (torch.randn(2, 8, 18),)


@case
def bilinear_heads():
    "no activation: a product of two linear maps, contracted with the values at once"

    def bilinear(q, k, u, v, r):
        gate = torch.einsum("bthd,hefd->bthef", q, k)
        up = torch.einsum("bthd,hefd->bthef", q, u)
        return torch.einsum("bthef,bthef,hefo,bthe->btho", gate, up, v, r)

    h, e, f, d, o = 3, 4, 8, 6, 5
    return bilinear, (
        leaf(2, 7, h, d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, d, fan=d),
        leaf(h, e, f, o, fan=f),
        torch.rand(2, 7, h, e),
    )


@case
def block_diagonal():
    "heads as blocks on the diagonal of dense weights"

    class Blocks(nn.Module):
        def __init__(self, h=3, f=7, d=6):
            super().__init__()
            self.k = nn.ParameterList(weight(f, d, fan=d) for _ in range(h))
            self.u = nn.ParameterList(weight(f, d, fan=d) for _ in range(h))
            self.v = nn.ParameterList(weight(d, f, fan=f) for _ in range(h))

        def forward(self, x):
            gate = F.linear(x, torch.block_diag(*self.k))
            up = F.linear(x, torch.block_diag(*self.u))
            return F.linear(F.silu(gate) * up, torch.block_diag(*self.v))

    return Blocks(), (torch.randn(2, 5, 18),)


# Without a gate.


@case
def key_value_memories():
    "a feed-forward as key-value memories: relu scores of each head's keys weigh its values"

    class Memory(nn.Module):
        def __init__(self, h=3, slots=8, d=6):
            super().__init__()
            self.h = h
            self.query = weight(h * d, h * d, fan=h * d)
            self.keys, self.values = weight(h, slots, d, fan=d), weight(h, slots, d, fan=slots)

        def forward(self, x):
            q = (x @ self.query).unflatten(-1, (self.h, -1))
            scores = torch.einsum("bthd,hmd->bthm", q, self.keys).relu()
            return x + torch.einsum("bthm,hmd->bthd", scores, self.values).flatten(-2)

    return Memory(), (torch.randn(2, 5, 18),)


@case
def ungated_squared_relu_mixture():
    "squared relu (Primer), no up factor, sub-networks mixed with an out-of-place sum"

    def flash(q, k, v, logits):
        r = torch.softmax(logits, -1)
        out = q.new_zeros(*q.shape[:-1], v.shape[-1])
        for e in range(k.shape[1]):
            a = torch.relu(torch.einsum("bthd,hfd->bthf", q, k[:, e]))
            out = out + torch.einsum("bthf,hfo,bth->btho", a * a, v[:, e], r[..., e])
        return out

    h, e, f, d, o = 3, 4, 8, 6, 5
    return flash, (leaf(2, 7, h, d), leaf(h, e, f, d, fan=d), leaf(h, e, f, o, fan=f), leaf(2, 7, h, e))


@case
def ungated_gelu_heads():
    "MH-FFN of the original transformer kind: two biased layers for each head, gelu by erfc"

    def ffn(x, w1, b1, w2, b2):
        a = torch.einsum("bthd,hdf->bthf", x, w1) + b1
        a = 0.5 * a * torch.erfc(-a * math.sqrt(0.5))
        return torch.einsum("bthf,hfo->btho", a, w2) + b2

    h, f, d, o = 3, 8, 6, 5
    return ffn, (
        leaf(2, 7, h, d),
        leaf(h, d, f, fan=d),
        leaf(h, f, fan=4),
        leaf(h, f, o, fan=f),
        leaf(h, o, fan=4),
    )


@case
def ungated_silu_grouped():
    "no up factor, silu, query heads that share keys by broadcasting"

    def ffn(q, k, v, r):
        q = q.unflatten(1, (k.shape[0], -1))
        a = F.silu(q @ k[:, None].mT)
        out = (a @ v[:, None]).flatten(1, 2)
        return out * r

    g, f, d, o = 2, 8, 6, 5
    return ffn, (leaf(2, 4, 7, d), leaf(g, f, d, fan=d), leaf(g, f, o, fan=f), leaf(2, 4, 7, 1))


@case
def ungated_dense_tanh_gelu():
    "GPT-2: addmm over flat tokens, gelu with a sigmoid of twice the argument"

    class MLP(nn.Module):
        def __init__(self, d=9, f=14):
            super().__init__()
            self.w1, self.b1 = weight(d, f, fan=d), weight(f, fan=4)
            self.w2, self.b2 = weight(f, d, fan=f), weight(d, fan=4)

        def forward(self, x):
            a = torch.addmm(self.b1, x.view(-1, x.shape[-1]), self.w1)
            a = a * torch.sigmoid(2 * math.sqrt(2 / math.pi) * a * (1 + 0.044715 * a * a))
            return x + torch.addmm(self.b2, a, self.w2).view(x.shape)

    return MLP(), (torch.randn(2, 7, 9),)


# Dense: one head, one sub-network.


@case
def dense_raw_parameters():
    "three matrices, three products, pre-norm by hand and a residual"

    class SwiGLU(nn.Module):
        def __init__(self, d=10, f=16):
            super().__init__()
            self.g = nn.Parameter(torch.ones(d))
            self.w1, self.w3, self.w2 = weight(d, f, fan=d), weight(d, f, fan=d), weight(f, d, fan=f)

        def forward(self, x):
            y = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.g
            gate = y @ self.w1
            return x + ((gate / (1 + torch.exp(-gate))) * (y @ self.w3)) @ self.w2

    return SwiGLU(), (torch.randn(2, 7, 10),)


@case
def dense_llama():
    "Llama in one line"

    class MLP(nn.Module):
        def __init__(self, d=10, f=14):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
            self.down_proj = nn.Linear(f, d, bias=False)

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    return MLP(), (torch.randn(2, 7, 10),)


@case
def dense_fused_chunk():
    "gate and up in one Linear, chunked (Phi-3, GLM), with the squared relu as relu(x) * x"

    class MLP(nn.Module):
        def __init__(self, d=10, f=14):
            super().__init__()
            self.gate_up = nn.Linear(d, 2 * f, bias=False)
            self.down = nn.Linear(f, d, bias=False)
            self.post = nn.Identity()

        def forward(self, x):
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            return x + self.post(self.down(F.relu(gate) * gate * up))

    return MLP(), (torch.randn(2, 7, 10),)


@case
def dense_gate_second():
    "one matrix for both, the up half first, slices by hand, float32 around the gating"

    def mlp(x, wi, wo):
        f = wo.shape[0]
        both = x @ wi
        up, gate = both[..., :f], both[..., f:]
        wide = gate.to(torch.promote_types(x.dtype, torch.float32))
        return (up * (wide * wide.sigmoid()).to(x.dtype)) @ wo

    return mlp, (leaf(7, 9), leaf(9, 24, fan=9), leaf(12, 9, fan=12))


@case
def dense_view_of_halves():
    "both scores in one matrix, an axis of two by view, in-place silu"

    def mlp(x, wi, wo):
        both = torch.nn.functional.linear(x, wi).view(*x.shape[:-1], 2, -1)
        gate, up = both.select(-2, 0), both.select(-2, 1)
        return F.linear(F.silu(gate).mul_(up), wo)

    return mlp, (leaf(2, 7, 9), leaf(24, 9, fan=9), leaf(9, 12, fan=12))


@case
def dense_interleaved():
    "gate and up alternate in the rows of one matrix, with a bias for both and for the output"

    class Interleaved(nn.Module):
        def __init__(self, d=9, f=12):
            super().__init__()
            self.wi, self.bi = weight(2 * f, d, fan=d), weight(2 * f, fan=4)
            self.wo, self.bo = weight(d, f, fan=f), weight(d, fan=4)

        def forward(self, x):
            both = F.linear(x, self.wi, self.bi)
            gate, up = both[..., ::2], both[..., 1::2]
            return F.linear(up * F.silu(gate), self.wo, self.bo)

    return Interleaved(), (torch.randn(2, 7, 9),)


@case
def dense_multipliers():
    "multipliers of maximal update parametrisation on gate and output (Falcon-H1)"

    class MLP(nn.Module):
        def __init__(self, d=10, f=14, multipliers=(0.75, 1.5)):
            super().__init__()
            self.gate_multiplier, self.down_multiplier = multipliers
            self.wg, self.wu, self.wd = weight(f, d, fan=d), weight(f, d, fan=d), weight(d, f, fan=f)

        def forward(self, x):
            y = (x @ self.wu.T) * F.silu(x @ self.wg.T * self.gate_multiplier)
            return y @ self.wd.T * self.down_multiplier

    return MLP(), (torch.randn(2, 7, 10),)


@case
def dense_inner_products():
    "torch.inner against the rows of the weights, relu squared as a product with itself"

    def reglu(x, k, u, v):
        gate = torch.inner(x, k)
        return torch.inner(torch.square(F.relu(gate)) * torch.inner(x, u), v)

    return reglu, (leaf(2, 7, 9), leaf(12, 9, fan=9), leaf(12, 9, fan=9), leaf(9, 12, fan=12))


@case
def dense_flat_addmm():
    "tokens flattened, addmm with biases, silu as half of one plus tanh of the half"

    def mlp(x, w1, b1, w3, b3, w2, b2):
        flat = x.reshape(-1, x.shape[-1])
        gate = torch.addmm(b1, flat, w1)
        hidden = 0.5 * gate * (1 + torch.tanh(0.5 * gate)) * torch.addmm(b3, flat, w3)
        return torch.addmm(b2, hidden, w2).unflatten(0, x.shape[:-1])

    d, f, o = 9, 12, 8
    return mlp, (
        leaf(2, 7, d),
        leaf(d, f, fan=d),
        leaf(f, fan=4),
        leaf(d, f, fan=d),
        leaf(f, fan=4),
        leaf(f, o, fan=f),
        leaf(o, fan=4),
    )


@case
def dense_mm_in_place():
    "2-D tokens, mm, and everything after it in place"

    def mlp(x, w1, w3, w2):
        hidden = torch.mm(x, w1)
        hidden = F.silu(hidden, inplace=True)
        hidden = hidden.mul_(torch.mm(x, w3))
        return torch.mm(hidden, w2)

    return mlp, (leaf(7, 9), leaf(9, 12, fan=9), leaf(9, 12, fan=9), leaf(12, 8, fan=12))


@case
def dense_conv():
    "pointwise convolutions of a sequence, chunks of the channels"

    class PointWise(nn.Module):
        def __init__(self, d=9, f=12):
            super().__init__()
            self.inner, self.outer = nn.Conv1d(d, 2 * f, 1), nn.Conv1d(f, d, 1)
            self.act, self.drop = nn.GELU("tanh"), nn.Dropout(0.1)

        def forward(self, x):
            gate, up = self.inner(x.transpose(1, 2)).chunk(2, dim=1)
            return x + self.outer(self.drop(self.act(gate) * up)).transpose(1, 2)

    return PointWise().eval(), (torch.randn(2, 7, 9),)


@case
def dense_bilinear():
    "the bilinear layer of interpretability work, split of one projection, nothing around it"

    def bilinear(x, w, p):
        left, right = (x @ w).split(w.shape[1] // 2, dim=-1)
        return left * right @ p

    return bilinear, (leaf(2, 7, 9), leaf(9, 24, fan=9), leaf(12, 9, fan=12))


CASES = [value for value in globals().values() if isinstance(value, Case)]
