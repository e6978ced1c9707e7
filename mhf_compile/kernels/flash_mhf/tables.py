"""The tables that the kernels are launched by, as data; `config` reads them.

For each kernel, bytes of an element and columns that a program holds: the candidates that
`python -m mhf_compile tune` measures. The first is the one used until then. benchmarks/gpu/static.py compiles
every one of them, without a GPU, and holds what it takes against a record.
"""

from typing import Literal, NamedTuple

Kernel = Literal[
    "forward", "decode", "dq", "weights", "dk_du", "dk", "du", "dv", "chunk", "chunk_decode"
]  # fmt: skip
KERNELS: tuple[Kernel, ...] = (
    "forward", "decode", "dq", "weights", "dk_du", "dk", "du", "dv", "chunk", "chunk_decode"
)  # fmt: skip

OF_WEIGHTS: tuple[Kernel, ...] = ("weights", "dk_du", "dk", "du", "dv")
"""Those of the weights' gradients, which hold rows of a sub-network and walk over tokens."""


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
        resident: the kernels of forward and dQ keep q in registers, not in shared memory.
        collected: the kernel of dQ keeps dR of all sub-networks, up to `COLLECTED`, in registers to the end.
        joined: where the rows of a decode are split over programs, the last one to end adds their sums; else
            another launch does.
        specialised: the kernels of the weights' gradients have a warp that loads beside those that multiply:
            `specialised_kernel`, where the operands allow it. The others are for where they do not.

    `resident` and `collected` are as ptxas needs them not to serialise the products (remarks C7510 to C7515).
    """

    tokens: int
    rows: int
    warps: int
    stages: int
    described: int = 0
    columns: int = 0
    resident: bool = False
    collected: bool = False
    joined: bool = False
    specialised: bool = False


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
}

# 227 KB of shared memory; a product of a warpgroup, 4 warps, has at least 64 rows. By the clock of one H100:
# benchmarks/results/h100/sweep.json, in its order for each row. Two programs of 4 warps on a multiprocessor
# beat one of 8 where a kernel walks over tokens: one multiplies while the other does elementwise work.
# Not in that sweep: chunk, chunk_decode, decode at 256, a decode at 128 that keeps q in registers, decode of
# more than one token, and whether dq collected dR. Without that ptxas serialises its products at 96 columns.
# Two descriptors, specialised and joined ones are by the clock of one H200: benchmarks/results/h200.
HOPPER: Table = {
    ("forward", 2, 64): (
        Tiles(128, 64, 8, 3, 1),
        Tiles(128, 64, 8, 4, 1),
        Tiles(128, 64, 8, 2, 1),
        Tiles(64, 128, 4, 2, 1, resident=True),
        Tiles(64, 64, 4, 2, 1, resident=True),
    ),
    ("forward", 2, 96): (
        Tiles(128, 32, 8, 3),
        Tiles(128, 32, 8, 4),
        Tiles(64, 64, 4, 3, resident=True),
        Tiles(64, 32, 4, 3, resident=True),
        Tiles(128, 64, 8, 3),
        Tiles(128, 64, 8, 3, 2),
        Tiles(128, 32, 8, 3, 2),
    ),
    ("forward", 2, 128): (
        Tiles(128, 64, 8, 3, 1),
        Tiles(128, 64, 8, 4, 1),
        Tiles(64, 32, 4, 3, 1, resident=True),
        Tiles(128, 128, 8, 2, 1),
        Tiles(64, 64, 4, 2, 1, resident=True),
        Tiles(128, 64, 8, 3, 1, resident=True),
    ),
    ("forward", 2, 256): (Tiles(128, 32, 8, 3, 1), Tiles(64, 64, 4, 2, 1), Tiles(64, 32, 4, 3, 1)),
    ("decode", 2, 64): (
        Tiles(16, 64, 2, 3),
        Tiles(16, 64, 2, 5),
        Tiles(16, 64, 2, 4),
        Tiles(16, 32, 2, 2),
        Tiles(16, 128, 4, 4),
        Tiles(64, 64, 4, 4),
        Tiles(64, 128, 4, 4),
        Tiles(16, 64, 2, 3, joined=True),
        Tiles(16, 32, 2, 4, joined=True),
    ),
    ("decode", 2, 96): (
        Tiles(16, 32, 4, 4, joined=True),
        Tiles(16, 64, 4, 3, joined=True),
        Tiles(64, 64, 4, 4),
        Tiles(64, 64, 4, 2),
        Tiles(64, 32, 4, 2),
        Tiles(16, 128, 2, 3),
        Tiles(16, 128, 4, 3),
    ),
    ("decode", 2, 128): (
        Tiles(16, 32, 4, 4, joined=True),
        Tiles(16, 32, 2, 4, joined=True),
        Tiles(16, 64, 4, 3, joined=True),
        Tiles(16, 64, 4, 3),
        Tiles(16, 64, 4, 4),
        Tiles(16, 64, 2, 4),
        Tiles(64, 32, 4, 3, resident=True),
        Tiles(64, 32, 4, 4),
        Tiles(64, 64, 4, 3, resident=True),
        Tiles(16, 128, 4, 3),
    ),
    ("decode", 2, 256): (Tiles(64, 32, 4, 3, 1), Tiles(64, 32, 4, 2, 1), Tiles(16, 32, 4, 3)),
    ("dq", 2, 64): (
        Tiles(64, 64, 4, 2, 1, resident=True, collected=True),
        Tiles(64, 32, 4, 3, 1, resident=True, collected=True),
        Tiles(64, 32, 4, 3, 1, collected=True),
        Tiles(64, 64, 4, 3, 1, collected=True),
        Tiles(128, 64, 8, 3, 1, collected=True),
    ),
    ("dq", 2, 96): (
        Tiles(64, 64, 4, 2, 2, collected=True),
        Tiles(128, 64, 8, 3, collected=True),
        Tiles(64, 64, 4, 2, collected=True),
        Tiles(64, 64, 4, 2, resident=True, collected=True),
        Tiles(128, 32, 8, 3, resident=True, collected=True),
        Tiles(128, 32, 8, 3, collected=True),
        Tiles(128, 64, 8, 3, 2, collected=True),
    ),
    ("dq", 2, 128): (
        Tiles(128, 64, 8, 3, 1, collected=True),
        Tiles(64, 64, 4, 2, 1, resident=True, collected=True),
        Tiles(128, 64, 8, 2, 1, collected=True),
        Tiles(64, 32, 4, 3, 1, resident=True, collected=True),
    ),
    ("weights", 2, 64): (
        Tiles(64, 64, 4, 3, 1),
        Tiles(64, 64, 4, 2, 1),
        Tiles(32, 64, 4, 3, 1),
        Tiles(32, 128, 8, 3),
    ),
    ("weights", 2, 96): (
        Tiles(32, 64, 4, 3),
        Tiles(32, 128, 8, 3),
        Tiles(32, 64, 4, 2),
        Tiles(32, 64, 4, 3, 2),
    ),
    ("dk_du", 2, 128): (
        Tiles(64, 128, 8, 2, 1, specialised=True),
        Tiles(64, 128, 8, 3, 1, specialised=True),
        Tiles(64, 64, 4, 2, 1),
        Tiles(64, 64, 4, 3, 1),
        Tiles(64, 128, 8, 3, 1),
        Tiles(64, 64, 4, 2),
    ),
    ("dv", 2, 128): (
        Tiles(64, 128, 8, 3, 1, specialised=True),
        Tiles(32, 128, 8, 4, 1, specialised=True),
        Tiles(128, 64, 4, 3, 1),
        Tiles(64, 64, 4, 3, 1),
        Tiles(32, 64, 4, 2, 1),
        Tiles(64, 128, 8, 3, 1),
    ),
    # Slower than by chunks, and chosen only where a call may use no workspace.
    ("dq", 2, 256): (Tiles(64, 32, 4, 2, 1, collected=True), Tiles(64, 32, 4, 1, 1), Tiles(128, 32, 8, 1, 1)),
    ("dk", 2, 256): (Tiles(32, 64, 4, 2, 1), Tiles(64, 64, 4, 1, 1), Tiles(32, 64, 4, 1, 1)),
    ("du", 2, 256): (Tiles(32, 64, 4, 2, 1), Tiles(64, 64, 4, 1, 1)),
    ("dv", 2, 256): (Tiles(32, 64, 4, 2, 1), Tiles(64, 64, 4, 1, 1)),
    ("chunk", 2, 0): (Tiles(128, 128, 8, 3, columns=64), Tiles(128, 128, 8, 4, columns=64)),
    ("chunk_decode", 2, 0): (
        Tiles(64, 64, 4, 4, columns=64),
        Tiles(64, 32, 4, 4, columns=128),
        Tiles(16, 64, 4, 4, columns=64),
    ),
    **FLOAT32,
}

# 227 KB of shared memory, 512 columns of tensor memory for the accumulators of a multiprocessor.
BLACKWELL: Table = {
    ("forward", 2, 64): (Tiles(128, 64, 8, 3, 1), Tiles(128, 128, 8, 2, 1)),
    ("forward", 2, 96): (Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2)),
    ("forward", 2, 128): (Tiles(128, 64, 8, 3, 1), Tiles(128, 128, 8, 2, 1)),
    ("forward", 2, 256): (Tiles(128, 32, 8, 3, 1),),
    ("decode", 2, 64): (Tiles(64, 64, 4, 3, 1), Tiles(64, 64, 4, 2, 1)),
    ("decode", 2, 96): (Tiles(64, 64, 4, 2),),
    ("decode", 2, 128): (Tiles(64, 64, 4, 2, 1),),
    ("decode", 2, 256): (Tiles(64, 32, 4, 2, 1),),
    ("dq", 2, 64): (Tiles(128, 64, 8, 3, 1), Tiles(128, 64, 8, 2, 1)),
    ("dq", 2, 96): (Tiles(128, 32, 8, 3),),
    ("dq", 2, 128): (Tiles(128, 32, 8, 3, 1),),
    ("weights", 2, 64): (Tiles(64, 128, 8, 2, 1),),
    ("weights", 2, 96): (Tiles(64, 64, 8, 2),),
    ("dk_du", 2, 128): (Tiles(64, 128, 8, 2, 1),),
    ("dv", 2, 128): (Tiles(64, 128, 8, 2, 1),),
    ("chunk", 2, 0): (Tiles(128, 128, 8, 3, columns=64),),
    ("chunk_decode", 2, 0): (Tiles(64, 64, 4, 4, columns=64),),
    **FLOAT32,
}

# Within 99 KB, the least that a device from sm_80 on offers. Nothing here was measured: after the first of a
# row, for `tune`, come those that are like the fastest of the H100: 4 warps, 64 rows, one stage more.
AMPERE: Table = {
    ("forward", 2, 64): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3)),
    ("forward", 2, 96): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2)),
    ("forward", 2, 128): (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2)),
    ("forward", 2, 256): (Tiles(64, 32, 4, 2),),
    ("decode", 2, 64): (Tiles(16, 64, 4, 3), Tiles(16, 64, 4, 2), Tiles(16, 64, 4, 3, joined=True)),
    ("decode", 2, 96): (Tiles(16, 32, 4, 3), Tiles(16, 32, 4, 3, joined=True)),
    ("decode", 2, 128): (Tiles(16, 32, 4, 3), Tiles(16, 32, 4, 3, joined=True)),
    ("decode", 2, 256): (Tiles(16, 16, 4, 3),),
    ("dq", 2, 64): (Tiles(128, 32, 8, 2), Tiles(64, 32, 4, 3), Tiles(64, 64, 4, 2)),
    ("dq", 2, 96): (Tiles(64, 16, 4, 2), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3)),
    ("dq", 2, 128): (Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3)),
    ("weights", 2, 64): (Tiles(32, 128, 8, 2), Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 3)),
    ("weights", 2, 96): (Tiles(16, 64, 4, 2), Tiles(32, 64, 4, 2)),
    ("dk_du", 2, 128): (
        Tiles(64, 64, 8, 2),
        Tiles(32, 64, 4, 2),
        Tiles(32, 64, 4, 3),
        Tiles(64, 64, 4, 2),
    ),
    ("dv", 2, 128): (Tiles(64, 64, 8, 2), Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 3), Tiles(64, 64, 4, 2)),
    ("chunk", 2, 0): (Tiles(128, 64, 8, 3, columns=32),),
    ("chunk_decode", 2, 0): (Tiles(16, 64, 4, 3, columns=64),),
    **FLOAT32,
}

# 64 KB of shared memory, 512 registers, warps of 64 lanes. Nothing here was measured; the order is as above.
CDNA: Table = {
    ("forward", 2, 64): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3)),
    ("forward", 2, 96): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3)),
    ("forward", 2, 128): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3)),
    ("forward", 2, 256): (Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 1)),
    ("decode", 2, 64): (Tiles(32, 32, 4, 2), Tiles(16, 64, 4, 2)),
    ("decode", 2, 96): (Tiles(32, 32, 4, 2), Tiles(16, 64, 4, 2)),
    ("decode", 2, 128): (Tiles(32, 32, 4, 2), Tiles(16, 64, 4, 2)),
    ("decode", 2, 256): (Tiles(32, 32, 4, 2),),
    ("dq", 2, 64): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2), Tiles(64, 64, 4, 2)),
    ("dq", 2, 96): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2), Tiles(64, 64, 4, 2)),
    ("dq", 2, 128): (Tiles(128, 32, 4, 2), Tiles(64, 32, 4, 2), Tiles(64, 64, 4, 2)),
    ("weights", 2, 64): (Tiles(32, 64, 4, 2), Tiles(32, 32, 4, 2), Tiles(64, 64, 4, 2)),
    ("weights", 2, 96): (Tiles(32, 64, 4, 2), Tiles(16, 64, 4, 1)),
    ("dk_du", 2, 128): (Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 1), Tiles(64, 64, 4, 2)),
    ("dv", 2, 128): (Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 1), Tiles(64, 64, 4, 2)),
    ("chunk", 2, 0): (Tiles(128, 128, 8, 2, columns=32), Tiles(128, 64, 4, 2, columns=32)),
    ("chunk_decode", 2, 0): (Tiles(32, 64, 4, 2, columns=32), Tiles(16, 64, 4, 2, columns=32)),
    **FLOAT32,
    ("dk_du", 4, 128): (Tiles(16, 32, 8, 1),),
}

FAMILIES = {"sm_90": HOPPER, "sm_100": BLACKWELL, "sm_80": AMPERE, "gfx942": CDNA}
