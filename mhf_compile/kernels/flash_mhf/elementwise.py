"""What the Triton kernels share: tiles, products and the elementwise functions."""

import triton
import triton.language as tl


@triton.jit
def token_rows(n, length, head, strides):
    """Offsets of tokens n = b * length + t of one head in a [B, T, H, C] operand."""
    n = n.to(tl.int64)
    return (n // length) * strides[0] + (n % length) * strides[1] + tl.cast(head, tl.int64) * strides[2]


@triton.jit
def weight_rows(f, head, subnetwork, strides):
    """Offsets of rows f of one sub-network in a [Hk, E, F, ...] operand."""
    return (
        tl.cast(head, tl.int64) * strides[0]
        + tl.cast(subnetwork, tl.int64) * strides[1]
        + f.to(tl.int64) * strides[2]
    )


@triton.jit
def load_tile(x, rows, in_rows, columns, stride, SIZE: tl.constexpr):
    """[rows, columns], 0 where either is outside."""
    inside = in_rows[:, None] & (columns < SIZE)[None, :]
    return tl.load(x + rows[:, None] + columns.to(tl.int64)[None, :] * stride, mask=inside, other=0.0)


@triton.jit
def store_tile(x, rows, in_rows, columns, values, SIZE: tl.constexpr):
    """The inverse of `load_tile`, for a contiguous last axis."""
    tl.store(x + rows[:, None] + columns[None, :], values, mask=in_rows[:, None] & (columns < SIZE)[None, :])


@triton.jit
def dot(a, b, total, UPCAST: tl.constexpr):
    """`total + a @ b` in float32, without TF32. The interpreter cannot multiply bfloat16: UPCAST there."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def row_products(
    a, a_rows, in_a, a_stride, b, b_rows, in_b, b_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """[a rows, b rows], float32: the products of rows of SIZE columns, taken BLOCK at a time."""
    total = tl.zeros((a_rows.shape[0], b_rows.shape[0]), tl.float32)
    for start in range(0, SIZE, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        a_tile = load_tile(a, a_rows, in_a, columns, a_stride, SIZE)
        b_tile = load_tile(b, b_rows, in_b, columns, b_stride, SIZE)
        total = dot(a_tile, tl.trans(b_tile), total, UPCAST)
    return total


@triton.jit
def load_bias(bias, f, in_f, head, subnetwork, strides):
    """A bias of rows f, float32."""
    return tl.load(bias + weight_rows(f, head, subnetwork, strides), mask=in_f, other=0.0).to(tl.float32)


@triton.jit
def load_router(r, n, in_n, length, head, subnetwork, strides):
    """The weights of one sub-network at tokens n, float32."""
    rows = token_rows(n, length, head, strides) + tl.cast(subnetwork, tl.int64) * strides[3]
    return tl.load(r + rows, mask=in_n, other=0.0).to(tl.float32)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def activate(x, NAME: tl.constexpr):
    """The activation, float32."""
    if NAME == "silu":
        y = x * tl.sigmoid(x)
    elif NAME == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        y = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "relu":
        y = tl.maximum(x, 0.0)
    elif NAME == "relu_squared":
        y = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif NAME == "sigmoid":
        y = tl.sigmoid(x)
    else:
        tl.static_assert(NAME == "identity")
        y = x
    return y


@triton.jit
def slope(x, NAME: tl.constexpr):
    """The derivative of `activate`."""
    if NAME == "silu":
        s = tl.sigmoid(x)
        y = s * (1 + x * (1 - s))
    elif NAME == "gelu":
        y = 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif NAME == "gelu_tanh":
        t = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        y = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * x * x)
    elif NAME == "relu":
        y = tl.where(x > 0, 1.0, 0.0)
    elif NAME == "relu_squared":
        y = 2 * tl.maximum(x, 0.0)
    elif NAME == "sigmoid":
        s = tl.sigmoid(x)
        y = s * (1 - s)
    else:
        tl.static_assert(NAME == "identity")
        y = tl.full(x.shape, 1.0, tl.float32)
    return y
