"""How the programs of a kernel fill a device: pure functions of sizes, tiles and device, without a GPU.

As many programs run at once as there are places. The tiles of a kernel take so many waves of them, and the
last wave is seldom full: 352 tiles on 264 places take two waves, the second of which fills a third of the
device. So the tiles that are left for it are split: several programs walk over a part of the tokens each, and
their sums are added in their order.

This is for the kernels of the weights' gradients. Those that walk over rows have a program for each block of
tokens of each head: eight waves and more in training, whose last costs at most an eighth, less what parts
would. `config.parts` splits them where they do not fill one wave.
"""

from functools import cache
from typing import NamedTuple

from mhf_compile.kernels.flash_mhf.config import Kernel, Sizes, Target, Tiles, columns, family

# What a wave of parts costs beyond its walk, in tokens: its float32 sums are written, read and added. On an
# H100 these are 17 MB for 64 rows of 256 columns on 264 places, 12 us of a copy's bandwidth, and launches
# take 5. A program of dK and dU walks over 560 tokens in that time.
ADDING = 640

WORTH = 0.05  # of the time of a kernel: less is not worth the memory of the parts

# Bytes of shared memory of a multiprocessor: CUDA's table of compute capabilities, CDNA's local data share.
SHARED = {
    "sm_80": 164 * 1024,
    "sm_87": 164 * 1024,
    "sm_90": 228 * 1024,
    "sm_100": 228 * 1024,
    "gfx942": 64 * 1024,
}
LEAST_SHARED = 100 * 1024  # of those not named here
RESERVED = 2 * 1024  # of a program, for its barriers and CUDA's own


class Split(NamedTuple):
    """The first `whole` tiles have a program each, the others so many `parts`."""

    whole: int
    parts: int

    def programs(self, tiles: int) -> int:
        """How many there are for so many tiles."""
        return self.whole + (tiles - self.whole) * self.parts


class Tail(NamedTuple):
    """The rows of the weights' gradients that come in parts: `rows` from `first` on, those of the last tiles.

    Rows are those of all sub-networks of all key-value heads. `split` says which tiles.
    """

    split: Split
    first: int
    rows: int


@cache
def split(tiles: int, pieces: int, places: int, cost: float) -> Split | None:
    """Split the tiles that do not fill a wave; None where all stay whole, since there would be little gain.

    Args:
        tiles: of a kernel, all of which take the same time.
        pieces: that a tile's program walks over, one after the other.
        places: programs that run at once.
        cost: pieces in whose time a wave of parts leaves its sums, and has them added.
    """
    whole = tiles // places * places

    def last(parts: int) -> float:
        """The time of the tiles that are left, in pieces."""
        waves = -(-(tiles - whole) * parts // places)
        return waves * (-(-pieces // parts) + (cost if parts > 1 else 0))

    parts = min(range(1, min(pieces, places) + 1), key=last, default=1)
    gain = last(1) - last(parts)
    return Split(whole, parts) if gain > WORTH * (whole // places + 1) * pieces else None


def programs(kernel: Kernel, sizes: Sizes, tiles: Tiles, arch: str) -> int:
    """How many programs of a kernel of the weights' gradients run on a multiprocessor at once: one or two.

    Two of 4 warps find room in the registers, and in the shared memory if that of k, u and v, which a program
    holds, and of q and the gradient, which it walks over, is half of it.
    """
    d, o = sum(columns(sizes.head_dim)), sum(columns(sizes.out_dim))
    held = tiles.rows * (d * (1 + sizes.gated) + (o if kernel != "dv" else 0))
    walked = tiles.stages * tiles.tokens * (d + o)
    taken = sizes.dtype.itemsize * (held + walked) + RESERVED
    there = SHARED.get(arch, SHARED["gfx942"] if family(arch) == "gfx942" else LEAST_SHARED)
    return 2 if tiles.warps <= 4 and 2 * taken <= there else 1


def tail(kernel: Kernel, sizes: Sizes, tiles: Tiles, target: Target) -> Tail | None:
    """What a kernel of the weights' gradients leaves in parts, over the tokens; None where it is nothing."""
    subnetworks = sizes.kv_heads * sizes.subnetworks
    row_blocks = -(-sizes.width // tiles.rows)
    pieces = sizes.heads // sizes.kv_heads * -(-sizes.tokens // tiles.tokens)
    places = target.processors * programs(kernel, sizes, tiles, target.arch)
    found = split(subnetworks * row_blocks, pieces, places, ADDING / tiles.tokens)
    if found is None:
        return None
    first = found.whole // row_blocks * sizes.width + found.whole % row_blocks * tiles.rows
    return Tail(found, first, subnetworks * sizes.width - first)
