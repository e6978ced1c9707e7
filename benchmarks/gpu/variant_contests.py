"""What `benchmarks.gpu.variants` compares, and how one process checks or times it.

A contest is one kernel on one layer, its variants are tiles and what else there is to choose.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.formula import formula
from benchmarks.gpu.errors import results
from benchmarks.gpu.protocol import FULL
from benchmarks.gpu.timing import Limits, Task, WallClock, race
from mhf_compile.kernels.flash_mhf import backward, config, forward, waves
from mhf_compile.kernels.flash_mhf.config import Kernel, Sizes, Target, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call, Launch
from mhf_compile.kernels.flash_mhf.tuned import spelled

MADE: dict[Kernel, tuple[int, ...]] = {
    "forward": (0,), "decode": (0,), "dq": (1, 5),
    "weights": (2, 3, 4), "dk_du": (2, 3), "dk": (2,), "du": (3,), "dv": (4,),
}  # fmt: skip
"""What each kernel makes, of the output and the gradients of q, k, u, v and r."""


@dataclass(frozen=True)
class Variant:
    """One way to run a kernel.

    Attributes:
        tiles: of the kernel.
        split: whether the tiles that are left for its last wave may be split.
    """

    tiles: Tiles
    split: bool

    def __str__(self) -> str:
        return f"{spelled(self.tiles)}{'' if self.split else ', whole'}"


@dataclass(frozen=True)
class Contest:
    """A kernel on a layer: the `size` is its name. The first variant is the one in use."""

    size: str
    kernel: Kernel
    sizes: Sizes
    variants: tuple[Variant, ...]

    @property
    def splits(self) -> bool:
        """Whether there is a wave to split."""
        return not all(variant.split for variant in self.variants)

    def __str__(self) -> str:
        return f"{self.kernel} {self.size}, {self.sizes.tokens} tokens"


def plan(target: Target, tokens: Sequence[int]) -> list[Contest]:
    """The contests on a device: with a wave to split, few tokens, 96 columns, then the others.

    All but those with a wave to split, and of few tokens, are at the first number of tokens: tiles are never
    chosen by it.
    """
    found = [contest for count in tokens for contest in _contests(target, count)]

    def order(contest: Contest) -> int:
        if contest.splits:
            return 0
        if contest.kernel == "decode":
            return 1
        return 2 if contest.sizes.head_dim == 96 else 3

    first = (contest for contest in found if contest.sizes.tokens == tokens[0])
    held = dict.fromkeys([*first, *(x for x in found if x.splits or x.kernel == "decode")])
    return sorted(held, key=order)


def _contests(target: Target, tokens: int) -> Iterator[Contest]:
    for size, model in FULL.sizes.items():
        heads, dim = model.ffn_heads, model.head_dim
        sizes = Sizes(
            tokens, heads, heads, model.subnetworks, model.subnetwork_width, dim, dim, True, torch.bfloat16
        )
        backwards: tuple[Kernel, ...] = ()
        if tokens > config.FEW and config.backward_chunk(sizes, None, target.arch) is None:
            backwards = ("dq", *config.weight_kernels(sizes, target.arch))
        for kernel in (config.forward_kernel(sizes), *backwards):
            variants = tuple(_variants(kernel, sizes, target))
            if len(variants) > 1:
                yield Contest(size, kernel, sizes, variants)


def _variants(kernel: Kernel, sizes: Sizes, target: Target) -> Iterator[Variant]:
    """What no sweep says of the candidates of the table, against the first of them.

    With a wave to split, another candidate may be the fastest. Those with two descriptors go through pointers
    as well, and those that are joined are also tried in two launches.
    """
    row = config.table(target.arch)[config.key(kernel, sizes)]
    new = [tiles for tiles in row if tiles.described > 1 or tiles.joined]
    old = [x._replace(joined=False) if x.joined else x._replace(described=0) for x in new]
    for tiles in dict.fromkeys([*(row if kernel in config.OF_WEIGHTS else row[:1]), *new, *old]):
        yield Variant(tiles, split=True)
        if kernel in config.OF_WEIGHTS and waves.tail(kernel, sizes, tiles, target) is not None:
            yield Variant(tiles, split=False)


@dataclass
class Prepared:
    """A variant, and what it makes."""

    work: Callable[[], None]
    made: list[Tensor]

    def run(self, _: object = None) -> None:
        """Do the work."""
        self.work()


def operands(sizes: Sizes, device: str) -> tuple[list[Tensor], Tensor]:
    """q, k, u, v, r (float32) as the paper's layers have them, and a gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, deviation: float = 1.0) -> Tensor:
        x = torch.empty(shape, dtype=sizes.dtype, device=device)
        return x.normal_(0, deviation, generator=generator)

    tokens, weight = (1, sizes.tokens, sizes.heads), (sizes.kv_heads, sizes.subnetworks, sizes.width)
    k, u = (normal(*weight, sizes.head_dim, deviation=sizes.head_dim**-0.5) for _ in range(2))
    v = normal(*weight, sizes.out_dim, deviation=sizes.width**-0.5)
    r = torch.rand(*tokens, sizes.subnetworks, device=device, generator=generator)
    return [normal(*tokens, sizes.head_dim), k, u, v, r], normal(*tokens, sizes.out_dim)


