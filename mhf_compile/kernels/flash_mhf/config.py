"""What the Triton kernels are launched with: pure functions of sizes, dtype and device, over `tables`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mhf_compile.kernels.flash_mhf.tables import CLASSES as CLASSES
from mhf_compile.kernels.flash_mhf.tables import FAMILIES as FAMILIES
from mhf_compile.kernels.flash_mhf.tables import HOPPER as HOPPER
from mhf_compile.kernels.flash_mhf.tables import KERNELS as KERNELS
from mhf_compile.kernels.flash_mhf.tables import OF_WEIGHTS as OF_WEIGHTS
from mhf_compile.kernels.flash_mhf.tables import Kernel as Kernel
from mhf_compile.kernels.flash_mhf.tables import Key as Key
from mhf_compile.kernels.flash_mhf.tables import Table as Table
from mhf_compile.kernels.flash_mhf.tables import Tiles as Tiles

FEW = 64  # tokens up to which the forward kernel is "decode", bound by memory bandwidth
COLLECTED = 32  # sub-networks whose dR fits into registers
LEAST_CHUNK = 256  # tokens of a chunk, whatever it takes
WORKSPACE = 128 * 2**20  # bytes, where heads are too wide for the chip and nobody says how much


class Target(NamedTuple):
    """A device: its architecture, as `sm_90`, how many multiprocessors, and the name of one that is here."""

    arch: str
    processors: int
    name: str = ""


def family(arch: str) -> str:
    """The architecture in whose table the kernels for `arch` are.

    Raises:
        ValueError: there is none.
    """
    if arch.startswith("gfx9"):
        return "gfx942"
    if not (arch.startswith("sm_") and arch[3:].isdigit() and int(arch[3:]) >= 80):
        raise ValueError(f"arch: found {arch!r}, want sm_80 or later, or a gfx9")
    number = int(arch[3:])
    # Consumer devices from sm_120 on have neither the instructions nor the shared memory of sm_100.
    return "sm_90" if number == 90 else "sm_100" if 100 <= number < 120 else "sm_80"


def columns(size: int) -> tuple[int, ...]:
    """The tiles that hold `size` columns: powers of two of at least 16, few, with little to pad.

    >>> columns(96), columns(100), columns(20)
    ((64, 32), (64, 32, 16), (32,))
    """
    whole = max(16, 1 << (size - 1).bit_length())
    parts, left = [], size
    while left > 0:
        part = max(16, 1 << (left.bit_length() - 1))
        parts.append(part)
        left -= part
    return tuple(parts) if sum(parts) < whole and len(parts) <= 3 else (whole,)


class Sizes(NamedTuple):
    """The sizes of one call; see `mhf_compile.kernels.ops.flash_mhf` for their names."""

    tokens: int
    heads: int
    kv_heads: int
    subnetworks: int
    width: int
    head_dim: int
    out_dim: int
    gated: bool
    dtype: torch.dtype

    @property
    def held(self) -> int | None:
        """The class of the columns that a program holds, or None: too many to be held."""
        most = max(sum(columns(self.head_dim)), sum(columns(self.out_dim)))
        limit = CLASSES[-1] if self.dtype.itemsize == 2 else 128
        return next((size for size in CLASSES if most <= size <= limit), None)

    @property
    def wide_bytes(self) -> int:
        """Bytes of a wide value, as hidden, of one token."""
        return self.heads * self.subnetworks * self.width * self.dtype.itemsize


def table(arch: str) -> Table:
    """The table for an architecture."""
    return FAMILIES[family(arch)]


def key(kernel: Kernel, sizes: Sizes) -> Key:
    """The row of the tables; chunk kernels hold no columns."""
    held = 0 if kernel.startswith("chunk") else sizes.held or CLASSES[-1]
    return kernel, sizes.dtype.itemsize, held


def forward_kernel(sizes: Sizes) -> Kernel:
    """The row of the forward kernel."""
    return "decode" if sizes.tokens <= FEW else "forward"


def chunk_kernel(tokens: int) -> Kernel:
    """The row of the kernel of a chunk of so many tokens."""
    return "chunk_decode" if tokens <= FEW else "chunk"


def fitting(kernel: Kernel, tokens: int, candidates: Sequence[Tiles]) -> tuple[Tiles, ...]:
    """The candidates to choose from at so many tokens, in their order.

    Few tokens cost the reading of the weights. A block that holds all of them reads each weight once: the
    kernels of few tokens take no other where there is one.
    """
    holding = tuple(tiles for tiles in candidates if tiles.tokens >= tokens)
    return holding if holding and kernel.endswith("decode") else tuple(candidates)


def weight_kernels(sizes: Sizes, arch: str) -> tuple[Kernel, ...]:
    """The kernels that make the gradients of the weights, as few as there can be; none: by chunks only."""
    ways: tuple[tuple[Kernel, ...], ...] = (("weights",), ("dk_du", "dv"), ("dk", "du", "dv"))
    there = (way for way in ways if all(key(kernel, sizes) in table(arch) for kernel in way))
    return next(there, ())


def forward_chunk(sizes: Sizes, workspace: int | None) -> int | None:
    """Tokens whose hidden values go to memory at a time in forward; None: they stay on the chip.

    They do where a program can hold a head; where not, `workspace` bytes (None: `WORKSPACE`) are used.
    """
    return None if sizes.held else _chunk(sizes, sizes.wide_bytes, workspace)


def backward_chunk(sizes: Sizes, workspace: int | None, arch: str) -> int | None:
    """Tokens whose hidden values and gradients go to memory at a time in backward; None: on the chip.

    Heads of up to 128 columns stay there. Wider ones stay where there are kernels and the call may use no
    `workspace` (None: `WORKSPACE` bytes): on the chip they need 15 units of work, by chunks 8. All tokens are
    one chunk where that takes no more memory than a chunk and the sums over chunks.
    """
    if key("dq", sizes) in table(arch) and sizes.held is not None and (sizes.held <= 128 or workspace == 0):
        return None
    per_token = sizes.wide_bytes * (3 if sizes.gated else 2)
    chunk = _chunk(sizes, per_token, workspace)
    summed = sum_bytes(sizes) if sizes.heads == sizes.kv_heads else 0
    return sizes.tokens if (sizes.tokens - chunk) * per_token <= summed else chunk


def sum_bytes(sizes: Sizes, k: bool = True, u: bool = True, v: bool = True) -> int:
    """Of the float32 sums, over chunks, of dK, dU and dV, as far as they are wanted, and of one product."""
    if sizes.dtype.itemsize >= 4:
        return 0  # the gradients themselves are the sums
    columns = (k + (u and sizes.gated)) * sizes.head_dim + v * sizes.out_dim
    product = max(sizes.head_dim, sizes.out_dim) + 3
    return 4 * sizes.kv_heads * sizes.subnetworks * sizes.width * (columns + product)


def _chunk(sizes: Sizes, per_token: int, workspace: int | None) -> int:
    fitting = (WORKSPACE if workspace is None else workspace) // per_token
    return min(sizes.tokens, max(LEAST_CHUNK, fitting // 128 * 128))


def parts(programs: int, pieces: int, tiles: Tiles, processors: int) -> int:
    """In how many parts the rows are split over programs, so that `programs` of them fill the device.

    Each part has two `pieces` at least; the parts are added in their order. A program of 4 warps leaves room
    for another beside it.
    """
    wave = processors * (2 if tiles.warps <= 4 else 1)
    return max(1, min(pieces // 2, wave // programs))
