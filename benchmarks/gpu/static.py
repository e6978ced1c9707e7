"""What the shipped kernels take, read from their machine code: compiled ahead of time, without a GPU.

    python -m benchmarks.gpu.static                      every row of every table, for four architectures
    python -m benchmarks.gpu.static --arch sm_90 --fast  the rows in use until one tunes
    python -m benchmarks.gpu.static --accept             and make what they take the record

The exit status is 1 where a limit does not hold, or where registers, spills or shared memory are not those of
the record, benchmarks/results/static.txt. With another version of Triton than its own they are not compared.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.gpu import record
from benchmarks.gpu.record import HEADING, WIDTH, Record
from mhf_compile.kernels.flash_mhf import backward, chunked, config, forward
from mhf_compile.kernels.flash_mhf.ahead import compile_ahead
from mhf_compile.kernels.flash_mhf.config import Kernel, Key, Target, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call, Launch
from mhf_compile.kernels.flash_mhf.tuned import spelled

ARCHES = ("sm_80", "sm_90", "sm_100", "gfx942")

# Bytes of shared memory that a program may have: CUDA's table of compute capabilities, with the least of all
# devices from sm_80 on for sm_80; CDNA 3's local data share.
SHARED = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}

# Mnemonics of matrix products; on sm_90 those of single warps are the fallback.
MATRIX = r"HGMMA\.[\w.]+|HMMA\.[\w.]+|UTC\w*MMA[\w.]*|v_mfma_\w+"
SPECIAL = r"MUFU\.(?:TANH|EX2)\b|v_exp_f32"


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    Attributes:
        arch: the architecture that it was compiled for.
        key: its row of the tables.
        tiles: one of the candidates there.
        registers: of a thread.
        spilled: bytes of local memory of a thread (AMD: registers that were spilled, times 4).
        shared: bytes of shared memory of a program.
        matrix: matrix instructions by kind and shape, as they stand in the code.
        useful: share of the multiplications that are issued and needed, in an iteration.
        special: instructions of the special function unit for each score, exponentials and tanh.
        warnings: of ptxas.
    """

    arch: str
    key: Key
    tiles: Tiles
    registers: int
    spilled: int
    shared: int
    matrix: dict[str, int]
    useful: float
    special: float
    warnings: tuple[str, ...]

    def broken(self) -> list[str]:
        """The limits that do not hold."""
        half = self.key[1] == 2
        # The left operand of a warpgroup's product has 64 rows at least.
        height = self.tiles.rows if self.key[0] in config.OF_WEIGHTS else self.tiles.tokens
        kinds = " ".join(self.matrix)
        limits = {
            f"takes {self.shared} bytes of shared memory": self.shared > SHARED[self.arch],
            "has no matrix instruction": half and not self.matrix,
            f"has a fallback matrix instruction: {kinds}": self.arch == "sm_90"
            and height >= 64
            and "HMMA" in kinds,
            f"uses {self.useful:.3f} of its multiplications": self.useful < 0.99,
            f"has {self.special:.2f} special functions a score": self.arch == "sm_90"
            and half
            and self.special > 1,
            f"warnings: {'; '.join(self.warnings)}": bool(self.warnings),
        }
        return [what for what, is_broken in limits.items() if is_broken]

    def __str__(self) -> str:
        matrix = " ".join(f"{count} {name}" for name, count in sorted(self.matrix.items()))
        return (
            f"{name(self.arch, self.key, self.tiles):<{WIDTH}}{self.registers:>4}{self.spilled:>7}"
            f"{self.shared:>8}{self.useful:>8.2f}{self.special:>6.2f}  {matrix}"
        ).rstrip()


def name(arch: str, key: Key, tiles: Tiles) -> str:
    """What names a row in the record."""
    kernel, size, columns = key
    words = spelled(tiles._replace(columns=tiles.columns or columns)).split()
    block, with_ = " ".join(words[:3]), " ".join(words[3:])
    return f"{arch:<7} {kernel:<15}{8 * size:>4} {block:<20}{with_}".rstrip()