def prepared(
    contest: Contest, variant: Variant, xs: Sequence[Tensor], grad: Tensor, target: Target
) -> Prepared:
    """One variant, whose results are NaN until it ran."""
    q, k, u, v, r = xs
    forced: Mapping[Kernel, Tiles] = {contest.kernel: variant.tiles}
    call = Call(q, k, u, v, r, None, None, "silu", 1.0, 1.0, target, forced=forced, split=variant.split)
    shapes = [grad, *xs]
    room = {place: torch.full_like(shapes[place], torch.nan) for place in MADE[contest.kernel]}
    made = list(room.values())
    grads = [*(room.get(place) for place in range(1, 6)), None, None]
    if contest.kernel in ("forward", "decode"):
        return Prepared(partial(_launch, forward.launches(call, made[0])), made)
    return Prepared(partial(_launch, backward.launches(call, grad, grads)), made)


def _launch(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch.run()


def check(contest: Contest, number: int, device: str, target: Target) -> dict[str, Any]:
    """The largest error of a variant over what the law allows, and whether two runs are bit-equal.

    The law is that of `benchmarks.gpu.errors`.
    """
    xs, grad = operands(contest.sizes, device)
    ready = prepared(contest, contest.variants[number], xs, grad, target)
    ready.run()
    first = [x.clone() for x in ready.made]
    ready.run()
    equal = all(torch.equal(x, y) for x, y in zip(first, ready.made, strict=True))
    made = MADE[contest.kernel]
    exact = _reference(xs, grad, torch.float64, made)
    eager = _reference(xs, grad, contest.sizes.dtype, made)
    floor = (torch.finfo(contest.sizes.dtype).eps + 8 * torch.finfo(torch.float32).eps) / 2
    over = [
        float((x.double() - want).norm() / (2 * (plain.double() - want).norm() + floor * want.norm()))
        for x, plain, want in zip(first, eager, exact, strict=True)
    ]
    return {"over_allowed": max(over, key=lambda x: (x != x, x)), "bit_equal": equal}


def _reference(xs: Sequence[Tensor], grad: Tensor, dtype: torch.dtype, made: tuple[int, ...]) -> list[Tensor]:
    """What the formula makes in a dtype, head by head: wide values in float64 take gigabytes for each."""
    heads = []
    for h in range(xs[0].shape[2]):
        here = slice(h, h + 1)
        q, k, u, v, r = xs
        of_head = (q[:, :, here], k[here], u[here], v[here], r[:, :, here])
        ys = [x.detach().to(dtype).requires_grad_() for x in of_head]
        heads.append(results(formula, ys, grad[:, :, here].to(dtype)))
    tokens_like = (0, 1, 5)
    return [torch.cat([x[place] for x in heads], 2 if place in tokens_like else 0) for place in made]


def time(
    contest: Contest, numbers: Sequence[int], device: str, target: Target, clock: WallClock, limits: Limits
) -> dict[str, Any]:
    """The times of some variants, by number, in turns; and of each over that of the first."""
    xs, grad = operands(contest.sizes, device)
    tasks = {}
    for number in numbers:
        run = prepared(contest, contest.variants[number], xs, grad, target).run
        tasks[str(number)] = Task(_captured(run, clock) if contest.kernel == "decode" else run)
    return asdict(race(tasks, clock, limits, str(numbers[0])))


def _captured(run: Callable[[], None], clock: WallClock) -> Callable[[object], object]:
    """As a CUDA graph: to launch a call of few tokens takes longer than it does."""
    replay = clock.captured(run)
    return lambda _: replay()
