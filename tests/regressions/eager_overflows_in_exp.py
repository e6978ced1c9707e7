"""Eager overflows in exp(-gate), and its gradients are NaN where the gate is below -88; the op's are not."""

from tests.strategies.choices import Claims, Spec

PROPERTY = "the_error_is_at_most_twice_eager_s"
CLAIMS = Claims(layers=2, spec=Spec(batch=2, length=16, heads=1, group=1, networks=1, width=12, head_dim=8, out_dim=8, gated=True, routed=False, gate_bias=False, up_bias=False, activation='silu', gate_scale=1.0, scale=1.0, dtype='float32'), together=1, checkpointed=False, rounds='float32', mutant=False)


import einops
import torch
from torch import nn
from torch.nn.functional import conv1d, gelu, glu, layer_norm, linear, relu, silu
from torch.utils.checkpoint import checkpoint

dtype = torch.float32
wide = torch.promote_types(dtype, torch.float32)


class Scaled(torch.autograd.Function):
    """A factor that its backward knows as well."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.randn(12, 8) * 8 ** -0.5)
        self.u = nn.Parameter(torch.randn(12, 8) * 8 ** -0.5)
        self.v = nn.Parameter(torch.randn(12, 8) * 12 ** -0.5)

    def forward(self, x):
        B, T = x.shape[:2]
        q = x.view(B, T, 8)
        gate = torch.einsum("btd,fd->btf", q, self.k)
        up = torch.einsum("btd,fd->btf", q, self.u)
        hidden = (gate / (1 + torch.exp(-gate))) * up
        y = torch.einsum("btf,fo->bto", hidden, self.v)
        out = y
        return out.reshape(B, T, 8)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = FeedForward()
        self.b = FeedForward()

    def forward(self, x):
        return Scaled.apply(self.b(Scaled.apply(Scaled.apply(self.a(Scaled.apply(x))))))


def make():
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, (torch.randn(2, 16, 8).to(dtype).requires_grad_(),)
