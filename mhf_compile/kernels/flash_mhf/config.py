"""What the Triton kernels are launched with: pure functions of sizes, dtype and device, over tables.

The tables are data: for each kernel, bytes of an element and columns that a program holds, the candidates
that `python -m mhf_compile tune` measures. The first is the one used until then. benchmarks/gpu/static.py
compiles every one of them, without a GPU, and says what it takes.
"""

from typing import Literal, NamedTuple

import torch

Kernel = Literal[
    "forward", "decode", "dq", "weights", "dk_du", "dv", "chunk", "chunk_decode", "chunk_backward"
]  # fmt: skip
KERNELS: tuple[Kernel, ...] = (
    "forward", "decode", "dq", "weights", "dk_du", "dv", "chunk", "chunk_decode", "chunk_backward"
)  # fmt: skip

FEW = 64  # tokens up to which the forward kernel is "decode", bound by memory bandwidth
COLLECTED = 32  # sub-networks whose dR fits into registers
WORTHWHILE = 2048  # tokens that a chunk must hold, or all there are, to beat the kernels on the chip
LEAST_CHUNK = 256  # tokens of a chunk, whatever it takes
WORKSPACE = 128 * 2**20  # bytes, where heads are too wide for the chip and nobody says how much


class Target(NamedTuple):
    """A device: its architecture, as `sm_90`, how many multiprocessors, and the name of one that is here."""

    arch: str
    processors: int
    name: str = ""


class Tiles(NamedTuple):
    """Block sizes of a kernel, and how it is compiled.

    Attributes:
        tokens: in a block.
        rows: of a sub-network in a block.
        warps: of a program.
        stages: of the pipeline that loads what the program walks over.
        described: through how many descriptors (TMA) of an operand, one for each tile of its `columns`, loads
            go at most, where the operands allow it. The others go through pointers.
        columns: that a chunk kernel takes at a time; the others hold all.
        resident: the forward kernel keeps q in registers, not in shared memory.
        collected: the kernel of dQ keeps dR of all sub-networks, up to `COLLECTED`, in registers to the end.

    The last two are as ptxas needs them not to serialise the products (its remarks C7510 to C7515).
    """

    tokens: int
    rows: int
    warps: int
    stages: int
    described: int = 0
    columns: int = 0
    resident: bool = False
    collected: bool = False


Key = tuple[Kernel, int, int]
"""A kernel, bytes of an element, and the columns that it holds: the least of `CLASSES` that are enough."""

CLASSES = (64, 96, 128, 256)

Table = dict[Key, tuple[Tiles, ...]]

# float32 multiplies on the plain cores, without TF32: small tiles, for the registers.
FLOAT32: Table = {
    ("forward", 4, 64): (Tiles(32, 32, 8, 2),),
    ("forward", 4, 96): (Tiles(32, 16, 8, 2),),
    ("forward", 4, 128): (Tiles(32, 16, 4, 2),),
    ("decode", 4, 64): (Tiles(16, 32, 4, 2),),
    ("decode", 4, 96): (Tiles(16, 16, 4, 2),),
    ("decode", 4, 128): (Tiles(16, 16, 4, 2),),
    ("dq", 4, 64): (Tiles(32, 32, 8, 1),),
    ("dq", 4, 96): (Tiles(32, 16, 8, 2),),
    ("dq", 4, 128): (Tiles(32, 16, 8, 2),),
    ("weights", 4, 64): (Tiles(16, 32, 8, 1),),
    ("dk_du", 4, 96): (Tiles(16, 32, 8, 1),),
    ("dv", 4, 96): (Tiles(16, 32, 8, 1),),
    ("dk_du", 4, 128): (Tiles(32, 32, 8, 1),),
    ("dv", 4, 128): (Tiles(16, 32, 8, 1),),
    ("chunk", 4, 0): (Tiles(64, 32, 8, 2, columns=32),),
    ("chunk_decode", 4, 0): (Tiles(16, 32, 4, 2, columns=32),),
    ("chunk_backward", 4, 0): (Tiles(32, 32, 4, 2, columns=32),),
}

