"""The keys are read from the parts of a stack, the other half of which is taken whole."""

from tests.strategies.choices import Claims, Spec

PROPERTY = "each_feed_forward_is_one_call"
CLAIMS = Claims(layers=1, spec=Spec(batch=2, length=3, heads=2, group=1, networks=2, width=3, head_dim=2, out_dim=2, gated=True, routed=True, gate_bias=False, up_bias=False, activation='silu', gate_scale=1.0, scale=1.0, dtype='float64'), together=1, checkpointed=False, rounds='float64', mutant=False)


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
        self.route = nn.Linear(4, 4)
        self.v = nn.ParameterList(torch.randn(2, 3, 2) * 6 ** -0.5 for _ in range(2))
        self.gate_up = nn.ParameterList(torch.randn(2, 6, 2) * 2 ** -0.5 for _ in range(2))

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 2, 2)
        r = self.route(x).view(B, T, 2, 2)
        keys, ups = torch.stack([*self.gate_up]).chunk(2, 2)
        gate = torch.einsum("bthd,hefd->thbef", q, keys)
        gate = torch.cat(gate.split([1, gate.shape[1] - 1], 1), 1)
        up = torch.einsum("bthd,hefd->thbef", q, ups)
        hidden = silu(gate) * up
        hidden = hidden * r.permute(1, 2, 0, 3)[:, :, :, :, None]
        y = torch.einsum("thbef,hefo->btho", hidden, torch.stack([*self.v]))
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
    return model, (torch.randn(2, 3, 4).to(dtype).requires_grad_(),)
