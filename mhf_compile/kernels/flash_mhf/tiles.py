"""Tiles of the operands in the Triton kernels: how they are loaded, multiplied and stored.

A row of SIZE columns is held as a tuple of tiles, one for each power of two in COLUMNS, e.g. (64, 32) for
96 columns: nothing is padded that need not be. A tile comes through pointers, of any strides, or through a
descriptor (TMA), which fills what is outside with zeros by itself.
"""

import triton
import triton.language as tl


@triton.jit
def token_rows(n, length, head, strides):
    """Offsets of tokens n = b * length + t of one head in a [B, T, H, C] operand; without length T is N."""
    n = n.to(tl.int64)
    if length is None:
        rows = n * strides[1]
    else:
        rows = (n // length) * strides[0] + (n % length) * strides[1]
    return rows + tl.cast(head, tl.int64) * strides[2]


@triton.jit
def weight_rows(f, head, subnetwork, strides):
    """Offsets of rows f of one sub-network in a [Hk, E, F, ...] operand."""
    return (
        tl.cast(head, tl.int64) * strides[0]
        + tl.cast(subnetwork, tl.int64) * strides[1]
        + f.to(tl.int64) * strides[2]
    )


@triton.jit
def load_tile(
    x, rows, in_rows, columns, stride, SIZE: tl.constexpr, WHOLE: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """[rows, columns], 0 where either is outside; WHOLE: no column is, EVEN: no row is."""
    pointers = x + rows[:, None] + columns.to(tl.int64)[None, :] * stride
    if WHOLE and EVEN:
        tile = tl.load(pointers)
    elif WHOLE:
        tile = tl.load(pointers, mask=in_rows[:, None], other=0.0)
    elif EVEN:
        tile = tl.load(pointers, mask=(columns < SIZE)[None, :], other=0.0)
    else:
        tile = tl.load(pointers, mask=in_rows[:, None] & (columns < SIZE)[None, :], other=0.0)
    return tile


@triton.jit
def load_row_tiles(
    x, rows, in_rows, stride, COLUMNS: tl.constexpr, SIZE: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """All columns of rows, through pointers."""
    tiles = ()
    first = 0
    for i in tl.static_range(len(COLUMNS)):
        columns = first + tl.arange(0, COLUMNS[i])
        tile = load_tile(x, rows, in_rows, columns, stride, SIZE, first + COLUMNS[i] <= SIZE, EVEN)
        tiles = tiles + (tile,)
        first += COLUMNS[i]
    return tiles


@triton.jit
def load_tokens(
    x, beside, strides, first, tokens, length, head, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SIZE: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one head of a [B, T, H, C] operand; DESCRIBED as [N, H, C], a second tile `beside`."""
    if DESCRIBED:
        tiles = (x.load([first, head, 0]).reshape(ROWS, COLUMNS[0]),)
        if len(COLUMNS) > 1:
            tiles = tiles + (beside.load([first, head, COLUMNS[0]]).reshape(ROWS, COLUMNS[1]),)
    else:
        n = first + tl.arange(0, ROWS)
        tiles = load_row_tiles(
            x, token_rows(n, length, head, strides), n < tokens, strides[3], COLUMNS, SIZE, EVEN
        )
    return tiles


@triton.jit
def load_weights(
    x, beside, strides, first, width, head, subnetwork, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SIZE: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one sub-network of a [Hk, E, F, C] operand; DESCRIBED as it is, a second tile `beside`."""
    if DESCRIBED:
        tiles = (x.load([head, subnetwork, first, 0]).reshape(ROWS, COLUMNS[0]),)
        if len(COLUMNS) > 1:
            tiles = tiles + (beside.load([head, subnetwork, first, COLUMNS[0]]).reshape(ROWS, COLUMNS[1]),)
    else:
        f = first + tl.arange(0, ROWS)
        tiles = load_row_tiles(
            x, weight_rows(f, head, subnetwork, strides), f < width, strides[3], COLUMNS, SIZE, EVEN
        )
    return tiles


@triton.jit
def load_bias(bias, f, in_f, head, subnetwork, strides):
    """A bias of rows f, float32."""
    return tl.load(bias + weight_rows(f, head, subnetwork, strides), mask=in_f, other=0.0).to(tl.float32)


@triton.jit
def load_router(r, n, in_n, length, head, subnetwork, strides, EVEN: tl.constexpr):
    """The weights of one sub-network at tokens n, float32."""
    rows = token_rows(n, length, head, strides) + tl.cast(subnetwork, tl.int64) * strides[3]
    if EVEN:
        values = tl.load(r + rows)
    else:
        values = tl.load(r + rows, mask=in_n, other=0.0)
    return values.to(tl.float32)


@triton.jit
def store_tiles(x, rows, in_rows, tiles, factor, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """Store `factor` times the tiles, in the dtype of x, whose last axis is contiguous."""
    first = 0
    for i in tl.static_range(len(COLUMNS)):
        columns = first + tl.arange(0, COLUMNS[i])
        inside = in_rows[:, None] & (columns < SIZE)[None, :]
        tl.store(x + rows[:, None] + columns[None, :], tiles[i] * factor, mask=inside)
        first += COLUMNS[i]


@triton.jit
def store_or_leave(
    x, parts, rows, shift, stride, in_part, in_rows, tiles, factor, COLUMNS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """`store_tiles` in x, or in a part, `shift` rows further on. Without `parts`, in x."""
    if parts is None:
        store_tiles(x, rows, in_rows, tiles, factor, COLUMNS, SIZE)
    else:
        if in_part:
            rows += tl.cast(shift, tl.int64) * stride
            store_tiles(parts, rows, in_rows, tiles, factor, COLUMNS, SIZE)
        else:
            store_tiles(x, rows, in_rows, tiles, factor, COLUMNS, SIZE)


@triton.jit
def store_or_leave_vector(x, parts, rows, shift, in_part, in_rows, values):
    """As `store_or_leave`, a number for each row."""
    if parts is None:
        tl.store(x + rows, values, mask=in_rows)
    else:
        if in_part:
            tl.store(parts + rows + shift, values, mask=in_rows)
        else:
            tl.store(x + rows, values, mask=in_rows)


@triton.jit
def is_last(counters, at, count):
    """Whether this is the last of so many programs that count at a place, which it leaves at zero as it was.

    What the others stored before is seen from then on.
    """
    tl.debug_barrier()  # all threads have stored before one of them counts
    is_last = tl.atomic_add(counters + at, 1, sem="acq_rel") == count - 1
    if is_last:
        tl.store(counters + at, 0)
    return is_last


@triton.jit
def add_parts(
    parts, stride, count, rows, in_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The sums of tiles that programs left, in their order; not from a cache that others do not write to."""
    sums = ()
    first_column = 0
    for j in tl.static_range(len(COLUMNS)):
        columns = first_column + tl.arange(0, COLUMNS[j])
        inside = in_rows[:, None] & (columns < SIZE)[None, :]
        at = parts + rows[:, None] + columns[None, :]
        total = zero_tile(ROWS, COLUMNS[j])
        for first in range(0, count, AT_ONCE):
            loaded = ()
            for i in tl.static_range(AT_ONCE):
                part = at + (first + i) * tl.cast(stride, tl.int64)
                there = inside & (first + i < count)
                loaded = loaded + (tl.load(part, mask=there, other=0.0, cache_modifier=".cg"),)
            for i in tl.static_range(AT_ONCE):
                total += loaded[i]
        sums = sums + (total,)
        first_column += COLUMNS[j]
    return sums


@triton.jit
def zero_tile(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Zeros, float32."""
    return tl.zeros((ROWS, WIDTH), tl.float32)


@triton.jit
def zero_tiles(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Zeros of all columns of rows, float32."""
    tiles = ()
    for i in tl.static_range(len(COLUMNS)):
        tiles = tiles + (zero_tile(ROWS, COLUMNS[i]),)
    return tiles


@triton.jit
def dot(a, b, total, UPCAST: tl.constexpr):
    """`total + a @ b` in float32, without TF32. The interpreter cannot multiply bfloat16: UPCAST there."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def in_registers(
    tiles, FACTOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """FACTOR times each tile, in the registers from which a product takes its left operand.

    They are the result of a product because only from one do they come in the right registers: else Triton
    keeps the tile in shared memory, and loads it from there again for each product. An infinite entry makes
    its row NaN, as it does in nearly every product.
    """
    held = ()
    for i in tl.static_range(len(COLUMNS)):
        at = tl.arange(0, COLUMNS[i])
        diagonal = tl.where(at[:, None] == at[None, :], FACTOR, 0.0).to(tiles[i].dtype)
        held = held + (dot(tiles[i], diagonal, zero_tile(ROWS, COLUMNS[i]), UPCAST).to(tiles[i].dtype),)
    return held


@triton.jit
def row_products(
    a, b, A_ROWS: tl.constexpr, B_ROWS: tl.constexpr, COLUMNS: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """[a rows, b rows], float32: the products of rows, over all their columns."""
    total = tl.zeros((A_ROWS, B_ROWS), tl.float32)
    for i in tl.static_range(len(COLUMNS)):
        total = dot(a[i], tl.trans(b[i]), total, UPCAST)
    return total


@triton.jit
def add_product(totals, a, b, COLUMNS: tl.constexpr, UPCAST: tl.constexpr):
    """`totals + a @ b`, where b and totals have COLUMNS."""
    sums = ()
    for i in tl.static_range(len(COLUMNS)):
        sums = sums + (dot(a.to(b[i].dtype), b[i], totals[i], UPCAST),)
    return sums
