"""Calls of the operator that are drawn: their sizes, and of each operand the values and the layout.

What is left out of a `Call` or of a part of it has its default, so that a small call reads as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.battery import ACTIVATIONS, NAMES

BLOCKED = ("blocked", "small blocks")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
PARTS = ("sm_80 in parts", "sm_90 in parts")  # pointers and descriptors
TRITON = (*ARCHITECTURES, *(f"{arch} in chunks" for arch in ARCHITECTURES), *PARTS)
WAYS = (*BLOCKED, *TRITON)
"""What computes a call: plain ATen, or the Triton kernels with the tiles for an architecture."""

DTYPES = ("float32", "float16", "bfloat16", "float64")
SPECIAL = ("nan", "inf", "-inf")

LARGE = {"float16": 13, "bfloat16": 100, "float32": 100}
TINY = {"float16": -17, "bfloat16": -130, "float32": -130}
"""Powers of two: times numbers of a normal distribution these are finite, but no products of them, and
subnormal."""


class Short:
    """A dataclass whose repr has only what differs from the defaults."""

    def __repr__(self) -> str:
        given = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        text = ", ".join(f"{name}={value!r}" for name, value, default in given if value != default)
        return f"{type(self).__name__}({text})"


@dataclass(frozen=True, repr=False)
class Layout(Short):
    """How a tensor lies in memory; () is as if it were contiguous.

    Attributes:
        order: its axes, the outermost in memory first.
        steps: for each axis, every how many there is an entry.
        gaps: for each axis, how many there are before the first.
        expanded: the axes that are one entry in memory.

    What is between the entries is NaN.
    """

    order: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    expanded: tuple[int, ...] = ()

    def of(self, x: Tensor) -> Tensor:
        """The tensor in this layout; expanded axes have their first entry everywhere."""
        axes = range(x.dim())
        order = self.order or tuple(axes)
        steps = self.steps or (1,) * x.dim()
        gaps = self.gaps or (0,) * x.dim()
        small = x
        for axis in self.expanded:
            small = small.narrow(axis, 0, min(1, x.shape[axis]))
        memory = x.new_full([gaps[a] + steps[a] * small.shape[a] for a in order], torch.nan)
        laid = memory.permute([order.index(a) for a in axes])
        laid = laid[tuple(slice(gaps[a], None, steps[a]) for a in axes)]
        return laid.copy_(small).expand(x.shape)


@dataclass(frozen=True, repr=False)
class Operand(Short):
    """The values of an operand, and their layout.

    Attributes:
        kind: "normal", as distributed so; "sparse", half of them zero; "zero"; "whole", of -1, 0 and 1.
        power: of two, by which they are multiplied.
        special: for some of them, their place and what there is instead: "nan", "inf" or "-inf".
        layout: how they lie in memory.
    """

    kind: str = "normal"
    power: int = 0
    special: tuple[tuple[int, str], ...] = ()
    layout: Layout = Layout()

    def tensor(self, shape: Iterable[int], std: float, dtype: torch.dtype, seed: int) -> Tensor:
        """Numbers of 8 significant bits."""
        generator = torch.Generator().manual_seed(seed)
        shape = tuple(shape)
        x = (torch.randn(shape, generator=generator) * std).bfloat16().double()
        match self.kind:
            case "zero":
                x = torch.zeros_like(x)
            case "sparse":
                x = x * torch.randint(2, shape, generator=generator)
            case "whole":
                x = torch.randint(-1, 2, shape, generator=generator).double()
        x = x * 2.0**self.power
        for place, value in self.special:
            if x.numel():
                x.view(-1)[place % x.numel()] = float(value)
        return self.layout.of(x.to(dtype))


@dataclass(frozen=True, repr=False)
class Call(Short):
    """A call; it has what `battery.check` wants of a case."""

    way: str = "blocked"
    dtype: str = "float32"
    r_dtype: str = "float32"
    batch: int = 1
    length: int = 1
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 1
    subnetworks: int = 1
    width: int = 1
    out_dim: int = 1
    activation: str = "identity"
    gate_scale: float = 1.0
    scale: float = 1.0
    q: Operand = Operand()
    k: Operand = Operand()
    u: Operand | None = None
    v: Operand = Operand()
    r: Operand | None = None
    gate_bias: Operand | None = None
    up_bias: Operand | None = None
    grad: Operand = Operand()
    seed: int = 0

    @property
    def source(self) -> str:
        """The text of a module that has the call."""
        return f"from tests.kernels.drawn import Call, Layout, Operand\n\nEXAMPLE = {self!r}\n"

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def constants(self) -> tuple[str, float, float]:
        """activation, gate_scale and scale."""
        return self.activation, self.gate_scale, self.scale

    @property
    def given(self) -> dict[str, Operand]:
        """The operands that there are, by name."""
        return {name: x for name in NAMES if (x := getattr(self, name)) is not None}

    @property
    def everything(self) -> dict[str, Operand]:
        """The operands that there are, and the gradient of the result."""
        return {**self.given, "grad": self.grad}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all operands, and of the gradient of the result."""
        weight = (self.kv_heads, self.subnetworks, self.width)
        tokens = (self.batch, self.length, self.heads)
        return {
            "q": (*tokens, self.head_dim), "k": (*weight, self.head_dim), "u": (*weight, self.head_dim),
            "v": (*weight, self.out_dim), "r": (*tokens, self.subnetworks), "gate_bias": weight,
            "up_bias": weight, "grad": (*tokens, self.out_dim),
        }  # fmt: skip

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """An operand, or the gradient of the result; products of matrices keep the size of entries."""
        std = {"k": self.head_dim**-0.5, "u": self.head_dim**-0.5, "v": self.width**-0.5}.get(name, 1.0)
        seed = 8 * self.seed + [*NAMES, "grad"].index(name)
        return self.everything[name].tensor(self.shapes[name], std, dtype, seed)

    def operands(self, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Tensor | None, ...]:
        """q, k, u, v, r, gate_bias, up_bias; of its own dtype, if no other is wanted."""
        own = dtype or getattr(torch, self.dtype)
        router = own if self.r_dtype == self.dtype else getattr(torch, self.r_dtype)
        dtypes = {name: router if name == "r" else own for name in NAMES}
        given = self.given
        return tuple(self.tensor(n, dtypes[n]).to(device) if n in given else None for n in NAMES)

    def gradient(self) -> Tensor:
        """The gradient of the result."""
        return self.tensor("grad", getattr(torch, self.dtype))


