"""FlashMHF in plain ATen, for any device: a block of tokens against a block of weight rows at a time.

In one head, up to `TOKENS` tokens meet a block of rows of k, u and v: several sub-networks, or a part of
one where it alone is too wide. Every wide value lives in such a block of at most `BLOCK` elements a thread:
forward holds three at once and backward six, in float32 (in float64 for float64 operands), and an expression
as many as its steps still need. Beside them forward needs nothing that grows with the problem; backward needs
float32 sums of the weight gradients of one head where the operands are of lower precision. Operands whose
batch and sequence axes cannot be viewed as one are copied, one head at a time.

Backward recomputes gate and up: 8 matrix products to the 6 of eager, which reads them from memory; without u
it is 5 to 4.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mhf_compile.kernels.activations import Hidden, hidden_of

OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)

TOKENS = 1024
BLOCK = 2**17


def block_limit() -> int:
    """The most elements of a block: what a thread's cache holds, for each thread that shares the block."""
    return BLOCK * torch.get_num_threads()


def block_sizes(tokens: int, subnetworks: int, width: int) -> tuple[int, int, int]:
    """Tokens, sub-networks and rows of each sub-network in a block; their product is at most the limit."""
    block_tokens = max(1, min(tokens, TOKENS))
    rows = max(1, block_limit() // block_tokens)
    return block_tokens, max(1, min(subnetworks, rows // max(1, width))), max(1, min(width, rows))


class _Operands(NamedTuple):
    """The operands of one head; q and r also of one block of tokens."""

    q: Tensor
    k: Tensor
    u: Tensor | None
    v: Tensor
    r: Tensor | None
    gate_bias: Tensor | None
    up_bias: Tensor | None


class _Sums(NamedTuple):
    """The gradients of `_Operands`, summed in the compute dtype; None where a gradient is not wanted."""

    q: Tensor | None
    k: Tensor | None
    u: Tensor | None
    v: Tensor | None
    r: Tensor | None
    gate_bias: Tensor | None
    up_bias: Tensor | None


class _Formula(NamedTuple):
    """The constants of the operator."""

    hidden: Hidden
    gate_scale: float
    scale: float


def forward(
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor,
    r: Tensor | None,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gate_scale: float,
    scale: float,
) -> Tensor:
    """The operator `mhf::flash_mhf`; see `mhf_compile.kernels.ops.flash_mhf`."""
    kv_heads, subnetworks, width, out_dim = v.shape
    tokens, group = q.shape[0] * q.shape[1], q.shape[2] // kv_heads
    block_tokens, *block_rows = block_sizes(tokens, subnetworks, width)
    dtype = _compute_dtype(q)
    formula = _Formula(hidden_of(activation, u is not None), gate_scale, scale)
    out = q.new_zeros(*q.shape[:3], out_dim)

    for h in range(q.shape[2]):
        hk = h // group
        q_h, r_h, out_h = _tokens(q, h), _tokens(r, h), _tokens(out, h)
        weights = k[hk], _at(u, hk), v[hk]
        biases = _at(gate_bias, hk), _at(up_bias, hk)
        for n in _slices(tokens, block_tokens):
            x = _Operands(q_h[n].to(dtype), *weights, _at(r_h, n, dtype), *biases)
            out_n = _sum_for(out_h[n], dtype)
            for e, f in _row_blocks(subnetworks, width, *block_rows):
                _forward_block(out_n, x, e, f, formula)
            out_h[n].copy_(out_n)
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor,
    r: Tensor | None,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gate_scale: float,
    scale: float,
    needs: Sequence[bool],
) -> list[Tensor]:
    """The operator `mhf::flash_mhf_backward`; see `mhf_compile.kernels.ops`."""
    kv_heads, subnetworks, width, _ = v.shape
    tokens, group = q.shape[0] * q.shape[1], q.shape[2] // kv_heads
    block_tokens, *block_rows = block_sizes(tokens, subnetworks, width)
    dtype = _compute_dtype(q)
    formula = _Formula(hidden_of(activation, u is not None), gate_scale, scale)
    grads = [
        torch.zeros_like(x, memory_format=torch.contiguous_format) if x is not None and need else None
        for x, need in zip((q, k, u, v, r, gate_bias, up_bias), needs, strict=True)
    ]
    dq, dk, du, dv, dr, d_gate_bias, d_up_bias = grads

    for hk in range(kv_heads):
        weights = k[hk], _at(u, hk), v[hk]
        biases = _at(gate_bias, hk), _at(up_bias, hk)
        weight_grads = [_at(x, hk) for x in (dk, du, dv, d_gate_bias, d_up_bias)]
        weight_sums = [_sum_for(x, dtype) for x in weight_grads]
        k_sum, u_sum, v_sum, *bias_sums = weight_sums
        for h in range(hk * group, (hk + 1) * group):
            grad_h, q_h = _tokens(grad, h), _tokens(q, h)
            r_h, dq_h, dr_h = (_tokens(x, h) for x in (r, dq, dr))
            for n in _slices(tokens, block_tokens):
                x = _Operands(q_h[n].to(dtype), *weights, _at(r_h, n, dtype), *biases)
                token_grads = [_at(dq_h, n), _at(dr_h, n)]
                q_sum, r_sum = (_sum_for(x, dtype) for x in token_grads)
                sums = _Sums(q_sum, k_sum, u_sum, v_sum, r_sum, *bias_sums)
                for e, f in _row_blocks(subnetworks, width, *block_rows):
                    _backward_block(sums, grad_h[n].to(dtype), x, e, f, formula)
                _store(token_grads, [q_sum, r_sum])
        _store(weight_grads, weight_sums)
    return [x for x in grads if x is not None]


def _forward_block(out: Tensor, x: _Operands, e: slice, f: slice, formula: _Formula) -> None:
    """Add to `out` what the sub-networks `e`, or their rows `f`, give."""
    k, u, v = _rows(x.k, e, f, x.q.dtype), _rows(x.u, e, f, x.q.dtype), _rows(x.v, e, f, x.q.dtype)
    gate = _product(x.q, k, _bias(x.gate_bias, e, f), formula.gate_scale)
    up = None if u is None else _product(x.q, u, _bias(x.up_bias, e, f))
    hidden = formula.hidden.forward(gate, up)
    if x.r is not None:
        _by_subnetwork(hidden, e).mul_(x.r[:, e, None])
    out.addmm_(hidden, v, alpha=formula.scale)


def _backward_block(sums: _Sums, grad: Tensor, x: _Operands, e: slice, f: slice, formula: _Formula) -> None:
    """Add to `sums` what the sub-networks `e`, or their rows `f`, give."""
    k, u, v = _rows(x.k, e, f, x.q.dtype), _rows(x.u, e, f, x.q.dtype), _rows(x.v, e, f, x.q.dtype)
    _, gate_scale, scale = formula
    gate = _product(x.q, k, _bias(x.gate_bias, e, f), gate_scale)
    d_hidden = _product(grad, v, alpha=scale)
    up = None if u is None else _product(x.q, u, _bias(x.up_bias, e, f))
    hidden, activated = formula.hidden.again(gate, up)
    if sums.r is not None:
        sums.r[:, e].add_(_by_subnetwork(hidden * d_hidden, e).sum(-1))
    if x.r is not None:
        _by_subnetwork(hidden, e).mul_(x.r[:, e, None])
        _by_subnetwork(d_hidden, e).mul_(x.r[:, e, None])
    _add_product(sums.v, e, f, hidden, grad, scale)
    del hidden

    d_gate, d_up = formula.hidden.backward(d_hidden, gate, up, activated)
    if u is not None and d_up is not None:
        if sums.q is not None:
            sums.q.addmm_(d_up, u)
        _add_product(sums.u, e, f, d_up, x.q)
        _add_bias(sums.up_bias, e, f, d_up)
    if sums.q is not None:
        sums.q.addmm_(d_gate, k, alpha=gate_scale)
    _add_product(sums.k, e, f, d_gate, x.q, gate_scale)
    _add_bias(sums.gate_bias, e, f, d_gate)


def _compute_dtype(q: Tensor) -> torch.dtype:
    """float32 for half precision: sums over sub-networks and the elementwise chain round once, at the end."""
    return torch.promote_types(q.dtype, torch.float32)


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


def _row_blocks(subnetworks: int, width: int, block_e: int, block_f: int) -> Iterator[tuple[slice, slice]]:
    return ((e, f) for e in _slices(subnetworks, block_e) for f in _slices(width, block_f))


def _tokens(x: OptionalTensor, head: int) -> OptionalTensor:
    """[B, T, H, C] -> [B * T, C] of one head, a view where the strides allow."""
    return None if x is None else x[:, :, head].flatten(0, 1)


def _at(x: Tensor | None, index: int | slice, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if x is None else x[index].to(dtype or x.dtype)


def _rows(weight: OptionalTensor, e: slice, f: slice, dtype: torch.dtype) -> OptionalTensor:
    """The rows (e, f) as [e * f, C], a view where strides and dtype allow."""
    return None if weight is None else weight[e, f].to(dtype).flatten(0, 1)


def _bias(bias: Tensor | None, e: slice, f: slice) -> Tensor | None:
    return None if bias is None else bias[e, f].flatten()


def _by_subnetwork(wide: Tensor, e: slice) -> Tensor:
    """[N, e * f] -> [N, e, f]."""
    return wide.view(wide.shape[0], e.stop - e.start, -1)


def _product(x: Tensor, rows: Tensor, bias: Tensor | None = None, alpha: float = 1.0) -> Tensor:
    """`alpha * x @ rows.T + bias`."""
    if bias is None:
        return torch.addmm(x.new_empty(()), x, rows.t(), beta=0, alpha=alpha)
    return torch.addmm(bias.to(x.dtype), x, rows.t(), alpha=alpha)


def _add_product(
    total: Tensor | None, e: slice, f: slice, wide: Tensor, x: Tensor, alpha: float = 1.0
) -> None:
    """Add `alpha * wide.T @ x` to the rows (e, f) of a weight gradient."""
    if total is not None:
        total[e, f].view(wide.shape[1], x.shape[1]).addmm_(wide.t(), x, alpha=alpha)


def _add_bias(total: Tensor | None, e: slice, f: slice, wide: Tensor) -> None:
    """Add the sum of `wide` over tokens to the rows (e, f) of a bias gradient."""
    if total is not None:
        total[e, f].add_(_by_subnetwork(wide.sum(0, keepdim=True), e)[0])


def _sum_for(target: OptionalTensor, dtype: torch.dtype) -> OptionalTensor:
    """Where to sum for a zeroed `target` in `dtype`: the target itself if it has that dtype."""
    if target is None or target.dtype == dtype:
        return target
    return torch.zeros_like(target, dtype=dtype, memory_format=torch.contiguous_format)


def _store(targets: Sequence[Tensor | None], sums: Sequence[Tensor | None]) -> None:
    for target, total in zip(targets, sums, strict=True):
        if target is not None and total is not None:
            target.copy_(total)
