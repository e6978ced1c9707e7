"""Try the candidates of the tables on a device, and choose the fastest of those that compute the same.

How time is taken is up to the caller. A row of the tables is tried at one number of tokens: tiles are chosen
by kernel, dtype and width, never by the length of a sequence.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mhf_compile.kernels.flash_mhf import backward, chunked, config, forward
from mhf_compile.kernels.flash_mhf.ahead import compile_ahead
from mhf_compile.kernels.flash_mhf.config import Kernel, Key, Sizes, Target, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call, Launch

TOKENS = 16384  # of a training step
CHUNK = 2048  # of them in a chunk, about as many as a workspace holds
DECODED = 16  # sequences that go on by a token each

Measure = Callable[[Sequence[Callable[[], object]]], Sequence[float]]
"""Takes the time of several functions, fairly: seconds of a call of each."""


class Candidate(NamedTuple):
    """Tiles for a row of the tables, the sizes to try them on, and the device."""

    key: Key
    sizes: Sizes
    tiles: Tiles
    target: Target


class Trial(NamedTuple):
    """What came of a candidate: its `seconds`, or `why` it was left out."""

    tiles: Tiles
    seconds: float | None
    why: str = ""


def problems(
    layers: Iterable[Sizes], arch: str, tokens: int = TOKENS, decoded: int = DECODED
) -> dict[Key, Sizes]:
    """What to try each row of the tables on, that some layers need: the first of these layers.

    `decoded` of its tokens are for decode, and `CHUNK` for chunks. These are for heads that are too wide for
    others: they are tried on the layer with one head.
    """
    rows: dict[Key, Sizes] = {}
    for layer in layers:
        layer = layer._replace(tokens=tokens)
        dense = layer._replace(
            tokens=min(tokens, CHUNK),
            heads=1,
            kv_heads=1,
            subnetworks=1,
            width=layer.subnetworks * layer.width,
            head_dim=layer.heads * layer.head_dim,
            out_dim=layer.heads * layer.out_dim,
        )
        needed: list[tuple[Kernel, Sizes]] = []
        if layer.held:
            needed += [("forward", layer), ("decode", layer._replace(tokens=decoded))]
            needed += [(name, layer) for name in ("dq", *config.weight_kernels(layer, arch))]
        needed += [("chunk", dense), ("chunk_decode", dense._replace(tokens=decoded))]
        for kernel, sizes in needed:
            rows.setdefault(config.key(kernel, sizes), sizes)
    return {key: sizes for key, sizes in rows.items() if key in config.table(arch)}


def candidates_of(key: Key, sizes: Sizes, arch: str) -> tuple[Tiles, ...]:
    """What is tried of a row: the candidates that may be used at so many tokens."""
    return config.fitting(key[0], sizes.tokens, config.table(arch)[key])


def compiled(candidate: Candidate) -> str:
    """Compile a candidate ahead of time, into Triton's cache: why that fails, or nothing."""
    key, sizes, tiles, target = candidate
    try:
        call, grad = _call(sizes, target, torch.device("meta"))
        launches, _ = _launches(key[0], replace(call, forced={key[0]: tiles}), grad)
        for launch in launches:
            compile_ahead(launch, target.arch)
    except Exception as error:  # of Triton, LLVM or ptxas
        return _message(error)
    return ""


def trials(
    key: Key,
    sizes: Sizes,
    target: Target,
    device: torch.device,
    measure: Measure,
    failed: Mapping[Tiles, str],
) -> list[Trial]:
    """Try all candidates of a row, in their order, on random operands; those that work are measured.

    Whatever hinders a candidate, in Triton's compiler, in the driver or for want of memory, is a result; of
    those that `failed` before it is known. One works if it agrees with the first that ran.
    """
    call, grad = _call(sizes, target, device)
    kernel, candidates = key[0], candidates_of(key, sizes, target.arch)
    first: list[Tensor] = []
    why = dict(failed)
    works: dict[Tiles, list[Launch]] = {}
    for tiles in candidates:
        if tiles in failed:
            continue
        try:
            launches, results = _launches(kernel, replace(call, forced={kernel: tiles}), grad)
            run(launches)
            result = results()
            first = first or result
            if all(agree(x, y, sizes) for x, y in zip(result, first, strict=True)):
                works[tiles] = launches
            else:
                why[tiles] = "its result is not that of the first that ran"
        except Exception as error:
            why[tiles] = _message(error)
    seconds = measure([partial(run, launches) for launches in works.values()])
    taken = dict(zip(works, seconds, strict=True))
    return [Trial(tiles, taken.get(tiles), why.get(tiles, "")) for tiles in candidates]


