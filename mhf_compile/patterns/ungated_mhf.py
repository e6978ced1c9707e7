"""Multi-head feed-forward without a gate: a product, an activation, values; with H = 1 the MLP of BERT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mhf_compile.patterns.flash_mhf import FLASH_MHF


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None = None,
    gate_bias: Tensor | None = None,
    hidden: Callable[[Tensor], Tensor] = torch.nn.functional.relu,
    gate_scale: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """``scale * sum_e r * sum_f hidden(gate_scale * q.k + gate_bias) * v``, in eager PyTorch.

    ``hidden`` is a function of the gate score alone. Operands and result are those of
    :func:`mhf_compile.patterns.flash_mhf.formula`.
    """
    kv_heads = k.shape[0]
    q = q.unflatten(2, (kv_heads, q.shape[2] // kv_heads))
    gate = gate_scale * torch.einsum("bthgd,hefd->bthgef", q, k)
    weighted = hidden(gate if gate_bias is None else gate + gate_bias[:, None])
    if r is not None:
        weighted = weighted * r.unflatten(2, (kv_heads, -1)).unsqueeze(-1)
    return scale * torch.einsum("bthgef,hefo->bthgo", weighted, v).flatten(2, 3)


UNGATED_MHF = replace(
    FLASH_MHF,
    name="ungated_mhf",
    formula=formula,
    operands={name: slot for name, slot in FLASH_MHF.operands.items() if name not in ("u", "up_bias")},
    activations=FLASH_MHF.activations - {"identity"},
)
