"""How every Triton kernel of this folder is launched: its arguments, its grid, its tiles."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mhf_compile.kernels.activations import compiled_in
from mhf_compile.kernels.flash_mhf import config, tuned, waves
from mhf_compile.kernels.flash_mhf.config import Kernel, Sizes, Target, Tiles
from mhf_compile.kernels.support import architecture


class Launch(NamedTuple):
    """A kernel, ready to run, or to be compiled ahead of time.

    `tiles` are as they are used: with descriptors, and dR collected, only where the operands allow it; None
    for a kernel that has no choice.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]
    tiles: Tiles | None = None

    def run(self) -> None:
        """Put it into the stream of the device of its tensors, or give it to `watcher` if there is one."""
        watch = watcher.get()
        if watch is not None:
            watch(self)
            return
        device = next(x.device for x in self.args if isinstance(x, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](*self.args, **self.options)


watcher: ContextVar[Callable[[Launch], object] | None] = ContextVar("watcher", default=None)
"""What launches are given to instead of being run."""


@dataclass(frozen=True)
class Call:
    """The operands and constants of one call, as those of `mhf_compile.kernels.ops.flash_mhf`.

    `forced` are tiles that are tried out, instead of those that were found the best or stand in the tables;
    without `split` no tiles are left in parts.
    """

    q: Tensor
    k: Tensor
    u: Tensor | None
    v: Tensor
    r: Tensor | None
    gate_bias: Tensor | None
    up_bias: Tensor | None
    activation: str
    gate_scale: float
    scale: float
    target: Target
    forced: Mapping[Kernel, Tiles] = field(default_factory=dict)
    split: bool = True

    @cached_property
    def sizes(self) -> Sizes:
        """All that tiles are chosen by."""
        batch, length, heads, head_dim = self.q.shape
        kv_heads, subnetworks, width, out_dim = self.v.shape
        gated = self.u is not None
        tokens, dtype = batch * length, self.q.dtype
        return Sizes(tokens, heads, kv_heads, subnetworks, width, head_dim, out_dim, gated, dtype)

    @property
    def group(self) -> int:
        """How many heads share a key-value head."""
        return self.sizes.heads // self.sizes.kv_heads

    def tiles(self, name: Kernel) -> Tiles:
        """The tiles of one of the kernels."""
        key = config.key(name, self.sizes)
        tiles = self.forced.get(name) or tuned.chosen(key, self.sizes.tokens, self.target)
        if tiles.specialised and not self._specialisable(tiles):
            row = config.table(self.target.arch)[key]
            return next(candidate for candidate in row if not candidate.specialised)
        return tiles

    def _specialisable(self, tiles: Tiles) -> bool:
        """Whether `specialised_kernel` can be used: for whole tiles of what it knows, through descriptors."""
        sizes, wide = self.sizes, 128
        return (
            _has_specialised()
            and self.fast
            and sizes.gated
            and self.up_bias is None
            and sizes.head_dim == sizes.out_dim == wide
            and sizes.tokens % tiles.tokens == sizes.width % tiles.rows == 0
            and sizes.tokens * sizes.heads * sizes.subnetworks < 2**31
            and all(x is not None and x.is_contiguous() and aligned(x) for x in (self.k, self.u, self.v))
            and lies_flat(self.q)
        )

    def parts(self, name: Kernel, pieces: int) -> int:
        """In how many parts a kernel over tokens splits what it walks over, so many pieces."""
        tiles = self.tiles(name)
        programs = triton.cdiv(self.sizes.tokens, tiles.tokens) * self.sizes.heads
        return config.parts(programs, pieces, tiles, self.target.processors)

    def tail(self, name: Kernel) -> waves.Tail | None:
        """What a kernel of the weights' gradients leaves in parts; None where it is nothing."""
        return waves.tail(name, self.sizes, self.tiles(name), self.target) if self.split else None

    @property
    def fast(self) -> bool:
        """Whether a silu is x + x tanh(x), of half its argument, with one approximate tanh.

        The tanh errs by up to 2^-11 of itself. For gates around zero that is half of what eager's roundings
        to bfloat16 do; around -4 it is 1.4 times that, and beyond, where silu itself vanishes, more.
        So it is not used where a bias may shift them, and not in float16, whose roundings are finer.
        """
        return (
            self.target.arch.startswith("sm_")
            and not triton.knobs.runtime.interpret
            and (self.q.dtype, self.activation, self.gate_bias) == (torch.bfloat16, "silu", None)
        )

    def launch(
        self,
        name: Kernel,
        kernel: Any,
        grid: tuple[int, ...],
        tokens_like: Sequence[Tensor | None],
        weights_like: Sequence[Tensor | None],
        extra: Sequence[int | None],
        tiles: Tiles,
        *,
        contiguous: Sequence[Any] = (),
        tokens: int | None = None,
    ) -> Launch:
        """Put the arguments of a kernel together.

        They are the operands, further tensors [B, T, H, ...] and [Hk, E, F, ...], `contiguous` ones, and
        descriptors of second tiles of columns; the strides of all but the last two, constants and sizes,
        `extra` ones; then what is compiled in. `tokens` is how many the grid covers, if not all.
        """
        described = self.describable(name, tokens_like, tiles.described)
        flat = all(x is None or token_stride(x) is not None for x in (self.q, self.r, *tokens_like))
        strides = (
            _token_strides(self.q, flat),
            *map(_strides, (self.k, self.u, self.v)),
            _token_strides(self.r, flat),
            *map(_strides, (self.gate_bias, self.up_bias)),
            *(_token_strides(x, flat) for x in tokens_like),
            *map(_strides, weights_like),
        )
        operands: list[Any] = [
            self.q, self.k, self.u, self.v, self.r, self.gate_bias, self.up_bias,
            *tokens_like, *weights_like, *contiguous,
        ]  # fmt: skip
        sizes = self.sizes
        d, o = config.columns(sizes.head_dim), config.columns(sizes.out_dim)
        holds = not tiles.columns  # all columns of what it walks over
        if holds:
            operands += self._describe(operands, name, tiles) if described else [None] * len(_walked(name))
        most = max(16, 1 << (sizes.subnetworks - 1).bit_length())
        collected = most if tiles.collected and most <= config.COLLECTED else 0
        length = None if flat else self.q.shape[1]
        args = (
            *operands, *strides, self.gate_scale, self.scale,
            sizes.tokens, length, self.group, sizes.subnetworks, sizes.width, *extra,
        )  # fmt: skip
        columns = {"D": d, "O": o, "DESCRIBED": described} if holds else {"BLOCK_D": tiles.columns}
        options = {
            "HEAD_DIM": sizes.head_dim,
            "OUT_DIM": sizes.out_dim,
            "ACTIVATION": compiled_in(self.activation, sizes.gated),
            "GATE_SCALED": self.gate_scale != 1,
            "SCALED": self.scale != 1,
            "BLOCK_N": tiles.tokens,
            "BLOCK_F": tiles.rows,
            "EVEN_N": (sizes.tokens if tokens is None else tokens) % tiles.tokens == 0,
            "EVEN_F": sizes.width % tiles.rows == 0,
            "FAST": self.fast,
            "UPCAST": triton.knobs.runtime.interpret and self.q.dtype == torch.bfloat16,
            **columns,
            **({"RESIDENT": tiles.resident} if name in ("forward", "decode", "dq") else {}),
            **({"COLLECTED": collected} if name == "dq" else {}),
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }
        described_by = max(len(d), len(o)) if described else 0
        used = tiles._replace(described=described_by, collected=bool(collected))
        return Launch(name, kernel, grid, args, options, used)

    def describable(self, name: Kernel, tokens_like: Sequence[Tensor | None], most: int) -> bool:
        """Whether a kernel can load what it walks over through at most so many descriptors of an operand."""
        sizes = self.sizes
        if max(len(config.columns(sizes.head_dim)), len(config.columns(sizes.out_dim))) > most:
            return False
        if name in WALK_ROWS:
            walked: tuple[Tensor | None, ...] = (self.k, self.u, self.v)
            strides = [_strides(x) for x in walked if x is not None]
        else:
            walked = (self.q, tokens_like[0])
            if any(x is not None and token_stride(x) is None for x in walked):
                return False
            strides = [_token_strides(x, True)[1:] for x in walked if x is not None]
        size = self.q.dtype.itemsize
        return all(x is None or aligned(x) for x in walked) and all(
            last == 1 and all(s > 0 and s * size % 16 == 0 for s in others) for *others, last in strides
        )

    def _describe(self, operands: list[Any], name: Kernel, tiles: Tiles) -> list[TensorDescriptor | None]:
        """Put descriptors in the place of what a kernel walks over; those of second tiles are returned."""
        d, o = config.columns(self.sizes.head_dim), config.columns(self.sizes.out_dim)
        second: list[TensorDescriptor | None] = []
        for place in _walked(name):
            x, columns = operands[place], o if place in (3, 7) else d
            describe = _describe_weights if name in WALK_ROWS else _describe_tokens
            block = tiles.rows if name in WALK_ROWS else tiles.tokens
            made = [None if x is None else describe(x, block, size) for size in columns]
            operands[place] = made[0]
            second.append(made[1] if len(made) > 1 else None)
        return second


@cache
def _has_specialised() -> bool:
    """Whether Triton has what `specialised` takes from its experimental part, Gluon."""
    try:
        import_module("mhf_compile.kernels.flash_mhf.specialised")
    except ImportError:
        return False
    return True


WALK_ROWS = ("forward", "decode", "dq")
"""The kernels that walk over k, u and v; those of the weights' gradients walk over q and the gradient."""


def _walked(name: Kernel) -> tuple[int, ...]:
    """The places, among the arguments of a kernel, of the operands that it walks over."""
    return (1, 2, 3) if name in WALK_ROWS else (0, 7)


def token_stride(x: Tensor) -> int | None:
    """The stride of tokens n = b * T + t of a [B, T, ...] tensor, or None: there is no single one."""
    batch, length = x.shape[:2]
    if length == 1:
        return x.stride(0)
    return x.stride(1) if batch == 1 or x.stride(0) == length * x.stride(1) else None


def lies_flat(x: Tensor) -> bool:
    """Whether a [B, T, H, C] operand has the layout of [N, H * C] rows, which a descriptor can load."""
    step, (*_, columns) = token_stride(x), x.shape
    flat = _strides(x)[2:] == (columns, 1) and step is not None and step >= x.shape[2] * columns
    return flat and aligned(x) and (step or 0) * x.dtype.itemsize % 16 == 0


def aligned(x: Tensor) -> bool:
    """Whether it begins where a descriptor can."""
    return x.data_ptr() % 16 == 0


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """The strides; of an axis of size 1, any will do, and that of a contiguous tensor suits a descriptor."""
    if x is None:
        return (0,)
    strides = list(x.stride())
    for axis in range(x.dim() - 2, -1, -1):
        if x.shape[axis] == 1:
            strides[axis] = strides[axis + 1] * x.shape[axis + 1]
    return tuple(strides)


def _token_strides(x: Tensor | None, flat: bool) -> tuple[int, ...]:
    if x is None:
        return (0,)
    return (0, token_stride(x) or 0, *_strides(x)[2:]) if flat else x.stride()


def _describe_weights(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A [Hk, E, F, C] operand by blocks of rows."""
    return TensorDescriptor(x, list(x.shape), list(_strides(x)), [1, 1, rows, columns])


def _describe_tokens(x: Tensor, tokens: int, columns: int) -> TensorDescriptor:
    """A [B, T, H, C] operand as [N, H, C], by blocks of tokens."""
    shape = [x.shape[0] * x.shape[1], *x.shape[2:]]
    return TensorDescriptor(x, shape, list(_token_strides(x, True)[1:]), [tokens, 1, columns])


def target_of(device: torch.device) -> Target:
    """The device that kernels are compiled for; of the interpreter, one with few multiprocessors."""
    return _target(device.index) if device.type == "cuda" else Target("sm_80", 4)


@cache
def _target(index: int | None) -> Target:
    properties = torch.cuda.get_device_properties(index)
    return Target(architecture(index), properties.multi_processor_count, properties.name)
