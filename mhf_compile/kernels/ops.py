"""The operators `mhf::flash_mhf` and `mhf::flash_mhf_backward`, and the function that calls them.

Here are the schemas, the checks of the operands, the fakes, autograd and the choice of an implementation:
Triton for CUDA tensors, plain ATen for CPU tensors, each imported at the first call. Both operators are
opaque to the compiler, which sees a call that saves q, k, u, v, r and the biases and nothing wide.

Registered by importing this module, and by nothing else in the package.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mhf_compile.kernels.activations import expression_of
from mhf_compile.kernels.derivatives import directional, formula, of_present
from mhf_compile.kernels.support import DTYPES, unsupported

T = TypeVar("T")

_OPERANDS = "Tensor q, Tensor k, Tensor? u, Tensor v, Tensor? r, Tensor? gate_bias, Tensor? up_bias"
_CONSTANTS = "str activation, float gate_scale, float scale"
_WORKSPACE = "int? workspace=None"

_library = torch.library.Library("mhf", "DEF")
_library.define(
    f"flash_mhf({_OPERANDS}, {_CONSTANTS}, {_WORKSPACE}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
# `needs` marks the operands whose gradients are returned, in the order of the operands.
_library.define(
    f"flash_mhf_backward(Tensor grad, {_OPERANDS}, {_CONSTANTS}, bool[] needs, {_WORKSPACE}) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)
_forward = torch.ops.mhf.flash_mhf.default
_backward = torch.ops.mhf.flash_mhf_backward.default


def flash_mhf(
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor,
    r: Tensor | None = None,
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: str = "silu",
    gate_scale: float = 1.0,
    scale: float = 1.0,
    workspace: int | None = None,
) -> Tensor:
    """Multi-head feed-forward, without its wide intermediate in memory (FlashMHF, arXiv 2512.06989).

    With `hk = h // (H // Hk)`, the key-value head that query head h uses:

        gate[b,t,h,e,f] = gate_scale * sum_d q[b,t,h,d] k[hk,e,f,d] + gate_bias[hk,e,f]
        up[b,t,h,e,f]   = sum_d q[b,t,h,d] u[hk,e,f,d] + up_bias[hk,e,f]
        out[b,t,h,o]    = scale * sum_e r[b,t,h,e] sum_f activation(gate[b,t,h,e,f]) up[b,t,h,e,f] v[hk,e,f,o]

    Without u the feed-forward is ungated: the factor up is left out.

    Differentiable twice in all tensors; backward recomputes gate and up from the operands, which are all it
    saves. Products accumulate, and the elementwise chain runs, in float32 (float64 for float64). A second
    derivative, and forward-mode differentiation, run the plain formula and do write wide tensors. Autocast
    does not change the dtypes: cast the operands to one dtype first.

    Args:
        q: [B, T, H, D], tokens split into heads. float16, bfloat16 or float32; on CPU also float64.
        k: [Hk, E, F, D], gate weights of E sub-networks of width F. Hk divides H. dtype of q.
        u: [Hk, E, F, D], up weights, dtype of q; or None, for an ungated feed-forward.
        v: [Hk, E, F, O], down weights. dtype of q.
        r: [B, T, H, E], the weight of each sub-network; any floating dtype; None stands for ones.
        gate_bias: [Hk, E, F], dtype of q, or None.
        up_bias: [Hk, E, F], dtype of q, or None; None without u.
        activation: silu, gelu, gelu_tanh, relu, relu_squared, sigmoid or identity; or an expression of the
            functions in `mhf_compile.kernels.expressions`: of gate, "mish(gate)", or of gate and up, which is
            all of the hidden value then, "clamp(gate, -inf, 7) * sigmoid(gate) * (up + 1)".
        gate_scale: a constant factor of the gate product, not of its bias.
        scale: a constant factor of the result.
        workspace: bytes that the call may use on a GPU beside its operands, result and gradients; see below.

    Any strides, expanded operands included. B and T may be 0; the other sizes are at least 1.

    Memory: on the chip a call keeps everything but results and, for few tokens, float32 partial sums of them.
    Heads of more than 256 columns (128 in float32), and of more than 128 in backward, go by chunks of tokens
    instead, whose hidden values, and gradients in backward, fill up to `workspace` bytes (None: 128 MiB; 256
    tokens at least; all in backward, where sums over chunks would take more).
    `mhf_compile.kernels.flash_mhf.memory` has the formulas. On a CPU, see `blocked`.

    Returns:
        [B, T, H, O], contiguous, dtype of q.

    What is saved for backward may not be written to before it: a parameter that is clamped in place between
    forward and backward is the error "modified by an inplace operation", which eager gives for fewer of them.

    Raises:
        TypeError: an operand is of a wrong dtype.
        NotImplementedError: there are no kernels for the GPU of q, or no Triton to compile them.
        ValueError: an operand is of a wrong shape or on another device than q, up_bias is given without u, or
            the activation is neither a name nor an expression.
    """
    operands = (q, k, u, v, r, gate_bias, up_bias)
    _check(*operands, activation)
    out: Tensor = _forward(*operands, activation, gate_scale, scale, workspace)
    return out


def _check(
    q: Tensor,
    k: Tensor,
    u: Tensor | None,
    v: Tensor,
    r: Tensor | None,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
) -> None:
    """Raise unless the operands are as the docstring of `flash_mhf` says."""
    expression_of(activation, u is not None)  # or it says what is wrong
    for name, x, axes in (("q", q, "[B, T, H, D]"), ("k", k, "[Hk, E, F, D]"), ("v", v, "[Hk, E, F, O]")):
        if x.dim() != 4:
            raise ValueError(f"{name}: found shape {list(x.shape)}, want {axes}")
    batch, length, heads, head_dim = q.shape
    kv_heads, subnetworks, width, _ = k.shape
    out_dim = v.shape[3]
    if min(heads, head_dim, kv_heads, subnetworks, width, out_dim) < 1:
        raise ValueError(
            f"q, k, v: found shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)}, "
            "want only B and T of q [B, T, H, D] to be 0"
        )
    if heads % kv_heads:
        raise ValueError(f"k: found {kv_heads} heads, want a divisor of the {heads} heads of q")
    allowed = DTYPES.get(q.device.type, ())
    if q.dtype not in allowed:
        raise TypeError(f"q: found {q.dtype} on {q.device.type}, want one of {', '.join(map(str, allowed))}")
    if reason := unsupported(q.device, q.dtype):
        raise NotImplementedError(reason)
    if u is None and up_bias is not None:
        raise ValueError("up_bias: found a tensor, want None where u is None")
    weight = (kv_heads, subnetworks, width)
    for name, operand, shape in (
        ("k", k, (*weight, head_dim)),
        ("u", u, (*weight, head_dim)),
        ("v", v, (*weight, out_dim)),
        ("r", r, (batch, length, heads, subnetworks)),
        ("gate_bias", gate_bias, weight),
        ("up_bias", up_bias, weight),
    ):
        if operand is None:
            continue
        if operand.shape != shape:
            raise ValueError(f"{name}: found shape {list(operand.shape)}, want {list(shape)}")
        if operand.device != q.device:
            raise ValueError(f"{name}: found device {operand.device}, want {q.device}, the device of q")
        if name == "r" and not operand.is_floating_point():
            raise TypeError(f"r: found {operand.dtype}, want a floating dtype")
        if name != "r" and operand.dtype != q.dtype:
            raise TypeError(f"{name}: found {operand.dtype}, want {q.dtype}, the dtype of q")


@torch.library.impl(_library, "flash_mhf", "CPU")
def _forward_cpu(*args: Any) -> Tensor:
    from mhf_compile.kernels.flash_mhf import blocked

    _check(*args[:8])
    with torch.autocast("cpu", enabled=False):  # which would cast the products inside
        return blocked.forward(*args[:10])


@torch.library.impl(_library, "flash_mhf", "CUDA")
def _forward_cuda(*args: Any) -> Tensor:
    from mhf_compile.kernels.flash_mhf import forward

    _check(*args[:8])
    with torch.autocast("cuda", enabled=False):
        out: Tensor = forward.forward(*args)
    return out


@torch.library.impl(_library, "flash_mhf_backward", "CPU")
def _backward_cpu(grad: Tensor, *args: Any) -> list[Tensor]:
    from mhf_compile.kernels.flash_mhf import blocked

    _check(*args[:8])
    with torch.autocast("cpu", enabled=False):
        return blocked.backward(grad, *args[:11])


@torch.library.impl(_library, "flash_mhf_backward", "CUDA")
def _backward_cuda(grad: Tensor, *args: Any) -> list[Tensor]:
    from mhf_compile.kernels.flash_mhf import backward

    _check(*args[:8])
    with torch.autocast("cuda", enabled=False):
        grads: list[Tensor] = backward.backward(grad, *args)
    return grads


def _forward_fake(q: Tensor, k: Tensor, u: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


def _backward_fake(grad: Tensor, *args: Any) -> list[Tensor]:
    wanted = (x for x, need in zip(args[:7], args[10], strict=True) if x is not None and need)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in wanted]


torch.library.register_fake("mhf::flash_mhf", _forward_fake, lib=_library)
torch.library.register_fake("mhf::flash_mhf_backward", _backward_fake, lib=_library)


class _Forward(torch.autograd.Function):
    """Autograd of `mhf::flash_mhf`."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out: Tensor = _forward(*args)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])
        ctx.constants = inputs[7:10]
        ctx.workspace = inputs[10] if len(inputs) > 10 else None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:7])
        grads = iter(_backward(grad, *ctx.saved_tensors, *ctx.constants, needs, ctx.workspace))
        others = len(ctx.needs_input_grad) - 7
        return *(next(grads) if need else None for need in needs), *[None] * others

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """By the plain formula."""
        function = of_present(lambda *operands: formula(operands, *ctx.constants), ctx.saved_tensors)
        out: Tensor = directional(function, ctx.saved_tensors, tangents)
        return out


