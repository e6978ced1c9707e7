"""Sub-networks weighted, with what a Linear with a bias gives, on the up projection."""

import torch
from torch import nn
from torch.nn.functional import silu

from tests.strategies.choices import Claims

PROPERTY = "each_feed_forward_is_one_call"
CLAIMS = Claims(layers=1)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.route = nn.Linear(2, 3)
        self.k = nn.Parameter(torch.randn(3, 4, 2))
        self.u = nn.Parameter(torch.randn(3, 4, 2))
        self.v = nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x):
        r = self.route(x)
        up = torch.einsum("btd,efd->btef", x, self.u) * r[..., None]
        hidden = silu(torch.einsum("btd,efd->btef", x, self.k)) * up
        return torch.einsum("btef,efo->bto", hidden, self.v)


def make():
    torch.manual_seed(0)
    return FeedForward().double(), (torch.randn(2, 3, 2, dtype=torch.float64).requires_grad_(),)