def launches(arch: str, *, first: bool = False) -> Iterator[tuple[Key, Tiles, Launch]]:
    """A launch of each candidate of the tables (`first`: of those in use until one tunes), on meta tensors.

    Operands are as the paper's models have them: bfloat16 or float32, contiguous, with R of 11 sub-networks,
    silu; heads as wide as the row is for. Chunks are those of a dense feed-forward of 4096.
    """
    for key, tiles in rows(arch, first=first):
        yield key, tiles, launch_of(key, tiles, arch)


def rows(arch: str, *, first: bool = False) -> Iterator[tuple[Key, Tiles]]:
    """The candidates of the tables."""
    for key, candidates in config.table(arch).items():
        for tiles in candidates[:1] if first else candidates:
            yield key, tiles


def launch_of(key: Key, tiles: Tiles, arch: str, router: torch.dtype = torch.float32) -> Launch:
    """A launch of one kernel with some tiles, and R of some dtype."""
    kernel, size, columns = key
    dtype = torch.bfloat16 if size == 2 else torch.float32

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    dense = columns == 0
    tokens = 16 if kernel.endswith("decode") else 4096
    heads, subnetworks, width, dim = (1, 1, 14336, 4096) if dense else (8, 11, 256, columns)
    q = meta(1, tokens, heads, dim)
    weight = meta(heads, subnetworks, width, dim)
    r = None if dense else meta(1, tokens, heads, subnetworks, dtype=router)
    # With few multiprocessors nothing is split over programs, and there is nothing to join.
    target = Target(arch, 64 if tiles.joined else 1)
    call = Call(q, weight, weight, weight, r, None, None, "silu", 1.0, 1.0, target, forced={kernel: tiles})
    wide = meta(heads, tokens, subnetworks * width)
    make: dict[Kernel, Callable[[], list[Launch]]] = {
        "forward": lambda: forward.launches(call, q),
        "decode": lambda: forward.launches(call, q),
        "dq": lambda: backward.launches(call, q, (q, None, None, None, r, None, None)),
        "weights": lambda: backward.launches(call, q, (None, weight, weight, weight, None, None, None)),
        "dk_du": lambda: backward.launches(call, q, (None, weight, weight, None, None, None, None)),
        "dk": lambda: backward.launches(call, q, (None, weight, None, None, None, None, None)),
        "du": lambda: backward.launches(call, q, (None, None, weight, None, None, None, None)),
        "dv": lambda: backward.launches(call, q, (None, None, None, weight, None, None, None)),
        "chunk": lambda: [chunked.launch(call, slice(0, tokens), wide)],
        "chunk_decode": lambda: [chunked.launch(call, slice(0, tokens), wide)],
    }
    (launch,) = make[kernel]()
    return launch


def resources(key: Key, tiles: Tiles, launch: Launch, arch: str) -> Resources:
    """Compile a launch and read what it takes."""
    compiled = compile_ahead(launch, arch)
    if "cubin" in compiled.asm:
        registers, spilled, code, warnings = _nvidia(compiled, arch)
    else:
        code, warnings = compiled.asm["amdgcn"], ()
        registers = int(_number(code, r"\.vgpr_count:\s+(\d+)"))
        spilled = 4 * int(_number(code, r"\.vgpr_spill_count:\s+(\d+)"))
    lanes = 32 if "cubin" in compiled.asm else 64
    # Each group of warps has its own code, and the first block of dV stands before the loop.
    written = (4 if key[0] == "dv" else 2) if tiles.specialised else 1
    scores = written * tiles.tokens * tiles.rows / (tiles.warps * lanes)
    return Resources(
        arch=arch,
        key=key,
        tiles=tiles,
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        matrix=dict(Counter(re.findall(MATRIX, code))),
        useful=needed(key, tiles) / issued(compiled.asm.get("ttir") or compiled.asm["ttgir"]),
        special=len(re.findall(SPECIAL, code)) / scores,
        warnings=warnings,
    )


