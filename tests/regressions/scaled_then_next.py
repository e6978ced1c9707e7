"""A feed-forward whose result is scaled, and the next one right behind it."""

import torch
from torch import nn
from torch.nn.functional import linear, silu

from tests.strategies.choices import Claims

PROPERTY = "each_feed_forward_is_one_call"
CLAIMS = Claims(layers=2)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.randn(3, 2))
        self.u = nn.Parameter(torch.randn(3, 2))
        self.v = nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        return 3 * linear(silu(linear(x, self.k)) * linear(x, self.u), self.v)


def make():
    torch.manual_seed(0)
    model = nn.Sequential(FeedForward(), FeedForward()).double()
    return model, (torch.randn(2, 3, 2, dtype=torch.float64).requires_grad_(),)
