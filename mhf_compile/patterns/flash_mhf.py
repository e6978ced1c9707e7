"""The gated multi-head feed-forward (FlashMHF, arXiv 2512.06989), also MH-FFN (E = 1) and SwiGLU (H = 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mhf_compile.notation import Axis, Leaf
from mhf_compile.patterns.pattern import Pattern, Roles


def formula(
    q: Tensor,
    k: Tensor,
    u: Tensor,
    v: Tensor,
    r: Tensor | None = None,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.silu,
    gate_scale: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """``scale * sum_e r * sum_f act(gate_scale * q.k + gate_bias) * (q.u + up_bias) * v``, in eager PyTorch.

    Args:
        q: queries [B, T, H, D].
        k: keys [Hk, E, F, D]; head h uses row ``h // (H // Hk)``.
        u: up-projections [Hk, E, F, D].
        v: values [Hk, E, F, O].
        r: weights of the sub-networks [B, T, H, E], or None for all ones.
        gate_bias: added to the gate score, [Hk, E, F], or None.
        up_bias: added to the up score, [Hk, E, F], or None.
        activation: the elementwise function of the gate.
        gate_scale: factor of the gate score, without its bias.
        scale: factor of the result.

    Returns:
        [B, T, H, O].
    """
    kv_heads = k.shape[0]
    q = q.unflatten(2, (kv_heads, q.shape[2] // kv_heads))
    gate = gate_scale * torch.einsum("bthgd,hefd->bthgef", q, k)
    up = torch.einsum("bthgd,hefd->bthgef", q, u)
    if gate_bias is not None:
        gate = gate + gate_bias[:, None]
    if up_bias is not None:
        up = up + up_bias[:, None]
    hidden = activation(gate) * up
    if r is not None:
        hidden = hidden * r.unflatten(2, (kv_heads, -1)).unsqueeze(-1)
    return scale * torch.einsum("bthgef,hefo->bthgo", hidden, v).flatten(2, 3)


def distribute(roles: Roles, leaves: Mapping[str, Leaf]) -> Roles:
    """Batch, sequence and the heads of a group occur in the same operands; any choice is right.

    An axis counts as a group where the queries have it as a digit just below a head axis, as grouped-query
    attention lays it out. The last of the others is the sequence.
    """
    alike = [*roles["b"], *roles["t"], *roles["g"]]
    group: list[Axis] = []
    for index in leaves["q"].index:
        for (stride, axis), (above, head) in zip(index.digits[1:], index.digits, strict=False):
            if axis in alike and head in (*roles["h"], *group) and above == stride * axis.size:
                group.append(axis)
    tokens = [axis for axis in alike if axis not in group]
    return {**roles, "b": tokens[:-1], "t": tokens[-1:], "g": group}


FLASH_MHF = Pattern(
    name="flash_mhf",
    op="mhf::flash_mhf",
    formula=formula,
    operands={
        "q": ("b", "t", "h g", "d"),
        "k": ("h", "e", "f", "d"),
        "u": ("h", "e", "f", "d"),
        "v": ("h", "e", "f", "o"),
        "r": ("b", "t", "h g", "e"),
        "gate_bias": ("h", "e", "f"),
        "up_bias": ("h", "e", "f"),
    },
    result=("b", "t", "h g", "o"),
    sizes={"b": 2, "t": 3, "h": 5, "g": 7, "e": 11, "f": 13, "d": 17, "o": 19},
    optional=frozenset({"r", "gate_bias", "up_bias"}),
    contracted=frozenset({"d"}),
    required=frozenset({"f"}),
    shared=frozenset({"q", "result"}),
    product="r",
    scalars={"gate_scale": 3, "scale": 5},
    activations=frozenset(["silu", "gelu", "gelu_tanh", "relu", "relu_squared", "sigmoid", "identity"]),
    tokens=("b", "t"),
    distribute=distribute,
)
