"""The formula that the fused op is compared with, eager and compiled by Inductor."""

import torch
from torch import Tensor
from torch.nn import functional


def formula(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """One einsum over all heads and sub-networks; operands as those of `flash_mhf`."""
    gate = torch.einsum("bthd,hefd->bthef", q, k)
    hidden = functional.silu(gate) * torch.einsum("bthd,hefd->bthef", q, u)
    return torch.einsum("bthef,hefo->btho", hidden * r.unsqueeze(-1), v)