def layouts(axes: int, *, expanded: bool = True) -> st.SearchStrategy[Layout]:
    """Layouts of so many axes; a third of them is contiguous."""
    each = range(axes)
    natural = st.just(())
    return st.just(Layout()) | st.builds(
        Layout,
        order=natural | st.permutations(each).map(tuple),
        steps=natural | st.tuples(*(st.integers(1, 3) for _ in each)),
        gaps=natural | st.tuples(*(st.integers(0, 3) for _ in each)),
        expanded=natural | st.sets(st.sampled_from(each)).map(sorted).map(tuple) if expanded else natural,
    )


def ordinary(name: str, axes: int, dtype: str) -> st.SearchStrategy[Operand]:
    """Values whose products neither overflow nor underflow."""
    return st.builds(
        Operand,
        kind=st.sampled_from(("normal", "normal", "normal", "sparse", "zero")),
        power=st.integers(-2, 1),
        layout=layouts(axes),
    )


def various(name: str, axes: int, dtype: str) -> st.SearchStrategy[Operand]:
    """Ordinary values, few of which are the same; the gradient of the result may be that of a sum."""
    return st.builds(
        Operand,
        kind=st.sampled_from(("normal", "sparse")),
        power=st.integers(-2, 1),
        layout=layouts(axes, expanded=name == "grad"),
    )


def dense(name: str, axes: int, dtype: str) -> st.SearchStrategy[Operand]:
    """Values no two of which share memory."""
    return st.builds(
        Operand, kind=st.sampled_from(("normal", "sparse")), layout=layouts(axes, expanded=False)
    )


def whole(name: str, axes: int, dtype: str) -> st.SearchStrategy[Operand]:
    """Values of -1, 0 and 1."""
    return st.builds(Operand, kind=st.just("whole"), layout=layouts(axes))