# 227 KB of shared memory; a product of a warpgroup, 4 warps, has at least 64 rows.
HOPPER: Table = {
    ("forward", 2, 64): (
        Tiles(128, 64, 8, 4, True, resident=True),
        Tiles(128, 128, 8, 3, True),
        Tiles(128, 128, 8, 3, True, resident=True),
    ),
    ("forward", 2, 96): (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 3, 2)),
    ("forward", 2, 128): (
        Tiles(128, 64, 8, 3, True, resident=True),
        Tiles(128, 64, 8, 2, True, resident=True),
        Tiles(128, 64, 8, 3, resident=True),
        Tiles(128, 64, 8, 3, True),
    ),
    ("forward", 2, 256): (Tiles(128, 32, 8, 3, True), Tiles(64, 32, 4, 3, True)),
    ("decode", 2, 64): (Tiles(64, 64, 4, 4), Tiles(64, 64, 4, 3)),
    ("decode", 2, 96): (Tiles(64, 64, 4, 3), Tiles(64, 32, 4, 4)),
    ("decode", 2, 128): (
        Tiles(64, 32, 4, 3, resident=True),
        Tiles(64, 64, 4, 3, resident=True),
        Tiles(64, 64, 4, 3),
    ),
    ("decode", 2, 256): (Tiles(64, 32, 4, 3, True), Tiles(64, 32, 4, 2, True)),
    ("dq", 2, 64): (Tiles(128, 64, 8, 3, True, collected=True), Tiles(128, 64, 8, 2, True, collected=True)),
    ("dq", 2, 96): (
        Tiles(128, 32, 8, 3, collected=True),
        Tiles(128, 32, 8, 2, collected=True),
        Tiles(128, 64, 8, 3, 2, collected=True),
    ),
    ("dq", 2, 128): (Tiles(128, 64, 8, 2, True, collected=True), Tiles(128, 32, 8, 3, True)),
    ("weights", 2, 64): (Tiles(32, 128, 8, 3, True), Tiles(32, 64, 4, 3, True)),
    ("weights", 2, 96): (Tiles(32, 128, 8, 2), Tiles(32, 64, 4, 3, 2)),
    ("dk_du", 2, 128): (Tiles(64, 128, 8, 2),),
    ("dv", 2, 128): (Tiles(64, 128, 8, 2, True), Tiles(64, 64, 4, 2, True)),
    ("chunk", 2, 0): (Tiles(128, 128, 8, 3, columns=64), Tiles(128, 128, 8, 4, columns=64)),
    ("chunk_decode", 2, 0): (Tiles(64, 64, 4, 4, columns=64), Tiles(64, 32, 4, 4, columns=128)),
    ("chunk_backward", 2, 0): (Tiles(128, 64, 8, 4, columns=64), Tiles(128, 64, 8, 3, columns=64)),
    **FLOAT32,
}

# 227 KB of shared memory, 512 columns of tensor memory for the accumulators of a multiprocessor.
BLACKWELL: Table = {
    ("forward", 2, 64): (Tiles(128, 64, 8, 3, True), Tiles(128, 128, 8, 2, True)),
    ("forward", 2, 96): (Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2)),
    ("forward", 2, 128): (Tiles(128, 64, 8, 3, True), Tiles(128, 128, 8, 2, True)),
    ("forward", 2, 256): (Tiles(128, 32, 8, 3, True),),
    ("decode", 2, 64): (Tiles(64, 64, 4, 3, True), Tiles(64, 64, 4, 2, True)),
    ("decode", 2, 96): (Tiles(64, 64, 4, 2),),
    ("decode", 2, 128): (Tiles(64, 64, 4, 2, True),),
    ("decode", 2, 256): (Tiles(64, 32, 4, 2, True),),
    ("dq", 2, 64): (Tiles(128, 64, 8, 3, True), Tiles(128, 64, 8, 2, True)),
    ("dq", 2, 96): (Tiles(128, 32, 8, 3),),
    ("dq", 2, 128): (Tiles(128, 32, 8, 3, True),),
    ("weights", 2, 64): (Tiles(64, 128, 8, 2, True),),
    ("weights", 2, 96): (Tiles(64, 64, 8, 2),),
    ("dk_du", 2, 128): (Tiles(64, 128, 8, 2, True),),
    ("dv", 2, 128): (Tiles(64, 128, 8, 2, True),),
    ("chunk", 2, 0): (Tiles(128, 128, 8, 3, columns=64),),
    ("chunk_decode", 2, 0): (Tiles(64, 64, 4, 4, columns=64),),
    ("chunk_backward", 2, 0): (Tiles(128, 64, 8, 3, columns=64),),
    **FLOAT32,
}

