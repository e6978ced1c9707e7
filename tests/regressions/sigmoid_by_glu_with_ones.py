"""A sigmoid gate is spelled as a glu of ones, beside a router with a sigmoid."""

from tests.strategies.choices import Claims, Spec

PROPERTY = "the_report_has_the_sizes_of_the_program"
CLAIMS = Claims(layers=1, spec=Spec(batch=2, length=3, heads=1, group=1, networks=2, width=3, head_dim=2, out_dim=2, gated=True, routed=True, gate_bias=False, up_bias=False, activation='sigmoid', gate_scale=1.0, scale=1.0, dtype='float64'), together=1, checkpointed=False, rounds='float64', mutant=False)


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
        self.route = nn.Linear(2, 2)
        self.v = nn.Parameter(torch.randn(2, 3, 2) * 6 ** -0.5)
        self.gate_up = nn.Parameter(torch.randn(2, 6, 2) * 2 ** -0.5)

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 2)
        r = torch.sigmoid(self.route(x).view(B, T, 2))
        both = torch.einsum("btd,epd->btep", q, self.gate_up)
        gate, up = both.chunk(2, 3)
        hidden = ((glu(torch.cat([torch.ones_like(gate), gate], -1), -1)) * r[:, :, :, None]) * up
        y = torch.einsum("btef,efo->bto", hidden, self.v)
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
    return model, (torch.randn(2, 3, 2).to(dtype).requires_grad_(),)