class _Backward(torch.autograd.Function):
    """Autograd of `mhf::flash_mhf_backward`, by the plain formula differentiated twice."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:8])
        ctx.save_for_forward(*inputs[:8])
        ctx.constants, ctx.needs = inputs[8:11], inputs[11]

    @staticmethod
    def gradients(ctx: Any) -> Callable[..., list[Tensor]]:
        """What the operator returns, as a function of those of its tensors that there are."""
        constants, needs = ctx.constants, ctx.needs
        operands = ctx.saved_tensors[1:]
        wanted = [need for need, x in zip(needs, operands, strict=True) if x is not None]

        def gradients(grad: Tensor, *tensors: Tensor) -> list[Tensor]:
            function = of_present(lambda *given: formula(given, *constants), operands)
            grads = torch.func.vjp(function, *tensors)[1](grad)
            return [x for x, want in zip(grads, wanted, strict=True) if want]

        return gradients

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = [x for x in ctx.saved_tensors if x is not None]
        seconds = iter(torch.func.vjp(_Backward.gradients(ctx), *tensors)[1](list(grad_grads)))
        others = len(ctx.needs_input_grad) - 8
        return *(None if x is None else next(seconds) for x in ctx.saved_tensors), *[None] * others

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(directional(_Backward.gradients(ctx), ctx.saved_tensors, tangents))


@torch.library.impl(_library, "flash_mhf", "Autograd")
def _forward_autograd(*args: Any) -> Tensor:
    _refuse_functorch("flash_mhf")
    out: Tensor = _Forward.apply(*args)  # type: ignore[no-untyped-call]
    return out


@torch.library.impl(_library, "flash_mhf_backward", "Autograd")
def _backward_autograd(*args: Any) -> list[Tensor]:
    _refuse_functorch("flash_mhf_backward")
    return list(_Backward.apply(*args))  # type: ignore[no-untyped-call]


def _refuse_functorch(name: str) -> None:
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"mhf::{name} cannot be differentiated by torch.func (grad, vjp, jvp and what builds on them); "
            "use torch.autograd"
        )


Rule = Callable[..., tuple[Any, Any]]


def _by_sample(op: Callable[..., Any]) -> Rule:
    """A rule of torch.func.vmap that calls `op` once for each sample."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def sample(number: int) -> Any:
            return op(*(_entry(x, dim, number) for x, dim in zip(args, in_dims, strict=True)))

        # Of no samples, one that is made up shows what results would look like.
        samples = [sample(number) for number in range(max(info.batch_size, 1))]

        def stacked(parts: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(parts))[: info.batch_size]

        if isinstance(samples[0], Tensor):
            return stacked(samples), 0
        return [stacked(parts) for parts in zip(*samples, strict=True)], [0] * len(samples[0])

    return rule


