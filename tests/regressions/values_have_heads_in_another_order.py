"""A loop over heads and one over sub-networks, of weights in which these are in different orders."""

from tests.strategies.choices import Claims, Spec

PROPERTY = "each_feed_forward_is_one_call"
CLAIMS = Claims(layers=1, spec=Spec(batch=2, length=3, heads=2, group=1, networks=2, width=3, head_dim=2, out_dim=2, gated=True, routed=False, gate_bias=False, up_bias=False, gate_number=0.0, up_number=0.0, gate_factor=False, up_factor=False, hidden_factor=False, value_bias=False, low_rank='', bank=True, summed=True, activation='silu', gate_scale=1.0, scale=1.0, dtype='float64'), together=1, checkpointed=False, rounds='float64', mutant=False)


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
        self.weights = nn.Parameter(torch.randn(72) * 0.5)

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 2)
        out = 0
        for h in range(2):
            part = 0
            for e in range(2):
                gate = torch.einsum("btd,fd->btf", q, self.weights[0:24].view(2, 2, 3, 2)[h][e])
                up = torch.einsum("btd,fd->btf", q, self.weights[24:48].view(2, 2, 3, 2)[h][e])
                hidden = silu(gate) * up
                y = torch.einsum("btf,fo->bto", hidden, self.weights[48:72].view(2, 2, 3, 2)[:, h][e])
                part = part + y
            out = out + part
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