def special(name: str, axes: int, dtype: str) -> st.SearchStrategy[Operand]:
    """Ordinary values with infinities and NaN among them."""
    some = st.lists(st.tuples(st.integers(0, 99), st.sampled_from(SPECIAL)), min_size=1, max_size=2)
    return st.builds(
        Operand,
        kind=st.sampled_from(("normal", "sparse")),
        special=st.just(()) | st.just(()) | some.map(tuple),
        layout=layouts(axes),
    )


def extreme(name: str, axes: int, dtype: str) -> st.SearchStrategy[Operand]:
    """Values whose products may overflow and underflow."""
    powers = (0, 0, 5, 10, LARGE[dtype] // 4, LARGE[dtype], TINY[dtype])
    return st.builds(
        Operand,
        kind=st.sampled_from(("normal", "sparse")),
        power=st.sampled_from(powers),
        layout=layouts(axes),
    )


MORE = (15, 16, 17, 32, 33, 64, 65, 96, 100, 129, 150)
"""Columns of a head at and around the borders of tiles, and beyond one tile."""

Sizes = Mapping[str, tuple[int, int]]

SIZES: Sizes = {
    "batch": (1, 3), "length": (1, 7), "kv_heads": (1, 2), "group": (1, 3), "head_dim": (1, 9),
    "subnetworks": (1, 4), "width": (1, 9), "out_dim": (1, 9),
}  # fmt: skip

SCALES = (1.0, 0.7, -1.3, 2.0, -0.5, 0.0)

Values = Callable[[str, int, str], st.SearchStrategy[Operand]]


@st.composite
def calls(
    draw: st.DrawFn,
    *,
    ways: Iterable[str] = BLOCKED,
    dtypes: Iterable[str] = DTYPES,
    activations: Iterable[str] = tuple(ACTIVATIONS),
    values: Values = ordinary,
    scales: Iterable[float] = SCALES,
    empty: bool = True,
    wide: bool = True,
    sizes: Sizes | None = None,
) -> Call:
    """Calls whose operands are drawn by `values`.

    Args:
        ways: what may compute them.
        dtypes: of q; the Triton kernels take all but float64.
        activations: and
        scales: of which theirs are.
        values: a strategy for an operand, given its name, how many axes it has, and the dtype of q.
        empty: whether there may be no tokens.
        wide: whether one in ten has wide heads, and one in ten many tokens.
        sizes: the least and the largest, where others than those of `SIZES` are wanted.
    """
    way = draw(st.sampled_from(tuple(ways)))
    dtype = draw(st.sampled_from([x for x in dtypes if x != "float64" or way in BLOCKED]))
    chosen = {name: draw(st.integers(*ends)) for name, ends in {**SIZES, **(sizes or {})}.items()}
    if empty and draw(st.integers(0, 19)) == 19:
        chosen[draw(st.sampled_from(("batch", "length")))] = 0
    if wide and draw(st.integers(0, 9)) == 9:
        chosen[draw(st.sampled_from(("head_dim", "out_dim", "width")))] = draw(st.sampled_from(MORE))
    if wide and draw(st.integers(0, 9)) == 9:
        chosen["length"] = draw(st.sampled_from((33, 64, 70, 130)))
    gated, router, gate_bias, up_bias = (draw(st.booleans()) for _ in range(4))
    there = {"q", "k", "v", "grad"}
    there |= {"u"} if gated else set()
    there |= {"r"} if router else set()
    there |= {"gate_bias"} if gate_bias else set()
    there |= {"up_bias"} if gated and up_bias else set()
    return Call(
        way=way,
        dtype=dtype,
        r_dtype=draw(st.sampled_from(("float32", dtype))) if router else "float32",
        **chosen,
        activation=draw(st.sampled_from(tuple(activations))),
        gate_scale=draw(st.sampled_from(tuple(scales))),
        scale=draw(st.sampled_from(tuple(scales))),
        seed=draw(st.integers(0, 99)),
        **{
            name: draw(values(name, 3 if "bias" in name else 4, dtype))
            for name in (*NAMES, "grad")
            if name in there
        },
    )
