"""Three heads in a loop, their weights in one flat parameter: all values first, then gate and up."""

import torch
from torch import nn
from torch.nn.functional import linear, silu

from tests.strategies.choices import Claims

PROPERTY = "each_feed_forward_is_one_call"
CLAIMS = Claims(layers=1)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(54))

    def forward(self, x):
        v = self.weights[:18].view(3, 3, 2)
        gate_up = self.weights[18:].view(3, 6, 2)
        q = x.view(*x.shape[:2], 3, 2)
        outs = []
        for h in range(3):
            gate, up = linear(q[:, :, h], gate_up[h]).chunk(2, -1)
            outs.append((silu(gate) * up) @ v[h])
        return torch.stack(outs, 2)


def make():
    torch.manual_seed(0)
    return FeedForward().double(), (torch.randn(2, 3, 6, dtype=torch.float64).requires_grad_(),)
