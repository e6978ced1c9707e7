"""The normal form of any program, drawn at random, is what the program computes."""

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mhf_compile.notation import Unreadable, leaves, product
from mhf_compile.notation.fold import fold
from tests.evaluate import Program, Unknown, check, program


@st.composite
def programs(draw, steps=6, limit=24):
    """A random program: (text, function, shapes of its arguments)."""
    given = [
        tuple(
            draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda s: math.prod(s) <= limit))
        )
        for _ in range(draw(st.integers(1, 2)))
    ]
    scope = {"torch": torch, "F": F, "given": [torch.zeros(shape, dtype=torch.float64) for shape in given]}
    lines: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def add(text: str) -> None:
        """Take a statement on if PyTorch does."""
        name = f"t{len(shapes)}"
        try:
            exec(f"{name} = {text}", scope)
        except (RuntimeError, IndexError):
            return
        result = scope[name]
        if isinstance(result, Tensor) and result.numel() <= limit:
            lines.append(f"{name} = {text}")
            shapes[name] = tuple(result.shape)

    for number in range(len(given)):
        add(f"given[{number}]")
    for _ in range(steps):
        name = draw(st.sampled_from(sorted(shapes)[-3:]))
        add(draw(statements(name, shapes[name], shapes)))
    last = next(reversed(shapes))
    source = "\n".join(lines)

    def function(*tensors: Tensor) -> Tensor:
        scope = {"torch": torch, "F": F, "given": [tensor.clone() for tensor in tensors]}
        exec(source, scope)
        return scope[last]

    return source, function, given


@st.composite
def statements(draw, x, shape, shapes):
    """An expression of a tensor of a shape, perhaps with a write into it."""
    rank = len(shape)
    scalar = draw(st.sampled_from(["2", "-0.5", "3"]))
    same = [name for name, other in shapes.items() if other == shape]
    y = draw(st.sampled_from(same))
    unary = [
        f"-{x}",
        f"{x} * {scalar}",
        f"{scalar} - {x}",
        f"{x} / {scalar}",
        f"F.silu({x})",
        f"{x}.sigmoid()",
        f"torch.exp(-{x} * {x})",
        f"{x} / (1 + torch.exp(-{x}))",
        f"{x} ** {draw(st.integers(1, 3))}",
        f"torch.stack([{x}, {y}], {draw(st.integers(-rank - 1, rank))})",
        f"torch.sub({x}, {y}, alpha={scalar})",
        f"{x} * {y}",
        f"torch.addcmul({x}, {x}, {y}, value={scalar})",
        f"{x} + {y}",
        f"{x}.unsqueeze({draw(st.integers(-rank - 1, rank))})",
        f"{x}.squeeze()",
        f"{x}.sum()",
        f"{x}.flatten() if {x}.dim() else {x}.clone()",
        f"torch.rsub({x}, {y}, alpha={scalar})",
        f"{x}.add_({y}.clone())",
        f"{x}.mul_({scalar})",
        f"{x}.clone().fill_({scalar})",
        f"{x}.expand(2, *{x}.shape)",
    ]
    if rank == 0 or 0 in shape:
        return draw(st.sampled_from(unary))
    dim = draw(st.integers(-rank, rank - 1))
    size = shape[dim]
    at = draw(st.integers(-size, size - 1))
    low, high = sorted((draw(st.integers(-size - 1, size)), draw(st.integers(-size - 1, size + 1))))
    step = draw(st.integers(1, 2))
    order = draw(st.permutations(range(rank)))
    part = draw(st.integers(1, size))
    keep = draw(st.booleans())
    factor = draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0]))
    view = draw(
        st.sampled_from(
            [
                f"{x}.select({dim}, {at})",
                f"{x}.transpose({dim}, 0)",
                f"{x}.unbind({dim})[{at}]",
                f"{x}.narrow({dim}, 0, {part})",
                f"{x}.split({part}, {dim})[-1]",
                f"{x}.chunk({factor}, {dim})[0]",
                f"{x}.unflatten({dim}, ({factor}, -1)).select({dim}, 0)",
                f"{x}.unsqueeze(0)[0]",
            ]
        )
    )
    along = ", ".join(":" * rank).split(", ")
    along[dim] = f"{low}:{high}:{step}" if (low < 0) == (high < 0) else f"{low}::{step}"
    tail = [
        f"{x}[{', '.join(along)}]",
        f"{x}.permute({tuple(order)})",
        view,
        f"{x}.sum({dim}, keepdim={keep})",
        f"{x}.mean({dim}, keepdim={keep})",
        f"torch.cat([{x}, {y}], {dim})",
        f"{x}.repeat({', '.join('2' * rank)})",
        f"{x}.unflatten({dim}, ({factor}, -1))",
        f"{x}.unflatten({dim}, (-1, {factor})).transpose(0, -1)",
        f"{x}.reshape(-1, {factor})",
        f"{x}.reshape({factor}, -1).t()",
        f"torch.cat([{x}.narrow({dim}, 0, {part}), {y}], {dim})",
        f"{x}.repeat_interleave(2, {dim})",
        f"({view}).add_({scalar})",
        f"({view}).mul_({scalar}) + {scalar}",
        f"[{x}.select({dim}, {at}).copy_({y}.select({dim}, 0).clone()), {x} * 1][1]",
        f"[{x}.narrow({dim}, 0, {part}).fill_({scalar}), {x} * 1][1]",
        f"[({view}).mul_({scalar}), {x} * 1][1]",
        f"[({view}).sub_({scalar}), {y} * {x}][1]",
        f"[{x}.transpose(0, {dim}).add_({scalar}), {x} * 1][1]",
        f"{x}.reshape(-1) @ {y}.reshape(-1)",
        f"{x}.reshape({size}, -1) @ {y}.reshape({size}, -1).t()",
        f"torch.einsum('i...,j...->ij', {x}, {y})",
        f"torch.einsum('i...,i...->...', {x}, {y})",
        f"F.glu({x}, {dim}) if {size % 2 == 0} else {x}.clone()",
        f"torch.bmm({x}.reshape({size}, 1, -1), {y}.reshape({size}, -1, 1))",
        f"torch.addmm({x}.reshape(-1), {x}.reshape(-1, 1), {y}.reshape(1, -1), beta={scalar}, alpha=2)",
        f"torch.baddbmm({x}.reshape(1, -1), {x}.reshape(1, -1, 1), {y}.reshape(1, 1, -1), alpha={scalar})",
        f"F.linear({x}, {y}.reshape(-1, {shape[-1]}), {y}.reshape(-1, {shape[-1]}).sum(1))",
    ]
    return draw(st.sampled_from(unary + tail))


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(programs())
def test_the_normal_form_of_any_program_is_what_it_computes(drawn):
    _, function, shapes = drawn
    try:
        found = program(function, *shapes)
    except Unreadable as error:
        assert "more than" in str(error)
        return
    except Unknown:
        return  # a write that the tape says nothing about
    if torch.isfinite(found.expected).all() and cost(found) < 5_000:
        check(found)
        terms, cuts = fold(found.terms)
        found.reader.axes.adopt(cuts)
        terms = [found.reader.axes.resolve(term) for term in terms]
        check(found, terms, [found.reader.axes.current(index) for index in found.index])


def cost(found: Program) -> int:
    """How many products the normal form of a program is, about."""
    return found.expected.numel() * sum(
        int(product([axis.size for axis in term.bound])) * len(list(leaves(term.factors)))
        for term in found.terms
    )
