"""Feed-forward networks: SwiGLU, naive multi-head FFN, parametric keys and values, and FlashMHF.

Shapes are written B batch, T sequence, d model width, H heads, D = d / H head width, E sub-networks, F width
of a sub-network. Every network is built from a `ModelConfig`; it maps [B, T, d] to [B, T, d] of x's dtype.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mhf_compile.models.configs import ModelConfig


class SwiGLU(nn.Module):
    """The dense gated network of Llama: W_down (silu(W_gate x) * (W_up x)).

    Its width makes it equal in parameters to the multi-head networks of the same configuration. Source:
    Shazeer, GLU variants improve Transformer (arXiv 2002.05202).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden, config.swiglu_width, bias=False)
        self.up = nn.Linear(config.hidden, config.swiglu_width, bias=False)
        self.down = nn.Linear(config.swiglu_width, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class MultiHeadNetwork(nn.Module):
    """What the multi-head networks share: W_q [d, d], whose result is split into heads, and W_out [d, d]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.ffn_heads
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.hidden, config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)

    def split_heads(self, x: Tensor) -> Tensor:
        """Project x [B, T, d] to the queries [B, T, H, D]."""
        query: Tensor = self.query(x)
        return query.view(*x.shape[:-1], self.heads, self.head_dim)

    def merge_heads(self, out: Tensor) -> Tensor:
        """Project the heads' outputs [B, T, H, D] to [B, T, d]."""
        merged: Tensor = self.out(out.flatten(-2))
        return merged


class MHFFN(MultiHeadNetwork):
    """Naive multi-head FFN: every head is one wide SwiGLU over its own query, without a router.

    O_h = (silu(Q_h K_h^T) * (Q_h U_h^T)) V_h. The activation has H * d_ff elements a token. Source: MH-FFN in
    FlashMHF (arXiv 2512.06989), which starts from it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        shape = (config.ffn_heads, config.ffn_width, config.head_dim)
        self.keys = normal_parameter(*shape, fan_in=config.head_dim)
        self.up = normal_parameter(*shape, fan_in=config.head_dim)
        self.values = normal_parameter(*shape, fan_in=config.ffn_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        q = self.split_heads(x)
        gate = torch.einsum("bthd,hfd->bthf", q, self.keys)
        up = torch.einsum("bthd,hfd->bthf", q, self.up)
        return self.merge_heads(torch.einsum("bthf,hfd->bthd", functional.silu(gate) * up, self.values))


class PKV(MultiHeadNetwork):
    """Parametric keys and values: multi-head softmax attention of the queries over learned keys and values.

    O_h = softmax(Q_h K_h^T / sqrt(D)) V_h. FlashMHF (arXiv 2512.06989) compares with a baseline of this name;
    how that one is normalised is not known to us, and this is the plain reading of the name. With 3/2 d_ff
    keys a head it has as many parameters as the networks with an up projection.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        shape = (config.ffn_heads, 3 * config.ffn_width // 2, config.head_dim)
        self.keys = normal_parameter(*shape, fan_in=1)  # the scores are divided by sqrt(D) already
        self.values = normal_parameter(*shape, fan_in=1)  # the softmax averages

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        q = self.split_heads(x)
        scores = torch.einsum("bthd,hmd->bthm", q, self.keys) * self.head_dim**-0.5
        return self.merge_heads(torch.einsum("bthm,hmd->bthd", scores.softmax(dim=-1), self.values))


class FlashMHF(MultiHeadNetwork):
    """Multi-head FFN of E small sub-networks a head, mixed by a router: the network of FlashMHF.

    O_h = sum_e R_he (silu(Q_h K_he^T) * (Q_h U_he^T)) V_he, with R_h = sigmoid(Q_h W_h), normalised over e.
    The router and the sum over sub-networks are kept in fp32 at least. Source: arXiv 2512.06989.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.subnetworks = config.subnetworks
        shape = (config.ffn_heads, config.subnetworks, config.subnetwork_width, config.head_dim)
        self.keys = normal_parameter(*shape, fan_in=config.head_dim)
        self.up = normal_parameter(*shape, fan_in=config.head_dim)
        self.values = normal_parameter(*shape, fan_in=config.subnetwork_width)
        self.router = normal_parameter(
            config.ffn_heads, config.head_dim, config.subnetworks, fan_in=config.head_dim
        )

    def route(self, q: Tensor) -> Tensor:
        """Weigh the sub-networks for each query [B, T, H, D]: [B, T, H, E], summing to one over E."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        r = torch.einsum("bthd,hde->bthe", q.to(dtype), self.router.to(dtype)).sigmoid()
        return r / r.sum(dim=-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        q = self.split_heads(x)
        r = self.route(q)
        out = torch.zeros(q.shape, dtype=r.dtype, device=x.device)
        for e in range(self.subnetworks):
            gate = torch.einsum("bthd,hfd->bthf", q, self.keys[:, e])
            up = torch.einsum("bthd,hfd->bthf", q, self.up[:, e])
            hidden = functional.silu(gate) * up
            out += r[..., e, None] * torch.einsum("bthf,hfd->bthd", hidden, self.values[:, e])
        return self.merge_heads(out.to(x.dtype))


def normal_parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """Draw a parameter of this shape from N(0, 1 / fan_in), so that it keeps the variance of its input."""
    return nn.Parameter(torch.randn(shape) * fan_in**-0.5)
