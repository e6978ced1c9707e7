"""Rows of gate and up that alternate, at the end of a flat parameter."""

import torch
from torch import nn
from torch.nn.functional import linear, silu

from tests.strategies.choices import Claims

PROPERTY = "each_feed_forward_is_one_call"
CLAIMS = Claims(layers=1)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(18))

    def forward(self, x):
        both = linear(x, self.weights[6:].view(6, 2))
        return (silu(both[..., ::2]) * both[..., 1::2]) @ self.weights[:6].view(3, 2)


def make():
    torch.manual_seed(0)
    return FeedForward().double(), (torch.randn(2, 3, 2, dtype=torch.float64).requires_grad_(),)
