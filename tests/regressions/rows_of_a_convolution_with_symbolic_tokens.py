"""Gate and up are channels of one convolution over a symbolic number of positions."""

from tests.strategies.choices import Claims, Spec

PROPERTY = "with_dynamic_sizes_it_is_the_same"
CLAIMS = Claims(layers=1, spec=Spec(batch=7, length=5, heads=1, group=2, networks=2, width=3, head_dim=2, out_dim=2, gated=True, routed=False, gate_bias=False, up_bias=False, activation='silu', gate_scale=1.0, scale=1.0, dtype='float64'), together=1, checkpointed=False, rounds='float64', mutant=False)


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
        self.v = nn.Parameter(torch.randn(2, 3, 2) * 6 ** -0.5)
        self.gate_up = nn.Parameter(torch.randn(2, 6, 2) * 2 ** -0.5)

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 2, 2)
        both = conv1d(q.permute(0, 3, 1, 2).reshape(B, 2, T * 2), self.gate_up.reshape(12, 2).unsqueeze(-1)).reshape(B, 2, 6, T, 2).permute(0, 3, 4, 1, 2)
        gate, up = both.chunk(2, 4)
        hidden = silu(gate) * up
        y = torch.einsum("btgef,efo->btgo", hidden, self.v)
        out = y
        return out.reshape(B, T, 4)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = FeedForward()

    def forward(self, x):
        return self.a(x)


def make():
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, (torch.randn(7, 5, 4).to(dtype).requires_grad_(),)
