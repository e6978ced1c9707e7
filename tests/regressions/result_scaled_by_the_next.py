"""The reason is the feed-forward's own, though the next one scales its result and uses it twice."""

from tests.strategies.choices import Claims, Spec

PROPERTY = "r_on_the_values_is_left_alone"
CLAIMS = Claims(layers=2, spec=Spec(batch=2, length=3, heads=1, group=1, networks=2, width=3, head_dim=2, out_dim=2, gated=True, routed=True, gate_bias=False, up_bias=False, activation='silu', gate_scale=1.0, scale=1.0, dtype='float64'), together=1, checkpointed=False, rounds='float64', mutant=False)


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
        self.k = nn.Parameter(torch.randn(2, 3, 2) * 2 ** -0.5)
        self.u = nn.Parameter(torch.randn(2, 3, 2) * 2 ** -0.5)
        self.v = nn.Parameter(torch.randn(2, 3, 2) * 6 ** -0.5)

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 2)
        q = -(0 - q)
        r = torch.sigmoid(self.route(x).view(B, T, 2))
        gate = torch.einsum("btd,efd->btef", q, self.k)
        up = torch.einsum("btd,efd->btef", q, self.u)
        hidden = silu(gate) * up
        routed = self.v * r[:, :, :, None, None]
        y = torch.einsum("btef,btefo->bto", hidden, routed)
        out = y
        return out.reshape(B, T, 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = FeedForward()
        self.b = FeedForward()

    def forward(self, x):
        return self.b(self.a(x))


def make():
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, (torch.randn(2, 3, 2).to(dtype).requires_grad_(),)
