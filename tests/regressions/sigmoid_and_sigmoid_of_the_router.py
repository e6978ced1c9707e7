"""A gate with a sigmoid for its activation, and sub-networks weighted with a sigmoid as well."""

import torch
from torch import nn

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
        r = torch.sigmoid(self.route(x))
        gate = torch.einsum("btd,efd->btef", x, self.k)
        hidden = torch.sigmoid(gate) * torch.einsum("btd,efd->btef", x, self.u)
        return torch.einsum("bte,btef,efo->bto", r, hidden, self.v)


def make():
    torch.manual_seed(0)
    return FeedForward().double(), (torch.randn(2, 3, 2, dtype=torch.float64).requires_grad_(),)
