"""Heads in groups, cut into uneven pieces that are no groups and put together again, are the heads."""

from tests.strategies.choices import Claims, Spec

PROPERTY = "the_report_has_the_sizes_of_the_program"
CLAIMS = Claims(layers=1, spec=Spec(batch=2, length=3, heads=2, group=2, networks=1, width=3, head_dim=2, out_dim=2, gated=True, routed=False, gate_bias=False, up_bias=False, activation='silu', gate_scale=1.0, scale=1.0, dtype='float64'), together=1, checkpointed=False, rounds='float64', mutant=False)


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
        self.k = nn.Parameter(torch.randn(2, 3, 2) * 2 ** -0.5)
        self.u = nn.Parameter(torch.randn(2, 3, 2) * 2 ** -0.5)
        self.v = nn.Parameter(torch.randn(2, 3, 2) * 3 ** -0.5)

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 4, 2)
        gate = torch.einsum("bthd,hfd->bhtf", q, self.k.repeat_interleave(2, 0))
        gate = torch.cat(gate.split([1, gate.shape[1] - 1], 1), 1)
        up = torch.einsum("bthd,hfd->bhtf", q, self.u.repeat_interleave(2, 0))
        hidden = silu(gate) * up
        y = torch.einsum("bhtf,hfo->btho", hidden, self.v.repeat_interleave(2, 0))
        out = y
        return out.reshape(B, T, 8)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = FeedForward()

    def forward(self, x):
        return self.a(x)


def make():
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, (torch.randn(2, 3, 8).to(dtype).requires_grad_(),)
