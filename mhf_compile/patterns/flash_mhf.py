"""The gated multi-head feed-forward (FlashMHF, arXiv 2512.06989), also MH-FFN (E = 1) and SwiGLU (H = 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from mhf_compile.notation import Axis, Leaf
from mhf_compile.patterns.pattern import Pattern, Purpose, Role, Roles, Slot


def formula(
    q: Tensor,
    k: Tensor,
    u: Tensor,
    v: Tensor,
    r: Tensor | None = None,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    hidden: Callable[[Tensor, Tensor], Tensor] = lambda gate, up: torch.nn.functional.silu(gate) * up,
    gate_scale: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """``scale * sum_e r * sum_f hidden(gate_scale * q.k + gate_bias, q.u + up_bias) * v``, in eager PyTorch.

    Args:
        q: queries [B, T, H, D].
        k: keys [Hk, E, F, D]; head h uses row ``h // (H // Hk)``.
        u: up-projections [Hk, E, F, D].
        v: values [Hk, E, F, O].
        r: weights of the sub-networks [B, T, H, E], or None for all ones.
        gate_bias: added to the gate score, [Hk, E, F], or None.
        up_bias: added to the up score, [Hk, E, F], or None.
        hidden: the elementwise function of the gate score and the up score.
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
    weighted = hidden(gate, up)
    if r is not None:
        weighted = weighted * r.unflatten(2, (kv_heads, -1)).unsqueeze(-1)
    return scale * torch.einsum("bthgef,hefo->bthgo", weighted, v).flatten(2, 3)


ENOUGH = 64
"""Tokens of a head: so many a kernel takes at a time. With fewer, heads of a group count as tokens."""


def distribute(roles: Roles, leaves: Mapping[str, Leaf]) -> Roles:
    """Batch, sequence and the heads of a group occur in the same operands; any choice is right.

    An axis counts as a group where the queries have it as a digit just below a head axis, as grouped-query
    attention lays it out: the result need not be copied then. But each head multiplies its own tokens with
    the weights, and with few tokens for each that costs more: then it counts as tokens, which it is where a
    sequence was cut into a part for each head. The last of the tokens is the sequence.
    """
    same = [*roles["b"], *roles["t"], *roles["g"]]
    group: list[Axis] = []
    for index in leaves["q"].index:
        for (stride, axis), (above, head) in zip(index.digits[1:], index.digits, strict=False):
            if axis in same and head in (*roles["h"], *group) and above == stride * axis.size:
                group.append(axis)
    tokens = [axis for axis in same if axis not in group]
    few = prod(axis.size if isinstance(axis.size, int) else ENOUGH for axis in tokens) < ENOUGH
    if few:  # a symbolic size is taken to be large, whatever it is at the first call
        tokens, group = same, []
    return {**roles, "b": tokens[:-1], "t": tokens[-1:], "g": group}


FLASH_MHF = Pattern(
    name="flash_mhf",
    op="mhf::flash_mhf",
    formula=formula,
    roles={
        "b": Role("token", 2, is_token=True),
        "t": Role("token", 3, is_token=True),
        "h": Role("head", 5),
        "g": Role("head", 7),
        "e": Role("sub-network", 11),
        "f": Role("hidden channel", 13, is_required=True),
        "d": Role("input channel", 17, is_contracted=True),
        "o": Role("output channel", 19),
    },
    operands={
        "q": Slot(("b", "t", "h g", "d"), "the input", Purpose.INPUT),
        "k": Slot(("h", "e", "f", "d"), "the gate's weight", Purpose.WEIGHT),
        "u": Slot(("h", "e", "f", "d"), "the up weight", Purpose.WEIGHT),
        "v": Slot(("h", "e", "f", "o"), "the values", Purpose.WEIGHT),
        "r": Slot(("b", "t", "h g", "e"), "the routing weight", Purpose.FACTOR, is_optional=True),
        "gate_bias": Slot(("h", "e", "f"), "the gate's bias", Purpose.BIAS, is_optional=True),
        "up_bias": Slot(("h", "e", "f"), "the up bias", Purpose.BIAS, is_optional=True),
    },
    result=("b", "t", "h g", "o"),
    hidden=("b", "t", "h", "g", "e", "f"),
    dense=("h", "g", "e"),
    fields={
        "tokens": ("b", "t"),
        "heads": ("h", "g"),
        "kv_heads": ("h",),
        "subnetworks": ("e",),
        "head_dim": ("d",),
        "width": ("f",),
        "out_dim": ("o",),
    },
    scalars={"gate_scale": 3, "scale": 5},
    activations=frozenset(["silu", "gelu", "gelu_tanh", "relu", "relu_squared", "sigmoid", "identity"]),
    distribute=distribute,
)
