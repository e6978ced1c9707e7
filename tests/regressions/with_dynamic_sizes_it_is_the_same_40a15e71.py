"""with_dynamic_sizes_it_is_the_same: it did not hold.

AssertionError: 0 of 1 feed-forwards rewritten, each to one fused call
not rewritten: a, drawn.py:24
    the argument of silu is the result of cat, not one product of an input and a weight
"""

from tests.strategies.choices import Claims, Spec

PROPERTY = "with_dynamic_sizes_it_is_the_same"
GAP = "pieces of a symbolic size are not read"
CLAIMS = Claims(layers=1, spec=Spec(batch=7, length=5, heads=1, group=1, networks=1, width=3, head_dim=2, out_dim=2, gated=True, routed=False, gate_bias=False, up_bias=False, activation='silu', gate_scale=1.0, scale=1.0, dtype='float64'), together=1, checkpointed=False, rounds='float64', mutant=False)


import einops
import torch
from torch import nn
from torch.nn.functional import conv1d, gelu, glu, layer_norm, linear, relu, silu
from torch.utils.checkpoint import checkpoint

dtype = torch.float64
wide = torch.promote_types(dtype, torch.float32)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.randn(3, 2) * 2 ** -0.5)
        self.u = nn.Parameter(torch.randn(3, 2) * 2 ** -0.5)
        self.v = nn.Parameter(torch.randn(3, 2) * 3 ** -0.5)

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 2)
        gate = torch.einsum("btd,fd->btf", q, self.k)
        gate = torch.cat(gate.split([1, gate.shape[1] - 1], 1), 1)
        up = torch.einsum("btd,fd->btf", q, self.u)
        hidden = silu(gate) * up
        y = torch.einsum("btf,fo->bto", hidden, self.v)
        out = y
        return out.reshape(B, T, 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = FeedForward()

    def forward(self, x):
        return self.a(x)


def make():
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, (torch.randn(7, 5, 2).to(dtype).requires_grad_(),)
