"""The gated multi-head feed-forward, written in many ways: plain PyTorch that knows nothing of this project.

Each program is a function of tensors; ``SPELLINGS`` gives for each the shapes of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from torch.utils.checkpoint import checkpoint

B, T, H, E, F, D = 2, 40, 3, 4, 24, 16
N = H * D

SHAPES = {
    "x": (B, T, N),
    "q": (B, T, H, D),
    "k": (H, E, F, D),
    "u": (H, E, F, D),
    "v": (H, E, F, D),
    "r": (B, T, H, E),
    "w_q": (N, N),
    "w_r": (H * E, N),
    "w_out": (N, N),
    "gate_up": (H, 2 * F, D),
    "k1": (H, F, D),
    "u1": (H, F, D),
    "v1": (H, F, D),
    "q_grouped": (B, T, 2 * H, D),
    "heads": (3 * H, F, D),
    "w_gate": (F, N),
    "w_up": (F, N),
    "w_down": (N, F),
    "w_gate_up": (2 * F, N),
}


def router(x: Tensor, w_r: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scores = linear(wide, w_r.to(wide.dtype)).view(*x.shape[:2], H, E).sigmoid()
    return scores / scores.sum(-1, keepdim=True)


def loop(x: Tensor, w_q: Tensor, k: Tensor, u: Tensor, v: Tensor, w_r: Tensor, w_out: Tensor) -> Tensor:
    """The paper's model: a python loop over sub-networks, accumulated in place in float32."""
    q = linear(x, w_q).view(*x.shape[:2], H, D)
    r = router(x, w_r)
    out = torch.zeros(q.shape, dtype=r.dtype)
    for e in range(E):
        gate = torch.einsum("bthd,hfd->bthf", q, k[:, e])
        up = torch.einsum("bthd,hfd->bthf", q, u[:, e])
        out += r[..., e, None] * torch.einsum("bthf,hfd->bthd", silu(gate) * up, v[:, e])
    return x + linear(out.to(x.dtype).flatten(2), w_out)