def _entry(x: Any, dim: int | None, number: int) -> Any:
    """One of what an argument is mapped over; zeros where it is over nothing."""
    if not isinstance(dim, int):
        return x
    return x.select(dim, number) if x.shape[dim] else x.new_zeros(x.movedim(dim, 0).shape[1:])


def _by_sample_in_autograd(rule: Rule) -> Callable[..., Any]:
    """The same for the vmap of torch.autograd (`is_grads_batched`, `vectorize`), which is another one.

    PyTorch has a fallback for it, but not for operators with several results.
    """

    def kernel(*args: Any) -> Any:
        depth = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()

        def unwrapped(x: Any) -> Any:
            for level in range(depth, 0, -1) if isinstance(x, Tensor) else ():
                x = torch._remove_batch_dim(x, level, 1, 0)  # of size 1 where it is not mapped
            return x

        given = [unwrapped(x) for x in args]
        sizes = torch.broadcast_shapes(*(x.shape[:depth] for x in given if isinstance(x, Tensor)))
        dims: list[int | None] = []
        for i, x in enumerate(given):
            mapped = isinstance(x, Tensor) and x.shape[:depth].numel() != 1
            dims.append(0 if mapped else None)
            if mapped:
                given[i] = x.expand(*sizes, *x.shape[depth:]).flatten(0, depth - 1)
            elif isinstance(x, Tensor):
                given[i] = x.reshape(x.shape[depth:])
        results, _ = rule(SimpleNamespace(batch_size=sizes.numel()), tuple(dims), *given)

        def wrapped(x: Tensor) -> Tensor:
            x = x.unflatten(0, sizes)
            for level in range(1, depth + 1):
                x = torch._add_batch_dim(x, 0, level)
            return x

        return wrapped(results) if isinstance(results, Tensor) else [wrapped(x) for x in results]

    return kernel


for _name, _op in (("flash_mhf", _forward), ("flash_mhf_backward", _backward)):
    _rule = _by_sample(_op)
    torch.library.register_vmap(f"mhf::{_name}", _rule, lib=_library)
    torch.library.impl(_library, _name, "Batched")(_by_sample_in_autograd(_rule))
