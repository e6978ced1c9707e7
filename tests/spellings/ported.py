"""Feed-forwards as those write them who port from JAX, from Triton references and from papers on numerics."""

from __future__ import annotations

import functools
import math

import einops
import torch
import torch.nn.functional as F
from torch import nn

from tests.spellings.case import Case, case


def normal(*shape, fan=1):
    """A parameter of normal entries, of variance 1 / fan."""
    return nn.Parameter(torch.randn(shape) / math.sqrt(fan))


def wide(x):
    """At least float32, as references accumulate."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Einsum, as JAX programs have it.


@case
def letters_of_a_jax_paper():
    "jnp.einsum with capital letters and kernels [H, D, E, F]; sub-networks and width summed at once"

    def layer(x, w_gate, w_up, w_down):
        gate = torch.einsum("BTHD,HDEF->BTHEF", x, w_gate)
        up = torch.einsum("BTHD,HDEF->BTHEF", x, w_up)
        return torch.einsum("BTHEF,HEFO->BTHO", F.silu(gate) * up, w_down)

    q = torch.randn(2, 7, 3, 5)
    return layer, (q, normal(3, 5, 4, 6, fan=5), normal(3, 5, 4, 6, fan=5), normal(3, 4, 6, 8, fan=24))


@case
def kernel_with_an_axis_of_two():
    "MaxText: one kernel [embed, 2, mlp], gate and up taken out of the axis in the middle"

    class MlpBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.wi = normal(10, 2, 16, fan=10)
            self.wo = normal(16, 10, fan=16)

        def forward(self, inputs):
            x = torch.einsum("bsd,dnf->bsnf", inputs, self.wi)
            x = torch.multiply(F.silu(x[:, :, 0, :]), x[:, :, 1, :])
            return torch.einsum("bsf,fd->bsd", x, self.wo)

    return MlpBlock(), (torch.randn(2, 7, 10),)


@case
def gated_gelu_of_t5x():
    "T5.1.1: wi_0, wi_1 and wo as right-hand kernels, tanh gelu, dropout that does nothing, residual"

    class MlpBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(9))
            self.wi_0, self.wi_1 = normal(9, 14, fan=9), normal(9, 14, fan=9)
            self.wo = normal(14, 9, fan=14)
            self.dropout = nn.Dropout(0.1)

        def norm(self, x):
            mean2 = torch.mean(torch.square(wide(x)), dim=-1, keepdim=True)
            return (wide(x) * torch.rsqrt(mean2 + 1e-6)).to(x.dtype) * self.scale

        def forward(self, x):
            y = self.norm(x)
            activations = [F.gelu(torch.matmul(y, self.wi_0), approximate="tanh"), torch.matmul(y, self.wi_1)]
            y = functools.reduce(torch.multiply, activations)
            return x + self.dropout(torch.matmul(self.dropout(y), self.wo))

    return MlpBlock().eval(), (torch.randn(2, 6, 9),)


@case
def einsum_by_numbers():
    "operands with lists of axis numbers instead of a string"

    def layer(q, k, u, v, r):
        b, t, h, e, f, d, o = range(7)
        gate = torch.einsum(q, [b, t, h, d], k, [h, e, f, d], [b, t, h, e, f])
        up = torch.einsum(q, [b, t, h, d], u, [h, e, f, d], [b, t, h, e, f])
        hidden = torch.relu(gate) * up
        hidden = torch.einsum(hidden, [b, t, h, e, f], r, [b, t, h, e], [b, t, h, e, f])
        return torch.einsum(hidden, [b, t, h, e, f], v, [h, e, f, o], [b, t, h, o])

    weights = (normal(4, 3, 6, 5, fan=5), normal(4, 3, 6, 5, fan=5), normal(4, 3, 6, 8, fan=18))
    return layer, (torch.randn(2, 7, 4, 5), *weights, torch.rand(2, 7, 4, 3).requires_grad_())


@case
def three_operands_in_one_einsum():
    "routing weight, activations and values in one contraction; ellipsis for the tokens, flat here"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_q = normal(12, 3, 4, fan=12)
            self.w_r = normal(12, 3, 2, fan=12)
            self.w_ku = normal(2, 3, 2, 7, 4, fan=4)
            self.w_v = normal(3, 2, 7, 5, fan=14)
            self.w_o = normal(3, 5, 12, fan=15)

        def forward(self, x):
            q = torch.einsum("...m,mhd->...hd", x, self.w_q)
            route = torch.einsum("...m,mhe->...he", x, self.w_r).softmax(-1)
            gate, up = torch.einsum("...hd,phefd->p...hef", q, self.w_ku)
            y = torch.einsum("...he,...hef,hefo->...ho", route, F.silu(gate) * up, self.w_v)
            return torch.einsum("...ho,hom->...m", y, self.w_o)

    return Layer(), (torch.randn(9, 12),)


@case
def dense_experts_of_gshard():
    "expert axis first, all experts on all tokens, combine weights of the two best renormalised"

    class DenseMoE(nn.Module):
        def __init__(self):
            super().__init__()
            self.wg = normal(10, 4, fan=10)
            self.wi, self.wu = normal(4, 10, 6, fan=10), normal(4, 10, 6, fan=10)
            self.wo = normal(4, 6, 10, fan=6)

        def forward(self, x):
            gates = torch.softmax(wide(torch.einsum("gsm,me->gse", x, self.wg)), dim=-1)
            _, chosen = torch.topk(gates, 2, dim=-1)
            gates = gates * F.one_hot(chosen, 4).sum(dim=-2).to(gates.dtype)
            combine = (gates / gates.sum(dim=-1, keepdim=True)).to(x.dtype)
            h = F.silu(torch.einsum("gsm,emf->egsf", x, self.wi)) * torch.einsum("gsm,emf->egsf", x, self.wu)
            expert_outputs = torch.einsum("egsf,efm->egsm", h, self.wo)
            return torch.einsum("gse,egsm->gsm", combine, expert_outputs)

    return DenseMoE(), (torch.randn(2, 7, 10),)


@case
def dot_general_with_dimension_numbers():
    "lax.dot_general rebuilt on bmm: batch axes first, then the free axes of the left and of the right"

    def dot_general(lhs, rhs, contract, batch):
        (lc, rc), (lb, rb) = contract, batch
        lf = [a for a in range(lhs.dim()) if a not in (*lc, *lb)]
        rf = [a for a in range(rhs.dim()) if a not in (*rc, *rb)]
        shape = [lhs.shape[a] for a in (*lb, *lf)] + [rhs.shape[a] for a in rf]
        many = math.prod([lhs.shape[a] for a in lb])
        inner = math.prod([lhs.shape[a] for a in lc])
        left = lhs.permute(*lb, *lf, *lc).reshape(many, -1, inner)
        right = rhs.permute(*rb, *rc, *rf).reshape(many, inner, -1)
        return torch.bmm(left, right).reshape(shape)

    def layer(q, k, u, v, r):
        gate = dot_general(q, k, ((3,), (3,)), ((2,), (0,)))  # h b t e f
        up = dot_general(q, u, ((3,), (3,)), ((2,), (0,)))
        hidden = gate * torch.sigmoid(gate) * up * r.permute(2, 0, 1, 3)[..., None]
        return dot_general(hidden, v, ((3, 4), (1, 2)), ((0,), (0,))).movedim(0, 2)

    weights = (normal(3, 4, 6, 5, fan=5), normal(3, 4, 6, 5, fan=5), normal(3, 4, 6, 8, fan=24))
    return layer, (torch.randn(2, 7, 3, 5), *weights, torch.rand(2, 7, 3, 4))


# vmap.


@case
def vmap_twice_over_tokens():
    "the function of one token, on vectors, mapped over the sequence and over the batch"

    def one_token(x, w_gate, w_up, w_down):
        return w_down @ (F.silu(w_gate @ x) * (w_up @ x))

    def layer(x, *params):
        over_time = torch.vmap(one_token, in_dims=(0, None, None, None))
        return torch.vmap(over_time, in_dims=(0, None, None, None))(x, *params)

    weights = (normal(14, 9, fan=9), normal(14, 9, fan=9), normal(9, 14, fan=14))
    return layer, (torch.randn(2, 6, 9), *weights)


@case
def vmap_over_heads():
    "one head as plain matrices, mapped over the head axes of queries [B, T, H, D] and kernels"

    class MultiHeadFFN(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_q = nn.Linear(20, 20, bias=False)
            self.k, self.u = normal(4, 5, 7, fan=5), normal(4, 5, 7, fan=5)
            self.v = normal(4, 7, 6, fan=7)

        @staticmethod
        def head(q, k, u, v):
            return (F.silu(q @ k) * (q @ u)) @ v

        def forward(self, x):
            q = self.w_q(x).unflatten(-1, (4, 5))
            y = torch.vmap(self.head, in_dims=(2, 0, 0, 0), out_dims=2)(q, self.k, self.u, self.v)
            return y.flatten(-2)

    return MultiHeadFFN(), (torch.randn(2, 9, 20),)


@case
def vmap_over_heads_of_vmap_over_subnetworks():
    "vmap in vmap; the inner results are weighted by the router and summed inside the head"

    def subnetwork(q, k, u, v, r):
        return r[:, None] * ((F.gelu(q @ k.mT) * (q @ u.mT)) @ v)

    def head(q, k, u, v, r):
        return torch.vmap(subnetwork, in_dims=(None, 0, 0, 0, 1))(q, k, u, v, r).sum(0)

    def layer(q, k, u, v, logits):
        r = torch.softmax(logits, dim=-1)
        return torch.vmap(head, in_dims=(1, 0, 0, 0, 1), out_dims=1)(q, k, u, v, r)

    weights = (normal(3, 4, 7, 6, fan=6), normal(3, 4, 7, 6, fan=6), normal(3, 4, 7, 5, fan=28))
    return layer, (torch.randn(8, 3, 6), *weights, torch.randn(8, 3, 4).requires_grad_())


@case
def vmap_over_subnetworks():
    "each sub-network a small function of all heads, mapped; the weighted sum by einsum afterwards"

    def subnetwork(q, k, u, v):
        gate = torch.einsum("bthd,hfd->bthf", q, k)
        up = torch.einsum("bthd,hfd->bthf", q, u)
        return torch.einsum("bthf,hfo->btho", gate / (1 + torch.exp(-gate)) * up, v)

    def layer(q, k, u, v, r):
        y = torch.vmap(subnetwork, in_dims=(None, 1, 1, 1), out_dims=3)(q, k, u, v)
        return torch.einsum("bthe,btheo->btho", r, y)

    weights = (normal(4, 3, 6, 5, fan=5), normal(4, 3, 6, 5, fan=5), normal(4, 3, 6, 7, fan=18))
    return layer, (torch.randn(2, 8, 4, 5), *weights, torch.rand(2, 8, 4, 3).requires_grad_())


@case
def vmap_over_heads_stored_as_columns():
    "kernels [d_model, heads * F] viewed and mapped over their middle axis, ungated, tanh gelu written out"

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))

    def head(x, k, v):
        return gelu(x @ k) @ v

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = normal(5, 3 * 8, fan=5)
            self.v = normal(8, 3 * 6, fan=8)

        def forward(self, x):
            k, v = self.k.view(5, 3, 8), self.v.view(8, 3, 6)
            y = torch.vmap(head, in_dims=(-2, 1, 1), out_dims=-2)(x.view(2, 7, 3, 5), k, v)
            return y.reshape(2, 7, 18)

    return Layer(), (torch.randn(2, 7, 15),)


# einops.


@case
def einops_einsum_with_words():
    "einops.einsum throughout, long names, the router softmaxed over sub-networks"

    def layer(x, w_q, w_r, w_gate, w_up, w_out):
        q = einops.einsum(x, w_q, "batch time model, model head key -> batch time head key")
        r = einops.einsum(x, w_r, "batch time model, model head net -> batch time head net").softmax(dim=-1)
        gate = einops.einsum(q, w_gate, "batch time head key, head net key mlp -> batch time head net mlp")
        up = einops.einsum(q, w_up, "batch time head key, head net key mlp -> batch time head net mlp")
        weighted = "batch time head net, batch time head net mlp -> batch time head net mlp"
        hidden = einops.einsum(r, F.silu(gate) * up, weighted)
        values = "batch time head net mlp, head net mlp value -> batch time head value"
        return einops.einsum(hidden, w_out, values)

    kernels = (normal(3, 2, 5, 8, fan=5), normal(3, 2, 5, 8, fan=5), normal(3, 2, 8, 6, fan=16))
    return layer, (torch.randn(2, 7, 10), normal(10, 3, 5, fan=10), normal(10, 3, 2, fan=10), *kernels)


@case
def heads_in_the_batch_by_einops():
    "(b h) t d and kernels repeated over the batch, all three products bmm"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q = nn.Linear(18, 18, bias=False)
            self.k, self.u = normal(3, 2, 7, 6, fan=6), normal(3, 2, 7, 6, fan=6)
            self.v = normal(3, 2, 7, 6, fan=14)
            self.to_r = nn.Linear(18, 6)
            self.to_out = nn.Linear(18, 18)

        def forward(self, x):
            b = x.shape[0]
            q = einops.rearrange(self.to_q(x), "b t (h d) -> (b h) t d", h=3)
            k, u = (einops.repeat(w, "h e f d -> (b h) d (e f)", b=b) for w in (self.k, self.u))
            v = einops.repeat(self.v, "h e f d -> (b h) (e f) d", b=b)
            r = einops.rearrange(self.to_r(x), "b t (h e) -> (b h) t e", h=3).softmax(-1)
            hidden = F.silu(torch.bmm(q, k)) * torch.bmm(q, u)
            hidden = hidden * einops.repeat(r, "bh t e -> bh t (e f)", f=7)
            return self.to_out(einops.rearrange(torch.bmm(hidden, v), "(b h) t d -> b t (h d)", b=b))

    return Layer(), (torch.randn(2, 5, 18),)


@case
def einops_reduce_for_every_sum():
    "no matrix product at all: axes of one, multiply, einops.reduce"

    def layer(q, k, u, v, r):
        q = einops.rearrange(q, "b t (h d) -> b t h 1 1 d", h=3)
        gate = einops.reduce(q * k, "b t h e f d -> b t h e f", "sum")
        up = einops.reduce(q * u, "b t h e f d -> b t h e f", "sum")
        hidden = torch.square(torch.relu(gate)) * up
        y = einops.reduce(hidden.unsqueeze(-1) * v, "b t h e f o -> b t h e o", "sum")
        return einops.reduce(y * r.unsqueeze(-1), "b t h e o -> b t (h o)", "sum")

    weights = (normal(3, 2, 7, 5, fan=5), normal(3, 2, 7, 5, fan=5), normal(3, 2, 7, 4, fan=14))
    return layer, (torch.randn(2, 6, 15), *weights, torch.rand(2, 6, 3, 2))


@case
def einops_unpacks_interleaved_pairs():
    "one projection of all heads whose innermost axis is the pair gate, up"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.wi = normal(4, 6, 3 * 5 * 2, fan=6)
            self.wo = normal(4, 3 * 5, 7, fan=15)

        def forward(self, x):
            x = einops.rearrange(x, "b t (h d) -> b h t d", h=4)
            gate, up = einops.rearrange(x @ self.wi, "b h t (f two) -> two b h t f", two=2)
            return einops.rearrange((F.silu(gate) * up) @ self.wo, "b h t o -> b t (h o)")

    return Layer(), (torch.randn(2, 9, 24),)


@case
def einops_repeats_shared_kernels():
    "two kernels for four query heads, repeated as in grouped-query attention; queries normalised per head"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_scale = nn.Parameter(1 + 0.1 * torch.randn(5))
            self.k, self.u = normal(2, 3, 6, 5, fan=5), normal(2, 3, 6, 5, fan=5)
            self.v = normal(2, 3, 6, 7, fan=18)
            self.w_r = normal(20, 4, 3, fan=20)

        def forward(self, x):
            q = einops.rearrange(x, "b t (h d) -> b t h d", d=5)
            q = q * torch.rsqrt(einops.reduce(q.pow(2), "b t h d -> b t h 1", "mean") + 1e-6) * self.q_scale
            k, u, v = (einops.repeat(w, "k e f d -> (k g) e f d", g=2) for w in (self.k, self.u, self.v))
            r = torch.tensordot(x, self.w_r, dims=1).softmax(-1)
            hidden = F.silu(torch.einsum("bthd,hefd->bthef", q, k)) * torch.einsum("bthd,hefd->bthef", q, u)
            y = einops.einsum(hidden, v, r, "b t h e f, h e f o, b t h e -> b t h o")
            return einops.rearrange(y, "b t h o -> b t (h o)")

    return Layer(), (torch.randn(2, 7, 20),)


@case
def group_as_its_own_axis():
    "query heads (k g) kept as two axes, kernels broadcast over the group by matmul"

    def layer(x, k, u, v):
        q = einops.rearrange(x, "b t (k g d) -> b k g t d", k=2, g=3)
        hidden = F.gelu(q @ k[:, None].mT, approximate="tanh") * (q @ u[:, None].mT)
        return einops.rearrange(hidden @ v[:, None], "b k g t o -> b t (k g o)")

    weights = (normal(2, 9, 4, fan=4), normal(2, 9, 4, fan=4), normal(2, 9, 5, fan=9))
    return layer, (torch.randn(2, 7, 24), *weights)


# Broadcasting, tensordot and other products that are no matmul.


@case
def broadcast_multiply_and_sum():
    "x[..., None] * w and sum, as numerics papers write reference code; flat tokens"

    def layer(q, k, u, v, r):
        q = q[:, :, None, None, :]
        s = (q * k[None]).sum(dim=-1)
        p = s * (q * u[None]).sum(dim=-1) * torch.exp(s) / (1 + torch.exp(s))
        return (r[..., None] * (p[..., None] * v[None]).sum(dim=3)).sum(dim=2)

    weights = (normal(3, 4, 6, 5, fan=5), normal(3, 4, 6, 5, fan=5), normal(3, 4, 6, 7, fan=24))
    return layer, (torch.randn(8, 3, 5), *weights, torch.rand(8, 3, 4).requires_grad_())


@case
def tensordot_for_each_head():
    "heads unbound, sub-networks and width contracted at once by tensordot"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.u = normal(3, 4, 7, 5, fan=5), normal(3, 4, 7, 5, fan=5)
            self.v = normal(3, 4, 7, 6, fan=28)
            self.route = normal(15, 3, 4, fan=15)

        def forward(self, x):
            r = torch.softmax(torch.tensordot(x, self.route, dims=([2], [0])), dim=-1)
            outs = []
            for q, r_h, k, u, v in zip(x.split(5, dim=-1), r.unbind(2), self.k, self.u, self.v, strict=True):
                hidden = F.silu(torch.tensordot(q, k, dims=([-1], [-1])))
                hidden = hidden * torch.tensordot(q, u, dims=([-1], [-1])) * r_h[..., None]
                outs.append(torch.tensordot(hidden, v, dims=2))
            return torch.cat(outs, dim=-1)

    return Layer(), (torch.randn(2, 8, 15),)


@case
def tensordot_dense_with_three_biases():
    "one head, tensordot with dims=1, biases on gate, up and output"

    def layer(x, w1, b1, w2, b2, w3, b3):
        gate = torch.add(torch.tensordot(x, w1, dims=1), b1)
        up = torch.add(torch.tensordot(x, w2, dims=1), b2)
        return torch.add(torch.tensordot(F.silu(gate) * up, w3, dims=1), b3)

    first = (normal(9, 13, fan=9), normal(13), normal(9, 13, fan=9), normal(13))
    return layer, (torch.randn(2, 6, 9), *first, normal(13, 7, fan=13), normal(7))


@case
def inner_products_and_erf():
    "torch.inner with row-major weights, 2-D input, the exact gelu by erf"

    def layer(x, keys, ups, values):
        a = torch.inner(x, keys)
        phi = 0.5 * (1 + torch.erf(a / math.sqrt(2)))
        return torch.inner(a * phi * torch.inner(x, ups), values)

    return layer, (torch.randn(7, 10), normal(15, 10, fan=10), normal(15, 10, fan=10), normal(8, 15, fan=15))


@case
def tokens_as_columns():
    "the matrix form of a paper, V (s(K X) * (U X)) with a token in every column, heads as blocks of rows"

    def layer(x, k, u, v):
        x = x.view(3, 5, 9)
        y = v @ (F.silu(k @ x) * (u @ x))
        return y.view(18, 9)

    return layer, (torch.randn(15, 9), normal(3, 8, 5, fan=5), normal(3, 8, 5, fan=5), normal(3, 6, 8, fan=8))


@case
def bias_as_an_extra_coordinate():
    "homogeneous coordinates: queries end in a one, the last column of keys and ups is the bias"

    def layer(q, k, u, v):
        q = torch.cat([q, torch.ones_like(q[..., :1])], dim=-1)
        hidden = F.silu(torch.einsum("nhd,hfd->nhf", q, k)) * torch.einsum("nhd,hfd->nhf", q, u)
        return torch.einsum("nhf,hfo->nho", hidden, v)

    weights = (normal(4, 7, 6, fan=6), normal(4, 7, 6, fan=6), normal(4, 7, 8, fan=7))
    return layer, (torch.randn(9, 4, 5), *weights)


@case
def bilinear_by_tensordot():
    "no activation: the product of two linear maps, by tensordot, a learned weight for each sub-network"

    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = normal(3, 8, 15, fan=15), normal(3, 8, 15, fan=15)
            self.out = normal(3, 8, 6, fan=8)
            self.mix = normal(3)

        def forward(self, x):
            a = torch.tensordot(x, self.left, dims=([-1], [-1]))
            b = torch.tensordot(x, self.right, dims=([-1], [-1]))
            return torch.einsum("bthf,hfo,h->bto", a * b, self.out, self.mix)

    return Bilinear(), (torch.randn(2, 7, 15),)


# References of Triton kernels, and accumulators.


@case
def tiles_of_the_width_with_an_accumulator():
    "a kernel's reference: float32 inside, a loop over tiles of the width, += into an accumulator"

    def reference(q, k, u, v, tile=4):
        dtype = q.dtype
        q, k, u, v = wide(q), wide(k), wide(u), wide(v)
        acc = torch.zeros(q.shape[0], q.shape[1], v.shape[-1], dtype=q.dtype, device=q.device)
        for start in range(0, k.shape[1], tile):
            rows = slice(start, start + tile)
            s = torch.matmul(q, k[:, rows].transpose(-1, -2))
            g = torch.matmul(q, u[:, rows].transpose(-1, -2))
            p = s * torch.sigmoid(s) * g
            acc += torch.matmul(p, v[:, rows])
        return acc.to(dtype)

    weights = (normal(3, 12, 5, fan=5), normal(3, 12, 5, fan=5), normal(3, 12, 6, fan=12))
    return reference, (torch.randn(3, 8, 5), *weights)


@case
def halves_of_the_inner_sum():
    "split-K: the scores are sums of two products over halves of the head width"

    def layer(q, k, u, v):
        lo, hi = slice(0, 4), slice(4, 8)
        s = torch.bmm(q[..., lo], k[:, lo]) + torch.bmm(q[..., hi], k[:, hi])
        g = torch.bmm(q[..., lo], u[:, lo]) + torch.bmm(q[..., hi], u[:, hi])
        return torch.bmm(F.silu(s) * g, v)

    weights = (normal(3, 8, 11, fan=8), normal(3, 8, 11, fan=8), normal(3, 11, 6, fan=11))
    return layer, (torch.randn(3, 7, 8), *weights)


@case
def baddbmm_into_the_accumulator():
    "heads first, acc.baddbmm_ for each sub-network, the routing weight on the activations"

    def layer(q, k, u, v, r):
        acc = q.new_zeros(q.shape[0], q.shape[1], v.shape[-1])
        for e in range(k.shape[1]):
            hidden = F.silu(torch.bmm(q, k[:, e].mT)).mul_(torch.bmm(q, u[:, e].mT))
            acc.baddbmm_(hidden * r[:, :, e, None], v[:, e])
        return acc

    weights = (normal(3, 4, 6, 5, fan=5), normal(3, 4, 6, 5, fan=5), normal(3, 4, 6, 7, fan=24))
    return layer, (torch.randn(3, 9, 5), *weights, torch.rand(3, 9, 4).requires_grad_())


@case
def addcmul_accumulates_subnetworks():
    "out = addcmul(out, weight, result) for each sub-network; sigmoid weights over their clamped sum"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(16, 4 * 3)
            self.k, self.u = normal(3, 4, 4, 7, fan=4), normal(3, 4, 4, 7, fan=4)
            self.v = normal(3, 4, 7, 5, fan=21)

        def forward(self, x):
            q = x.unflatten(-1, (4, 4)).swapaxes(1, 2)
            r = torch.sigmoid(self.router(x)).unflatten(-1, (4, 3)).swapaxes(1, 2)
            r = r / r.sum(-1, keepdim=True).clamp(min=1e-6)
            out = torch.zeros((), dtype=x.dtype, device=x.device)
            for e in range(3):
                y = (F.silu(q @ self.k[e]) * (q @ self.u[e])) @ self.v[e]
                out = torch.addcmul(out, r[..., e : e + 1], y)
            return out.swapaxes(1, 2).flatten(2)

    return Layer(), (torch.randn(2, 6, 16),)


@case
def heads_written_into_a_buffer():
    "output allocated once, out[:, :, h] = ... for each head"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.wi = normal(3, 2 * 8, 5, fan=5)
            self.wo = normal(3, 6, 8, fan=8)

        def forward(self, x):
            x = x.view(2, 7, 3, 5)
            out = x.new_empty(2, 7, 3, 6)
            for h in range(3):
                gate, up = F.linear(x[:, :, h], self.wi[h]).tensor_split(2, dim=-1)
                out[:, :, h] = F.linear(F.silu(gate) * up, self.wo[h])
            return out.view(2, 7, 18)

    return Layer(), (torch.randn(2, 7, 15),)


@case
def activations_written_into_a_buffer():
    "one buffer of all activations, filled by sub-network, weighted in place, one product with the values"

    def layer(q, k, u, v, r):
        n, h, _ = q.shape
        _, e, f, o = v.shape
        hidden = torch.empty(n, h, e * f, dtype=q.dtype, device=q.device)
        for i in range(e):
            s = torch.einsum("nhd,hfd->nhf", q, k[:, i])
            hidden[..., i * f : (i + 1) * f] = torch.einsum("nhd,hfd->nhf", q, u[:, i]).mul(F.silu(s))
        hidden.view(n, h, e, f).mul_(r.unsqueeze(-1))
        return torch.bmm(hidden.transpose(0, 1), v.reshape(h, e * f, o)).transpose(0, 1)

    weights = (normal(4, 3, 6, 5, fan=5), normal(4, 3, 6, 5, fan=5), normal(4, 3, 6, 7, fan=18))
    return layer, (torch.randn(9, 4, 5), *weights, torch.rand(9, 4, 3).requires_grad_())


@case
def in_place_on_halves_of_the_projection():
    "frugal with memory: silu in place on a slice of the fused projection, the residual added in place"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up = nn.Linear(10, 2 * 13, bias=False)
            self.down = nn.Linear(13, 10, bias=False)

        def forward(self, x):
            h = self.gate_up(x)
            gate = h[..., :13]
            F.silu(gate, inplace=True)
            return self.down(gate * h[..., 13:]).add_(x)

    return Layer(), (torch.randn(2, 7, 10),)


@case
def sum_by_reduce_of_additions():
    "a generator of sub-network results and functools.reduce; the weight after the values"

    def layer(q, k, u, v, r):
        def subnetwork(e):
            s = torch.einsum("bhtd,hdf->bhtf", q, k[e])
            p = s * torch.special.expit(s) * torch.einsum("bhtd,hdf->bhtf", q, u[e])
            return torch.einsum("bhtf,hfo->bhto", p, v[e]) * r[e, :, :, :, None]

        return functools.reduce(torch.add, (subnetwork(e) for e in range(k.shape[0])))

    weights = (normal(4, 3, 5, 6, fan=5), normal(4, 3, 5, 6, fan=5), normal(4, 3, 6, 7, fan=24))
    return layer, (torch.randn(2, 3, 8, 5), *weights, torch.rand(4, 2, 3, 8).requires_grad_())


@case
def baddbmm_with_biases_on_both_scores():
    "baddbmm adds the biases of gate and up, and that of the output"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2, self.w3 = normal(3, 5, 8, fan=5), normal(3, 5, 8, fan=5), normal(3, 8, 6, fan=8)
            self.b1, self.b2, self.b3 = normal(3, 1, 8), normal(3, 1, 8), normal(3, 1, 6)

        def forward(self, x):
            q = x.reshape(-1, 3, 5).transpose(0, 1)
            p = F.silu(torch.baddbmm(self.b1, q, self.w1)) * torch.baddbmm(self.b2, q, self.w2)
            y = torch.baddbmm(self.b3, p, self.w3)
            return y.transpose(0, 1).reshape(*x.shape[:-1], 18)

    return Layer(), (torch.randn(2, 7, 15),)


@case
def ungated_with_addmm_per_head():
    "one matrix for each head and sub-network, addmm with bias, silu, no second factor; heads concatenated"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.b = normal(3, 2, 5, 7, fan=5), normal(3, 2, 7)
            self.v = normal(3, 2, 7, 4, fan=14)

        def forward(self, x):
            out = []
            for h, q in enumerate(x.tensor_split(3, dim=-1)):
                acc = 0
                for e in range(2):
                    acc = acc + F.silu(torch.addmm(self.b[h, e], q, self.k[h, e])) @ self.v[h, e]
                out.append(acc)
            return torch.hstack(out)

    return Layer(), (torch.randn(8, 15),)


# Odd layouts of weights.


@case
def one_flat_parameter_in_slices():
    "theta is a vector as optimisers have it; each kernel a view of a stretch of it"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.shapes = {"k": (3, 4, 6, 5), "u": (3, 4, 6, 5), "v": (3, 4, 6, 7), "w": (3, 4)}
            self.theta = normal(sum(math.prod(s) for s in self.shapes.values()), fan=8)

        def weights(self):
            at = 0
            for shape in self.shapes.values():
                yield self.theta[at : at + math.prod(shape)].view(shape)
                at += math.prod(shape)

        def forward(self, x):
            k, u, v, w = self.weights()
            q = x.view(2, 6, 3, 5)
            hidden = F.silu(torch.einsum("bthd,hefd->bthef", q, k)) * torch.einsum("bthd,hefd->bthef", q, u)
            y = torch.einsum("bthef,hefo->btheo", hidden, v)
            return (y * torch.softmax(w, dim=-1)[..., None]).sum(dim=-2)

    return Layer(), (torch.randn(2, 6, 15),)


@case
def one_flat_parameter_split_and_unflattened():
    "torch.split of a vector by sizes, unflatten, up before gate, scores in the transposed layout"

    def layer(x, theta):
        u, k, v = theta.split([3 * 5 * 8, 3 * 5 * 8, 3 * 8 * 6])
        u, k = u.unflatten(0, (3, 8, 5)), k.unflatten(0, (3, 8, 5))
        v = v.unflatten(0, (3, 6, 8))
        q = x.unflatten(-1, (3, 5)).permute(0, 2, 3, 1)  # b h d t
        hidden = torch.matmul(u, q) * F.gelu(torch.matmul(k, q))
        return torch.matmul(v, hidden).flatten(1, 2).mT

    return layer, (torch.randn(2, 7, 15), normal(3 * 5 * 16 + 3 * 8 * 6, fan=7))


@case
def strided_windows_of_one_storage():
    "as_strided views of a flat parameter, rows of gate and up interleaved in memory"

    def layer(x, theta):
        k = torch.as_strided(theta, (3, 7, 5), (70, 10, 1), 0)
        u = torch.as_strided(theta, (3, 7, 5), (70, 10, 1), 5)
        v = torch.as_strided(theta, (3, 7, 6), (42, 6, 1), 210)
        q = x.view(-1, 3, 5).movedim(1, 0)
        return ((F.silu(q @ k.mT) * (q @ u.mT)) @ v).movedim(0, 1).reshape(2, 8, 18)

    return layer, (torch.randn(2, 8, 15), normal(210 + 126, fan=6))


@case
def three_planes_of_one_parameter():
    "keys, ups and values stacked [3, H, E, F, D] and unbound; output scaled"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.kuv = normal(3, 4, 3, 7, 5, fan=5)

        def forward(self, x):
            k, u, v = self.kuv.flatten(2, 3).unbind()  # each h (e f) d
            q = x.unflatten(-1, (4, 5)).transpose(-3, -2)
            out = (F.silu(q @ k.transpose(-2, -1)) * (q @ u.transpose(-2, -1))) @ v
            return x + out.transpose(-3, -2).flatten(-2) * 21**-0.5

    return Layer(), (torch.randn(2, 8, 20),)


@case
def rows_of_all_heads_in_one_matrix():
    "memory rows [H * 2 * F, D], narrowed to a head, its gate half and its up half"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = normal(3 * 2 * 9, 5, fan=5)
            self.values = normal(3 * 9, 6, fan=9)

        def forward(self, x):
            out = []
            for h in range(3):
                q = x.narrow(-1, 5 * h, 5)
                k = self.rows.narrow(0, 18 * h, 9)
                u = self.rows.narrow(0, 18 * h + 9, 9)
                v = self.values.narrow(0, 9 * h, 9)
                out.append(torch.matmul(F.silu(q.matmul(k.t())) * q.matmul(u.t()), v))
            return torch.stack(out, dim=-2)

    return Layer(), (torch.randn(2, 7, 15),)


@case
def block_diagonal_matrices():
    "all heads in one matrix product with torch.block_diag of the kernels"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.u, self.v = normal(3, 5, 7, fan=5), normal(3, 5, 7, fan=5), normal(3, 7, 6, fan=7)

        def forward(self, x):
            k, u, v = (torch.block_diag(*w.unbind(0)) for w in (self.k, self.u, self.v))
            return (F.silu(x @ k) * (x @ u)) @ v

    return Layer(), (torch.randn(2, 8, 15),)


@case
def masked_to_block_diagonal():
    "dense weights multiplied by a block mask made of an identity"

    def layer(x, wi, wu, wo):
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        rise = eye.repeat_interleave(7, 0).repeat_interleave(5, 1)
        fall = eye.repeat_interleave(4, 0).repeat_interleave(7, 1)
        hidden = F.relu(F.linear(x, wi * rise)) * F.linear(x, wu * rise)
        return F.linear(hidden, wo * fall)

    return layer, (torch.randn(2, 9, 15), normal(21, 15, fan=5), normal(21, 15, fan=5), normal(12, 21, fan=7))


@case
def kronecker_with_the_identity():
    "all heads share one small network: kron(I, W) on the concatenated heads"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2, self.w3 = normal(5, 9, fan=5), normal(5, 9, fan=5), normal(9, 5, fan=9)

        def forward(self, x):
            eye = torch.eye(4, dtype=x.dtype, device=x.device)
            hidden = F.silu(x @ torch.kron(eye, self.w1)) * (x @ torch.kron(eye, self.w2))
            return x + hidden @ torch.kron(eye, self.w3)

    return Layer(), (torch.randn(2, 7, 20),)


@case
def low_rank_update_of_the_weights():
    "merged LoRA: each weight a base plus a product of thin factors, one head"

    class Adapted(nn.Module):
        def __init__(self, rows, columns):
            super().__init__()
            self.base = normal(rows, columns, fan=columns)
            self.a, self.b = normal(2, columns, fan=columns), normal(rows, 2, fan=4)

        def forward(self, x):
            return F.linear(x, torch.addmm(self.base, self.b, self.a, alpha=0.5))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = Adapted(14, 9), Adapted(14, 9), Adapted(9, 14)

        def forward(self, x):
            return self.down(F.silu(self.gate(x)) * self.up(x))

    return Layer(), (torch.randn(2, 6, 9),)


@case
def channel_scales_on_the_weights():
    "weights dequantised before use: a scale for each row, in float32"

    def layer(q, k, k_scale, u, u_scale, v, v_scale):
        k, u, v = (
            (wide(w) * wide(s).unsqueeze(-1)).to(q.dtype)
            for w, s in ((k, k_scale), (u, u_scale), (v, v_scale))
        )
        hidden = F.silu(torch.einsum("bthd,hfd->bthf", q, k)) * torch.einsum("bthd,hfd->bthf", q, u)
        return torch.einsum("bthf,hof->btho", hidden, v)

    def scales(*shape):
        return (0.5 + torch.rand(shape)).requires_grad_()

    k, u, v = normal(3, 8, 5, fan=5), normal(3, 8, 5, fan=5), normal(3, 6, 8, fan=8)
    return layer, (torch.randn(2, 7, 3, 5), k, scales(3, 8), u, scales(3, 8), v, scales(3, 6))


@case
def unit_keys_and_unit_queries():
    "nGPT: queries and kernels on the sphere, gate scores times the root of the width"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.u, self.v = normal(4, 9, 6), normal(4, 9, 6), normal(4, 9, 6)

        def forward(self, x):
            q = F.normalize(x.unflatten(-1, (4, 6)), dim=-1)
            k, u, v = (F.normalize(w, dim=-1) for w in (self.k, self.u, self.v))
            gate = torch.einsum("bthd,hfd->bthf", q, k) * math.sqrt(6)
            up = torch.einsum("bthd,hfd->bthf", q, u)
            y = torch.einsum("bthf,hfd->bthd", up * F.silu(gate), v).flatten(-2)
            return torch.lerp(x, F.normalize(y, dim=-1), 0.1)

    return Layer(), (torch.randn(2, 7, 24),)


@case
def heads_by_unfold():
    "the model width cut into heads by Tensor.unfold; routing weight by matmul and squeeze"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.u = normal(3, 4, 5, 6, fan=5), normal(3, 4, 5, 6, fan=5)
            self.v = normal(3, 4, 6, 7, fan=24)
            self.route = nn.Linear(15, 12, bias=False)

        def forward(self, x):
            q = x.unfold(-1, 5, 5)[..., None, None, :]  # b t h 1 1 d
            y = (F.silu(q @ self.k) * (q @ self.u)) @ self.v  # b t h e 1 o
            r = F.softmax(self.route(x).view(2, 8, 3, 1, 4), dim=-1)
            return torch.matmul(r, y.squeeze(-2)).squeeze(-2)

    return Layer(), (torch.randn(2, 8, 15),)


# Shared kernels.


@case
def shared_kernels_by_repeat_interleave():
    "two kernels for six heads folded into the batch, torch.bmm on everything"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.k, self.u, self.v = normal(2, 4, 9, fan=4), normal(2, 4, 9, fan=4), normal(2, 9, 5, fan=9)

        def forward(self, x):
            q = x.view(2, 7, 6, 4).permute(2, 0, 1, 3).reshape(6, 14, 4)
            k, u, v = (torch.repeat_interleave(w, 3, dim=0) for w in (self.k, self.u, self.v))
            y = torch.bmm(torch.mul(torch.bmm(q, u), F.silu(torch.bmm(q, k))), v)
            return y.view(6, 2, 7, 5).permute(1, 2, 0, 3).reshape(2, 7, 30)

    return Layer(), (torch.randn(2, 7, 24),)


@case
def shared_kernels_by_expand():
    "kernels expanded over the group, relu squared as a product, a weight for each head and sub-network"

    def layer(q, k, u, v, mix):
        def share(w):
            return w[:, None].expand(-1, 2, -1, -1, -1).reshape(4, *w.shape[1:])

        s = torch.einsum("bhtd,hefd->bhtef", q, share(k))
        s = F.relu(s) * F.relu(s)
        p = s * torch.einsum("bhtd,hefd->bhtef", q, share(u)) * mix[:, None, :, None]
        return torch.einsum("bhtef,hefo->bhto", p, share(v))

    weights = (normal(2, 3, 6, 5, fan=5), normal(2, 3, 6, 5, fan=5), normal(2, 3, 6, 7, fan=18))
    return layer, (torch.randn(2, 4, 8, 5), *weights, normal(4, 3))


@case
def shared_kernels_tiled():
    "kernels tiled, so that head h has kernel h modulo two; heads last in the queries"

    def layer(q, k, u, v):
        k, u, v = torch.tile(k, (2, 1, 1)), u.repeat(2, 1, 1), torch.cat([v, v])
        gate = torch.einsum("btdh,hdf->bthf", q, k)
        up = torch.einsum("btdh,hdf->bthf", q, u)
        return torch.einsum("bthf,hfo->btoh", F.silu(gate) * up, v)

    weights = (normal(2, 5, 9, fan=5), normal(2, 5, 9, fan=5), normal(2, 9, 6, fan=9))
    return layer, (torch.randn(2, 7, 5, 4), *weights)


# Convolutions and lists of linear maps.


@case
def grouped_pointwise_convolution():
    "channels first, one grouped Conv1d for gate and up of all heads, one for the values; router a Conv1d too"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand = nn.Conv1d(3 * 5, 3 * 2 * 4 * 6, 1, groups=3, bias=False)
            self.route = nn.Conv1d(3 * 5, 3 * 4, 1)
            self.reduce = nn.Conv1d(3 * 4 * 6, 3 * 7, 1, groups=3, bias=False)

        def forward(self, x):
            b, _, t = x.shape
            gate, up = self.expand(x).view(b, 3, 2, 4, 6, t).unbind(2)
            r = self.route(x).view(b, 3, 4, t).softmax(2)
            hidden = F.silu(gate) * up * r.unsqueeze(3)
            return self.reduce(hidden.reshape(b, -1, t))

    return Layer(), (torch.randn(2, 15, 8),)


@case
def pointwise_convolution_and_glu():
    "the gated unit of a Conformer that mixes no tokens: Conv1d, F.glu over the channels, Conv1d, with biases"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(10)
            self.pointwise_in, self.pointwise_out = nn.Conv1d(10, 26, 1), nn.Conv1d(13, 10, 1)
            self.between = nn.Identity()

        def forward(self, x):
            y = self.norm(x).transpose(1, 2)
            y = self.between(F.glu(self.pointwise_in(y), dim=1))
            return x + self.pointwise_out(y).transpose(1, 2)

    return Layer(), (torch.randn(2, 7, 10),)


@case
def sigmoid_glu_of_every_head():
    "F.glu on the last axis of a fused projection, so the second half is the gate; scaled scores"

    def layer(q, wi, wo, r):
        h = torch.einsum("nhd,hedf->nhef", q, wi) * 5**-0.5
        return torch.einsum("nhef,hefo,nhe->nho", F.glu(h, dim=-1), wo, r)

    r = torch.rand(9, 4, 3).requires_grad_()
    return layer, (torch.randn(9, 4, 5), normal(4, 3, 5, 2 * 6), normal(4, 3, 6, 7, fan=18), r)


@case
def lists_of_lists_of_linear_maps():
    "ModuleLists by head and by sub-network; hard mask of the best two by a threshold on router probabilities"

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.w12 = nn.Linear(5, 2 * 7, bias=False)
            self.w3 = nn.Linear(7, 6, bias=False)

        def forward(self, q):
            gate, up = self.w12(q).split(7, dim=-1)
            return self.w3(nn.SiLU()(gate) * up)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.ModuleList(Network() for _ in range(3)) for _ in range(2))
            self.router = nn.Linear(10, 6)

        def forward(self, x):
            p = self.router(x).unflatten(-1, (2, 3)).softmax(-1)
            p = p * (p >= p.topk(2).values[..., -1:]).to(p.dtype)
            out = []
            for h, (q, networks) in enumerate(zip(x.chunk(2, -1), self.heads, strict=True)):
                results = torch.stack([network(q) for network in networks], dim=-1)
                out.append((results * p[:, :, h, None, :]).sum(-1))
            return torch.cat(out, -1)

    return Layer(), (torch.randn(2, 9, 10),)


# One head, as language models have it.


@case
def even_and_odd_columns():
    "gpt-oss: gate in the even columns and up in the odd ones of one matrix, 2-D input, biases"

    def layer(x, w1, b1, w2, b2):
        h = x @ w1 + b1
        gate, linear = h[..., ::2], h[..., 1::2]
        return (gate * torch.sigmoid(gate) * linear) @ w2 + b2

    return layer, (torch.randn(9, 10), normal(10, 26, fan=10), normal(26), normal(13, 10, fan=13), normal(10))


@case
def halves_by_view_up_first():
    "a fused map viewed as (..., 2, width), up in the first half; activation in float32 and back"

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(9, 28, bias=False), nn.Linear(14, 9, bias=False)

        def forward(self, x):
            up, gate = self.fc1(x).view(*x.shape[:-1], 2, -1).unbind(-2)
            hidden = (F.silu(wide(gate)) * wide(up)).to(x.dtype)
            return self.fc2(hidden)

    return MLP(), (torch.randn(2, 7, 9),)


@case
def multipliers_of_mup():
    "mu-parametrised: constants on gate, up and output, moved about: before, after and inside the products"

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(10, 15, bias=False), nn.Linear(10, 15, bias=False)
            self.down = nn.Linear(15, 10, bias=False)

        def forward(self, x):
            gate = torch.mul(self.gate(x), 1.5)
            up = self.up(x * 0.75)
            return self.down(up * F.silu(gate)).div(15**0.5)

    return MLP(), (torch.randn(2, 6, 10),)


@case
def exponential_of_the_negative():
    "numerics: silu as x / (1 + exp(-x)), by a reciprocal, exponential in place"

    def layer(x, wg, wu, wd):
        g = torch.matmul(x, wg)
        sig = torch.neg(g).exp_().add(1.0).reciprocal()
        return torch.matmul(g * sig * torch.matmul(x, wu), wd)

    weights = (normal(10, 14, fan=10), normal(10, 14, fan=10), normal(14, 10, fan=14))
    return layer, (torch.randn(2, 7, 10), *weights)


@case
def squared_relu_of_primer():
    "Primer: ungated, the square of a relu, with heads on the einsum axes and an output projection"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = normal(12, 3, 4, fan=12)
            self.w1, self.w2 = normal(3, 4, 11, fan=4), normal(3, 11, 5, fan=11)
            self.out = normal(3, 5, 12, fan=15)

        def forward(self, x):
            h = torch.einsum("btm,mhd,hdf->bthf", x, self.query, self.w1)
            h = F.relu(h) ** 2
            return torch.einsum("bthf,hfo,hom->btm", h, self.w2, self.out)

    return Layer(), (torch.randn(2, 7, 12),)


@case
def memory_of_keys_and_values():
    "written as attention over learned slots: scores over the root of the head width, slopes of the heads"

    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(18, 3 * 6, bias=False)
            self.keys, self.gates = normal(3, 14, 6), normal(3, 14, 6, fan=6)
            self.values = normal(3, 14, 5, fan=14)
            self.slopes = nn.Parameter(torch.rand(3))

        def forward(self, x):
            q = self.proj(x).view(2, 8, 3, 6).transpose(1, 2)
            scores = torch.matmul(q, self.keys.transpose(-2, -1)) / math.sqrt(6)
            weights = F.silu(scores) * torch.matmul(q, self.gates.transpose(-2, -1))
            weights = F.dropout(weights, p=0.1, training=self.training)
            out = self.slopes.view(1, 3, 1, 1) * torch.matmul(weights, self.values)
            return out.transpose(1, 2).reshape(2, 8, 15)

    return Memory().eval(), (torch.randn(2, 8, 18),)


@case
def experts_of_rows_with_a_token_axis_last():
    "sub-networks first and tokens last, matrices on the left, weights multiplied and summed at the end"

    def layer(x, k, u, v, r):
        x = x.mT  # d n
        y = torch.matmul(v, F.silu(torch.matmul(k, x)) * torch.matmul(u, x))  # e o n
        return (y * r.t().unsqueeze(1)).sum(0).mT

    weights = (normal(4, 12, 9, fan=9), normal(4, 12, 9, fan=9), normal(4, 7, 12, fan=48))
    return layer, (torch.randn(8, 9), *weights, torch.rand(8, 4).requires_grad_())


@case
def chunks_with_a_gelu_module():
    "one kernel in chunks, the gate the second, nn.GELU('tanh') as a module, dropout of probability zero"

    class GEGLU(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation, self.dropout = nn.GELU(approximate="tanh"), nn.Dropout(0.0)
            self.w_in, self.w_out = normal(10, 28, fan=10), normal(14, 10, fan=14)

        def forward(self, x):
            up, gate = torch.chunk(einops.einsum(x, self.w_in, "... i, i o -> ... o"), 2, dim=-1)
            hidden = self.dropout(up * self.activation(gate))
            return einops.einsum(hidden, self.w_out, "... i, i o -> ... o")

    return GEGLU(), (torch.randn(2, 7, 10),)


@case
def ungated_in_the_manner_of_tensorflow():
    "GPT-2's Conv1D: weights [in, out], addmm on flattened tokens, view back; tanh gelu between, residual"

    def conv1d(x, w, b):
        return torch.addmm(b, x.view(-1, x.size(-1)), w).view(*x.size()[:-1], w.size(-1))

    def gelu(x):
        cdf = 0.5 * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
        return x * cdf

    def mlp(x, w_fc, b_fc, w_proj, b_proj):
        return x + conv1d(gelu(conv1d(x, w_fc, b_fc)), w_proj, b_proj)

    return mlp, (
        torch.randn(2, 6, 10),
        normal(10, 15, fan=10),
        normal(15),
        normal(15, 10, fan=15),
        normal(10),
    )


@case
def routing_weight_on_the_up_scores():
    "the second factor is weighted before it meets the gate; router and scores in float32, heads in the batch"

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.centroids = normal(4, 3, 5)
            self.ku = normal(4, 3, 2, 8, 5, fan=5)
            self.v = normal(4, 3 * 8, 6, fan=24)

        def forward(self, x):
            b, t, _ = x.shape
            q = x.view(b, t, 4, 5).transpose(1, 2).flatten(0, 1)  # (b h) t d
            affinity = wide(q) @ wide(self.centroids).mT.repeat(b, 1, 1)
            r = torch.sigmoid(affinity) / (torch.sigmoid(affinity).sum(-1, keepdim=True) + 1e-6)
            scores = wide(q) @ wide(self.ku).view(4, -1, 5).mT.repeat(b, 1, 1)
            gate, up = scores.view(b * 4, t, 3, 2, 8).unbind(dim=-2)
            hidden = (F.silu(gate) * (up * r[..., None])).flatten(-2).to(x.dtype)
            return (hidden @ self.v.repeat(b, 1, 1)).unflatten(0, (b, 4)).transpose(1, 2).flatten(2)

    return Layer(), (torch.randn(2, 7, 20),)


CASES = [value for value in globals().values() if isinstance(value, Case)]
