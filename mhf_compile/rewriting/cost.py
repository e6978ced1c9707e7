"""What a fused call costs, and what the program does in its place: a model of sizes, in seconds.

Work is counted in multiply-adds, bytes read and written, and calls; a machine says what each of them takes,
one after the other. What the rest of the program may be fused into is taken as it can be at best: of the
program's elementwise operations only the results of products are counted, once written and once read. So the
model says which of two ways is the faster where they differ by much; it is not a clock. The numbers of a GPU
are fitted to the figures in docs/kernels.md, those of a CPU to a few programs that were timed by hand on two
cores: dense ones of 4096 tokens, experts of one token each, and experts of 512, whose 36 MiB stay in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy
import torch

from mhf_compile import notation
from mhf_compile.kernels.flash_mhf.blocked import block_sizes
from mhf_compile.kernels.flash_mhf.config import Sizes
from mhf_compile.matching.match import Match
from mhf_compile.notation import Axis, Tensor, Term
from mhf_compile.notation.fold import Stacked
from mhf_compile.reading.rules import RULES, Kind, kind_of
from mhf_compile.rewriting.region import Region
from mhf_compile.tape.values import Op, Value


@dataclass(frozen=True)
class Machine:
    """What things take, in seconds.

    Attributes:
        multiply: a multiply-add of a large product.
        byte: to read or write a byte of memory.
        call: a kernel, or an operation of PyTorch.
        tile: tokens that are multiplied at a time, whether there are so many or not.
        cache: bytes of what is still in a cache when it is read again.
    """

    multiply: float
    byte: float
    call: float
    tile: int
    cache: float = 0


# Two threads of a server's processor, whose caches hold much of what is wide; others take their share of
# either way. An H100 or H200 in half precision, and in float32, without TF32. Of other GPUs the ratios are
# taken to be alike.
CPU = Machine(multiply=1 / 55e9, byte=1 / 40e9, call=8e-6, tile=1, cache=48 * 2**20)
GPU = Machine(multiply=1 / 390e12, byte=1 / 3e12, call=4e-6, tile=16)
GPU_FLOAT32 = Machine(multiply=1 / 25e12, byte=1 / 3e12, call=4e-6, tile=16)


@dataclass(frozen=True)
class Work:
    """What is to be done: multiply-adds, bytes read and written, and calls."""

    products: float = 0
    bytes: float = 0
    calls: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.bytes + other.bytes, self.calls + other.calls)

    def __mul__(self, times: float) -> Work:
        return Work(self.products * times, self.bytes * times, self.calls * times)

    def seconds(self, machine: Machine) -> float:
        """The time that it takes."""
        return self.products * machine.multiply + self.bytes * machine.byte + self.calls * machine.call


def sizes_of(match: Match, dtype: torch.dtype) -> Sizes:
    """The sizes of the call that a match is replaced with; symbolic ones by their hints."""

    def size(field: str) -> int:
        roles = match.pattern.fields[field]
        return math.prod(notation.known(match.unification.size(role), match.hints) for role in roles)

    return Sizes(
        tokens=size("tokens"),
        heads=size("heads"),
        kv_heads=size("kv_heads"),
        subnetworks=size("subnetworks"),
        width=size("width"),
        head_dim=size("head_dim"),
        out_dim=size("out_dim"),
        gated="u" in match.unification.operands,
        dtype=dtype,
    )


def estimates(region: Region) -> tuple[float, float]:
    """Seconds that a fused call takes, with what stands around it, and the region in whose place it is."""
    match, dtype = region.match, region.dtype
    machine = machine_of(match.root.device, dtype)
    training = match.root.requires_grad
    sizes = sizes_of(match, dtype)
    call = of_call(sizes, machine is CPU, training, machine.tile)
    call += of_operands(match, dtype) + of_result(match, dtype) + of_rests(region)
    return call.seconds(machine), of_program(region, match.hints).seconds(machine)


def stays_in_cache(region: Region) -> bool:
    """Whether all that a region makes of its products does, which a backward reads again."""
    machine, hints = machine_of(region.match.root.device, region.dtype), region.match.hints
    made = (value for value in region.own if kind_of(value.op) is not Kind.MOVE)
    return sum(_count(value, hints) * value.dtype.itemsize for value in made) <= machine.cache


def machine_of(device: torch.device, dtype: torch.dtype) -> Machine:
    """The machine that a device is taken for."""
    if device.type == "cpu":
        return CPU
    return GPU if dtype.itemsize == 2 else GPU_FLOAT32


def of_call(sizes: Sizes, on_cpu: bool, training: bool, tile: int = 1) -> Work:
    """What the fused call does; training, forward and backward.

    On a CPU it goes through heads, blocks of tokens and blocks of rows, with some operations for each. In
    backward gate and up are made again: 8 products instead of 6. On a GPU these are as measured on an H200:
    products at 0.83 of the library's rate, in backward 8 at about half of it, be they 11 or 13 on the chip or
    8 by chunks, through memory, for heads of more than 128 columns; in forward for those of more than 256.
    """
    tokens, size = -(-sizes.tokens // tile) * tile, sizes.dtype.itemsize
    columns = sizes.head_dim * (1 + sizes.gated) + sizes.out_dim
    weights = sizes.subnetworks * sizes.width * columns * size
    narrow = sizes.tokens * sizes.heads * (sizes.head_dim + sizes.out_dim) * size
    products = tokens * sizes.heads * sizes.subnetworks * sizes.width * columns
    if on_cpu:
        block, block_e, block_f = block_sizes(sizes.tokens, sizes.subnetworks, sizes.width)
        blocks = sizes.heads * -(-sizes.tokens // block)
        pieces = -(-sizes.subnetworks // block_e) * -(-sizes.width // block_f)
        forward = Work(products, blocks * weights + narrow, blocks * (6 + 6 * pieces))
        return forward + Work(8 / 3 * products, 3 * blocks * weights, blocks * 20 * pieces) * training
    widest, hidden = max(sizes.head_dim, sizes.out_dim), 2 * sizes.tokens * sizes.wide_bytes
    forward = Work(1.2 * products, sizes.kv_heads * weights + narrow + hidden * (widest > 256), 1)
    backward = Work(1.9 * 8 / 3 * products, 3 * narrow + 3 * hidden * (widest > 128), 6)
    return forward + backward * training


def of_operands(match: Match, dtype: torch.dtype) -> Work:
    """To make operands that are no views: stacks, repeated ones, sums and products of several tensors."""
    total = Work()
    for operand in match.unification.operands.values():
        size = _size(operand.axes, match.hints) * dtype.itemsize
        steps = max(0, sum(len(term.factors) + (term.coefficient != 1) for term in operand.terms) - 1)
        copies = sum(isinstance(leaf.value, Stacked) for leaf in operand.entries)
        total += Work(0, 2 * size * (steps + copies), steps + copies)
        if any(0 < len({*dim} & {*operand.axes}) < len(dim) for dim in operand.dims):  # it is repeated
            whole = _size([axis for dim in operand.dims for axis in dim], match.hints)
            total += Work(0, 2 * whole * dtype.itemsize, 1)
        total += _of_terms(operand.terms, match.hints)
    return total


def of_result(match: Match, dtype: torch.dtype) -> Work:
    """To make what is added to the result, and to add up the results of heads that have one together."""
    total = _of_terms(match.addends, match.hints)
    result = [axis for group in match.unification.result for axis in group]
    if not {axis for index in match.index for axis in index.axes}.issuperset(result):
        total += Work(0, 2 * _size(result, match.hints) * dtype.itemsize, 1)
    return total


def _of_terms(terms: Iterable[Term], hints: Mapping[sympy.Symbol, int]) -> Work:
    """The products of matrices in a sum of products."""
    summed = (term for term in terms if term.bound)
    return Work(sum(_size((*term.free, *term.bound), hints) for term in summed))


def _size(axes: Iterable[Axis], hints: Mapping[sympy.Symbol, int]) -> int:
    """How many entries some axes have."""
    return math.prod(notation.known(axis.size, hints) for axis in axes)


def of_rests(region: Region) -> Work:
    """What stays of products of which the match stands for a part."""
    total, hints = Work(), region.match.hints
    for rest in region.rests:
        size = rest.columns.whole.dtype.itemsize * _count(rest.columns, hints)
        once = _of_terms(rest.terms, hints) + Work(0, size, 1)
        total += once * (3 if region.match.root.requires_grad else 1)
    return total


def of_program(region: Region, hints: Mapping[sympy.Symbol, int]) -> Work:
    """What the operations of a region do that a fused call would take the place of."""
    kinds = {Kind.CONTRACT: _of_product, Kind.SUM: _of_sum}
    total, training = Work(), region.match.root.requires_grad
    for op in region.ops:
        of = kinds.get(RULES[op.name].kind)
        if of is not None and not region.own.isdisjoint(op.outputs):
            backward = sum(value.requires_grad for value in op.inputs[-2:]) if training else 0
            total += of(op, region.own, hints) * (1 + backward)  # a product for each gradient
    return total


def _of_product(op: Op, own: set[Value], hints: Mapping[sympy.Symbol, int]) -> Work:
    """A product of two matrices, or batches of them."""
    if op.name == "convolution":
        a, b = op.args[:2]
        summed = math.prod(notation.known(size, hints) for size in b.shape[1:])
    else:
        a, b = op.args[-2:]
        summed = notation.known(a.shape[-1], hints)
    (out,) = op.outputs
    return Work(_count(out, hints) * summed, sum(_moved(x, own, hints) for x in (a, b, out)), 1)


def _of_sum(op: Op, own: set[Value], hints: Mapping[sympy.Symbol, int]) -> Work:
    """A sum of what was multiplied entry by entry, which a compiler need not write to memory."""
    (out,) = op.outputs
    return Work(_count(op.args[0], hints), _moved(out, own, hints), 1)


def _count(value: Tensor, hints: Mapping[sympy.Symbol, int]) -> int:
    return math.prod(notation.known(size, hints) for size in value.shape)


def _moved(value: Value, own: set[Value], hints: Mapping[sympy.Symbol, int]) -> int:
    """Bytes of a value; twice where it is made and used in the region."""
    return _count(value, hints) * value.dtype.itemsize * (1 + (value in own))