def one_einsum(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    hidden = silu(torch.einsum("bthd,hefd->bthef", q, k)) * torch.einsum("bthd,hefd->bthef", q, u)
    return torch.einsum("bthe,bthef,hefo->btho", r, hidden, v)


def bmm_r_before(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    rows = q.permute(2, 0, 1, 3).reshape(H, -1, D)
    gate = torch.bmm(rows, k.reshape(H, E * F, D).transpose(1, 2))
    up = torch.bmm(rows, u.reshape(H, E * F, D).mT)
    hidden = (silu(gate) * up).view(H, -1, E, F) * r.permute(2, 0, 1, 3).reshape(H, -1, E, 1)
    out = torch.bmm(hidden.view(H, -1, E * F), v.reshape(H, E * F, D))
    return out.view(H, *q.shape[:2], D).permute(1, 2, 0, 3).reshape(*q.shape[:2], N)


def bmm_r_after(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    rows = q.permute(2, 0, 1, 3).reshape(H, 1, -1, D)
    out = (silu(rows @ k.transpose(-1, -2)) * (rows @ u.transpose(-1, -2))) @ v
    out = (out * r.permute(2, 3, 0, 1).reshape(H, E, -1, 1)).sum(1)
    return out.view(H, *q.shape[:2], D).permute(1, 2, 0, 3).flatten(2)


def head_list(x: Tensor, heads: Tensor) -> Tensor:
    """A ModuleList of heads, each with three weights of its own, concatenated."""
    gates, ups, downs = heads.unbind(0)[:H], heads.unbind(0)[H : 2 * H], heads.unbind(0)[2 * H :]
    parts = zip(x.chunk(H, -1), gates, ups, downs, strict=True)
    return torch.cat([linear(silu(linear(q, g)) * linear(q, u), d.t()) for q, g, u, d in parts], -1)


def grouped(q_grouped: Tensor, k1: Tensor, u1: Tensor, v1: Tensor) -> Tensor:
    """Two heads share keys, up-projections and values."""
    k, u, v = (weight.repeat_interleave(2, 0) for weight in (k1, u1, v1))
    hidden = silu(torch.einsum("bthd,hfd->bthf", q_grouped, k)) * torch.einsum("bthd,hfd->bthf", q_grouped, u)
    return torch.einsum("bthf,hfo->btho", hidden, v)


def fused_gate_up(x: Tensor, gate_up: Tensor, v1: Tensor) -> Tensor:
    q = x.view(*x.shape[:2], H, D)
    gate, up = torch.einsum("bthd,hfd->bthf", q, gate_up).chunk(2, -1)
    return torch.einsum("bthf,hfo->btho", silu(gate) * up, v1).flatten(2)


def x_sigmoid_x(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    gate = torch.einsum("bthd,hefd->bthef", q, k)
    hidden = gate * torch.sigmoid(gate) * torch.einsum("bthd,hefd->bthef", q, u)
    return torch.einsum("bthe,bthef,hefo->btho", r, hidden, v)


def exponential(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    gate = torch.einsum("bthd,hefd->bthef", q, k)
    hidden = torch.einsum("bthd,hefd->bthef", q, u) * (gate / (1 + torch.exp(-gate)))
    return torch.einsum("bthef,hefo->btho", hidden, v)


def float32_inside(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Products in q's dtype, everything between them in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    gate, up = (torch.einsum("bthd,hefd->bthef", q, weight).to(wide) for weight in (k, u))
    out = torch.einsum("bthef,hefo->btheo", (silu(gate) * up).to(q.dtype), v)
    return (out.to(wide) * r.to(wide)[..., None]).sum(3).to(q.dtype)


def buffered_heads(q: Tensor, k1: Tensor, u1: Tensor, v1: Tensor) -> Tensor:
    """Each head is written into its slice of a buffer."""
    out = torch.empty_like(q)
    for h in range(H):
        out[:, :, h] = (silu(q[:, :, h] @ k1[h].t()) * (q[:, :, h] @ u1[h].t())) @ v1[h]
    return out


def double_loop(q: Tensor, k: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    out = torch.zeros_like(q)
    for e in range(E):
        for h in range(H):
            hidden = silu(q[:, :, h] @ k[h, e].t()) * (q[:, :, h] @ u[h, e].t())
            out[:, :, h] += r[:, :, h, e, None] * (hidden @ v[h, e])
    return out


def biased(q: Tensor, k1: Tensor, u1: Tensor, v1: Tensor) -> Tensor:
    """Biases on gate, up and output, scales on gate and output; the biases are rows of the weights."""
    gate = 0.5 * torch.einsum("bthd,hfd->bthf", q, k1) + k1[:, :, 0]
    up = torch.einsum("bthd,hfd->bthf", q, u1) - 2 * u1[:, :, 1]
    return 3 * torch.einsum("bthf,hfo->btho", silu(gate) * up, v1) + v1[:, 0]


def dense(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """Llama's SwiGLU."""
    return x + linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


def dense_fused(x: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """Phi-3's SwiGLU."""
    up_states = linear(x, w_gate_up)
    gate, up = up_states.chunk(2, dim=-1)
    return linear(up * silu(gate), w_down)


def checkpointed(*tensors: Tensor) -> Tensor:
    result: Tensor = checkpoint(loop, *tensors, use_reentrant=False)
    return result


@dataclass(frozen=True)
class Spelling:
    """A program, the names of its arguments in SHAPES, and options that make it be rewritten."""

    program: Callable[..., Tensor]
    arguments: str
    options: dict[str, object] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
        """Random arguments that require grad, scaled so that scores are of order one."""
        generator = torch.Generator().manual_seed(seed)
        return [
            (torch.randn(SHAPES[name], generator=generator) * (1 if name[0] in "xqr" else 0.3))
            .to(dtype)
            .requires_grad_()
            for name in self.arguments.split()
        ]

    def __str__(self) -> str:
        return self.program.__name__


DENSE = {"flashmhf.dense": "always"}

SPELLINGS = [
    Spelling(loop, "x w_q k u v w_r w_out"),
    Spelling(one_einsum, "q k u v r"),
    Spelling(bmm_r_before, "q k u v r"),
    Spelling(bmm_r_after, "q k u v r"),
    Spelling(head_list, "x heads"),
    Spelling(grouped, "q_grouped k1 u1 v1"),
    Spelling(fused_gate_up, "x gate_up v1"),
    Spelling(x_sigmoid_x, "q k u v r"),
    Spelling(exponential, "q k u v"),
    Spelling(float32_inside, "q k u v r"),
    Spelling(buffered_heads, "q k1 u1 v1"),
    Spelling(double_loop, "q k u v r"),
    Spelling(biased, "q k1 u1 v1"),
    Spelling(checkpointed, "x w_q k u v w_r w_out"),
    Spelling(dense, "x w_gate w_up w_down", DENSE),
    Spelling(dense_fused, "x w_gate_up w_down", DENSE),
]
BY_NAME = {str(spelling): spelling for spelling in SPELLINGS}