def needed(key: Key, tiles: Tiles) -> int:
    """Multiplications that an iteration needs; of a chunk kernel, an iteration of each of its loops."""
    kernel, _, columns = key
    products = {
        "forward": 3, "decode": 3, "dq": 5, "weights": 6, "dk_du": 5, "dk": 4, "du": 3, "dv": 3,
        "chunk": 2, "chunk_decode": 2,
    }[kernel]  # fmt: skip
    return products * tiles.tokens * tiles.rows * (tiles.columns or columns)


def issued(code: str) -> int:
    """Multiplications of the products in the loops of Triton's or Gluon's code, an iteration of each."""
    total, closing = 0, []
    for line in code.splitlines():
        indent = len(line) - len(line.lstrip())
        if "scf.for" in line:
            closing.append(indent)
        elif closing and line.lstrip().startswith("}") and indent <= closing[-1]:
            closing.pop()
        shape = re.search(r"(?:tt\.|warp_group_)dot .*: \S+?<(\d+)x(\d+)x.*> \* \S+?<\d+x(\d+)x", line)
        if shape and closing:
            m, k, n = map(int, shape.groups())
            total += m * k * n
    return total


def _nvidia(compiled: Any, arch: str) -> tuple[int, int, str, tuple[str, ...]]:
    """Registers, bytes of local memory, machine code and the warnings of ptxas."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    number = int(arch[3:])
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        usage = _output(tools / "cuobjdump", "-res-usage", cubin)
        code = _output(tools / "nvdisasm", "-c", cubin)
        options = ("-v", f"--gpu-name={sm_arch_from_capability(number)}", ptx, "-o", Path(folder, "again"))
        log = _output(get_ptxas(number).path, *options)
    local = _number(usage, r"STACK:(\d+)") + _number(usage, r"LOCAL:(\d+)")
    # C7510 to C7515: wgmma instructions are serialised. (C7519 only says that ptxas synchronised some.)
    warnings = tuple(line for line in log.splitlines() if re.search(r"\bwarning\b|\bC751[0-5]\b", line))
    return _number(usage, r"REG:(\d+)"), local, code, warnings


def _output(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return int(found[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each kernel, and what is broken or changed."""
    options = parser().parse_args(arguments)
    part = bool(options.arch or options.fast)
    before = record.read() if part or not options.accept else Record("none", {})
    same = before.triton == triton.__version__
    if options.accept and part and not same:
        parser().error(f"the record is of triton {before.triton}: all of it is rewritten, or none")
    print(f"triton {triton.__version__}\n{HEADING}", flush=True)
    lines: dict[str, str] = {}
    broken = changed = 0
    for arch in options.arch or ARCHES:
        for key, tiles, launch in launches(arch, first=options.fast):
            found = resources(key, tiles, launch, arch)
            line = str(found)
            lines[record.name_of(line)] = line
            limits, changes = found.broken(), before.changes(line) if same and not options.accept else []
            broken, changed = broken + bool(limits), changed + bool(changes)
            marks = [f"    FAILS: {what}" for what in limits] + [f"    CHANGED: {what}" for what in changes]
            print("\n".join([line, *marks]), flush=True)
    print(f"{broken} kernels break a limit" if broken else "every limit holds")
    if options.accept:
        kept = before.lines if same else {}
        names = [name(arch, key, tiles) for arch in ARCHES for key, tiles in rows(arch)]
        record.write(Record(triton.__version__, {**kept, **lines}), names)
        print(f"{len(lines)} rows are recorded")
    elif not same:
        print(f"not compared: the record is of triton {before.triton}, whose registers are not this one's")
    else:
        again = "; if that is meant: python -m benchmarks.gpu.static --accept" if changed else ""
        print(f"{changed} of {len(lines)} rows are not as recorded{again}")
    raise SystemExit(1 if broken or changed else 0)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.static", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--arch", choices=ARCHES, action="append", help="which; all four")
    parser.add_argument("--fast", action="store_true", help="only the rows in use until one tunes")
    parser.add_argument("--accept", action="store_true", help="record what they take, instead of comparing")
    return parser


if __name__ == "__main__":
    main()