def fastest(tried: Sequence[Trial]) -> Tiles | None:
    """The tiles that took the least time; None where no candidate works."""
    times = {trial.tiles: trial.seconds for trial in tried if trial.seconds is not None}
    return min(times, key=times.__getitem__, default=None)


def run(launches: Sequence[Launch]) -> None:
    """Run launches one after the other."""
    for launch in launches:
        launch.run()


def agree(x: Tensor, y: Tensor, sizes: Sizes) -> bool:
    """Whether two results of one kernel with different tiles differ by rounding only.

    They are sums of the same products in another order. Each was rounded to the operands' dtype, of unit
    roundoff u: by 2 u of its value both. Before that, values on the way were rounded by u, and sums of so
    many terms by the root of their number times that of float32; these errors have a standard deviation of
    at most so many times the result's root mean square, as the operands are random and independent. Eight
    of those are exceeded once in 10^15 numbers.
    """
    unit = torch.finfo(sizes.dtype).eps / 2
    terms = max(sizes.tokens, sizes.subnetworks * sizes.width, sizes.head_dim, sizes.out_dim)
    x, y = x.float(), y.float()
    error = unit + math.sqrt(terms) * torch.finfo(torch.float32).eps / 2
    root_mean_square = float(y.square().mean().sqrt())
    return torch.allclose(x, y, rtol=2 * unit, atol=8 * error * root_mean_square)


def _call(sizes: Sizes, target: Target, device: torch.device) -> tuple[Call, Tensor]:
    """Operands as the paper's layers have them, contiguous, and a gradient of the result; random ones."""
    drawn = device.type != "meta"
    generator = torch.Generator(device).manual_seed(0) if drawn else None

    def normal(*shape: int, deviation: float = 1.0) -> Tensor:
        x = torch.empty(shape, dtype=sizes.dtype, device=device)
        return x.normal_(0, deviation, generator=generator) if drawn else x

    tokens = (1, sizes.tokens, sizes.heads)
    weight = (sizes.kv_heads, sizes.subnetworks, sizes.width)
    q, grad = normal(*tokens, sizes.head_dim), normal(*tokens, sizes.out_dim)
    k, u = (normal(*weight, sizes.head_dim, deviation=sizes.head_dim**-0.5) for _ in range(2))
    v = normal(*weight, sizes.out_dim, deviation=sizes.width**-0.5)
    r = torch.empty(*tokens, sizes.subnetworks, device=device).uniform_(generator=generator)
    return Call(q, k, u if sizes.gated else None, v, r, None, None, "silu", 1.0, 1.0, target), grad


def _launches(kernel: Kernel, call: Call, grad: Tensor) -> tuple[list[Launch], Callable[[], list[Tensor]]]:
    """The launches of one kernel, and a function that gives what they made, once they ran."""
    sizes, q = call.sizes, call.q

    def room(*shape: int, dtype: torch.dtype = sizes.dtype) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=q.device)  # what is not written disagrees

    if kernel in ("forward", "decode"):
        out = room(*q.shape[:3], sizes.out_dim)
        return forward.launches(call, out), lambda: [out]
    if kernel.startswith("chunk"):
        hidden = room(sizes.heads, sizes.tokens, sizes.subnetworks * sizes.width)
        return [chunked.launch(call, slice(0, sizes.tokens), hidden)], lambda: [hidden]
    operands = (call.q, call.k, call.u, call.v, call.r)
    made = {"dq": (0, 4), "weights": (1, 2, 3), "dk_du": (1, 2), "dk": (1,), "du": (2,), "dv": (3,)}[kernel]
    grads = [
        None if x is None or i not in made else room(*x.shape, dtype=x.dtype) for i, x in enumerate(operands)
    ]
    results = [x for x in grads if x is not None]
    return backward.launches(call, grad, [*grads, None, None]), lambda: results


def _message(error: Exception) -> str:
    """The type and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
