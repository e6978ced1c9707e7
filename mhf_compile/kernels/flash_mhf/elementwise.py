"""The activations and their slopes, in float32, inside the Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def _fast_tanh(x):
    """One instruction of the special function unit; absolute error below 2^-11."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _sigmoids(x):
    """The sigmoids of x and of -x by one exponential; 1 - sigmoid(x) has few digits where x is large."""
    e = tl.exp(-x)
    s = 1 / (1 + e)
    return s, tl.where(s < 0.5, 1 - s, e * s)


@triton.jit
def activate(x, NAME: tl.constexpr, FAST: tl.constexpr):
    """The activation. For a FAST silu, x is half of its argument: silu(2x) = x + x tanh(x)."""
    if NAME == "silu":
        if FAST:
            y = x + x * _fast_tanh(x)
        else:
            y = x * tl.sigmoid(x)
    elif NAME == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        y = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "relu_squared":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        y = y * y
    elif NAME == "sigmoid":
        y = tl.sigmoid(x)
    else:
        tl.static_assert(NAME == "identity")
        y = x
    return y


@triton.jit
def slope(x, NAME: tl.constexpr, FAST: tl.constexpr):
    """The derivative of the activation, x as in `activate`."""
    if NAME == "silu":
        if FAST:
            t = _fast_tanh(x)
            y = (0.5 + 0.5 * t) * (1 + x * (1 - t))
        else:
            s, of_minus = _sigmoids(x)
            y = s * (1 + x * of_minus)
    elif NAME == "gelu":
        y = 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif NAME == "gelu_tanh":
        t = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        y = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * x * x)
    elif NAME == "relu":
        y = tl.full(x.shape, 1.0, tl.float32)  # what is cut off comes after
    elif NAME == "relu_squared":
        y = 2 * tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "sigmoid":
        s, of_minus = _sigmoids(x)
        y = s * of_minus
    else:
        tl.static_assert(NAME == "identity")
        y = tl.full(x.shape, 1.0, tl.float32)
    return y


@triton.jit
def cut_off(gradient, x, NAME: tl.constexpr):
    """A gradient in front of the activation, 0 where a relu lets none through: 0 times infinity is none."""
    if NAME == "relu" or NAME == "relu_squared":
        gradient = tl.where(x <= 0, 0.0, gradient)
    return gradient
