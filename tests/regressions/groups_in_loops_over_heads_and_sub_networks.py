"""Heads that share weights in pairs, views of parameters, in a loop over heads and one over sub-networks."""

import torch
from torch import nn
from torch.nn.functional import silu

from tests.strategies.choices import Claims

PROPERTY = "each_feed_forward_is_one_call"
CLAIMS = Claims(layers=1)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.randn(24, 2))
        self.u = nn.Parameter(torch.randn(24, 2))
        self.v = nn.Parameter(torch.randn(24, 2))

    def forward(self, x):
        q = x.view(*x.shape[:2], 4, 2)
        outs = []
        for h in range(4):
            out = 0
            for e in range(3):
                k, u, v = (w.view(2, 3, 4, 2)[h // 2, e] for w in (self.k, self.u, self.v))
                out = out + (silu(q[:, :, h] @ k.T) * (q[:, :, h] @ u.T)) @ v
            outs.append(out)
        return torch.stack(outs, 2)


def make():
    torch.manual_seed(0)
    return FeedForward().double(), (torch.randn(2, 3, 8, dtype=torch.float64).requires_grad_(),)