# Within 99 KB, the least that a device from sm_80 on offers.
AMPERE: Table = {
    ("forward", 2, 64): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2)),
    ("forward", 2, 96): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2)),
    ("forward", 2, 128): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2)),
    ("forward", 2, 256): (Tiles(64, 32, 4, 2),),
    ("decode", 2, 64): (Tiles(16, 64, 4, 3), Tiles(16, 64, 4, 2)),
    ("decode", 2, 96): (Tiles(16, 32, 4, 3),),
    ("decode", 2, 128): (Tiles(16, 32, 4, 3),),
    ("decode", 2, 256): (Tiles(16, 16, 4, 3),),
    ("dq", 2, 64): (Tiles(128, 32, 8, 2), Tiles(64, 32, 4, 3)),
    ("dq", 2, 96): (Tiles(64, 16, 4, 2),),
    ("dq", 2, 128): (Tiles(64, 32, 4, 2),),
    ("weights", 2, 64): (Tiles(32, 128, 8, 2), Tiles(32, 64, 4, 2)),
    ("weights", 2, 96): (Tiles(16, 64, 4, 2),),
    ("dk_du", 2, 128): (Tiles(64, 64, 8, 2), Tiles(32, 64, 4, 2)),
    ("dv", 2, 128): (Tiles(64, 64, 8, 2), Tiles(32, 64, 4, 2)),
    ("chunk", 2, 0): (Tiles(128, 64, 8, 3, columns=32),),
    ("chunk_decode", 2, 0): (Tiles(16, 64, 4, 3, columns=64),),
    ("chunk_backward", 2, 0): (Tiles(128, 64, 8, 3, columns=32),),
    **FLOAT32,
}

# 64 KB of shared memory, 512 registers, warps of 64 lanes.
CDNA: Table = {
    ("forward", 2, 64): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2)),
    ("forward", 2, 96): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2)),
    ("forward", 2, 128): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2)),
    ("forward", 2, 256): (Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 1)),
    ("decode", 2, 64): (Tiles(32, 32, 4, 2),),
    ("decode", 2, 96): (Tiles(32, 32, 4, 2),),
    ("decode", 2, 128): (Tiles(32, 32, 4, 2),),
    ("decode", 2, 256): (Tiles(32, 32, 4, 2),),
    ("dq", 2, 64): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2)),
    ("dq", 2, 96): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2)),
    ("dq", 2, 128): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2)),
    ("weights", 2, 64): (Tiles(32, 64, 4, 2), Tiles(32, 32, 4, 2)),
    ("weights", 2, 96): (Tiles(32, 64, 4, 2), Tiles(16, 64, 4, 1)),
    ("dk_du", 2, 128): (Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 1)),
    ("dv", 2, 128): (Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 1)),
    ("chunk", 2, 0): (Tiles(128, 128, 8, 2, columns=32), Tiles(128, 64, 4, 2, columns=32)),
    ("chunk_decode", 2, 0): (Tiles(32, 64, 4, 2, columns=32),),
    ("chunk_backward", 2, 0): (Tiles(128, 64, 4, 2, columns=32), Tiles(128, 128, 8, 2, columns=32)),
    **FLOAT32,
    ("dk_du", 4, 128): (Tiles(16, 32, 8, 1),),
}

FAMILIES = {"sm_90": HOPPER, "sm_100": BLACKWELL, "sm_80": AMPERE, "gfx942": CDNA}


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


def chunk_kernel(tokens: int, backward: bool) -> Kernel:
    """The row of the kernel of a chunk of so many tokens."""
    return "chunk_backward" if backward else "chunk_decode" if tokens <= FEW else "chunk"


def weight_kernels(sizes: Sizes, arch: str) -> tuple[Kernel, ...]:
    """The kernels that make the gradients of the weights: one if its accumulators fit into the registers."""
    together = key("weights", sizes) in table(arch)
    return ("weights",) if together else ("dk_du", "dv")


def forward_chunk(sizes: Sizes, workspace: int | None) -> int | None:
    """Tokens whose hidden values go to memory at a time in forward; None: they stay on the chip.

    They do where a program can hold a head; where not, `workspace` bytes (None: `WORKSPACE`) are used.
    """
    return None if sizes.held else _chunk(sizes, sizes.wide_bytes, workspace)


def backward_chunk(sizes: Sizes, workspace: int | None) -> int | None:
    """Tokens whose hidden values and gradients go to memory at a time in backward; None: on the chip.

    Heads of up to 128 columns stay there, unless `workspace` bytes are enough for the faster way: three
    units of work in a kernel and five in the library's products, where the kernels on the chip need 11 or 13.
    """
    per_token = sizes.wide_bytes * (3 if sizes.gated else 2)
    if sizes.held is not None and sizes.held <= 128:
        enough = min(sizes.tokens, WORTHWHILE) * per_token
        if workspace is None or workspace < enough:
            return None
    return _chunk(sizes, per_token, workspace)


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
