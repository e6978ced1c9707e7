"""What a tape and index notation mean, by brute force: the oracle of the reader's tests.

`replay` runs the operations of a tape on real tensors. `Evaluation` loops over every value of every axis of a
normal form; with a number it gives the scale that rounding errors are relative to.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mhf_compile.notation import Axis, Delta, Factor, Index, Leaf, Term, leaves
from mhf_compile.notation.fold import Stacked
from mhf_compile.reading.reader import Reader, entry_axes, read
from mhf_compile.tape.recorder import record_function
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Op, Value, convert

EPSILON = 2.0**-53
"""Half the distance of 1 and the next number in float64: the relative error of one rounding."""

OPERATION_ROUNDINGS = 8
"""Roundings of an elementwise kernel, at most: exponentials and divisions are good to a few last places."""


class Unknown(Exception):
    """The tape does not say what a tensor holds."""


def operator(name: str) -> Callable[..., Tensor]:
    namespace, _, short = name.rpartition("::")
    return getattr(getattr(torch.ops, namespace or "aten"), short)


def replay(tape: Tape, given: Mapping[Value, Tensor]) -> dict[Value, Tensor]:
    """Every value of a tape, from its inputs, by operations that write to nothing they are given."""
    tensors = {value: tensor.clone() for value, tensor in given.items()}
    for value in tape.values:
        if value not in tensors and value.op is not None:
            tensors[value] = _run(value.op, value, tensors)
    return tensors


def _run(op: Op, value: Value, tensors: Mapping[Value, Tensor]) -> Tensor:
    if op.name == "unknown":
        raise Unknown(op)

    def real(item: object) -> object:
        return tensors[item].clone() if isinstance(item, Value) else item

    if op.name == "scatter_view":
        before, written, view, output = op.args
        result = tensors[before].clone()
        _part(operator(view.name)(result, *view.args[1:], **view.kwargs), output).copy_(tensors[written])
        return result
    args, kwargs = convert(op.args, real), convert(op.kwargs, real)
    kwargs = {key: item for key, item in kwargs.items() if key not in ("device", "pin_memory", "layout")}
    result = operator(op.name)(*args, **kwargs)
    return _part(result, value.output).clone()


def _part(result: Tensor | Sequence[Tensor], output: int) -> Tensor:
    return result if isinstance(result, Tensor) else result[output]


def _sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2 if x > -20 else math.exp(x) / (1 + math.exp(x))


# -- functions: (value, steepest slope near it) ------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[float], tuple[float, float]]] = {
    "": lambda x: (x, 1.0),  # the sum itself
    "identity": lambda x: (x, 1.0),
    "sigmoid": lambda x: (_sigmoid(x), 0.25),
    "silu": lambda x: (x * _sigmoid(x), 1.1),
    "exp": lambda x: (math.exp(x), math.exp(x)),
    "reciprocal": lambda x: (1 / x, 1 / x**2),
    "relu": lambda x: (max(x, 0.0), 1.0),
    "tanh": lambda x: (math.tanh(x), 1.0),
    "erf": lambda x: (math.erf(x), 1.2),
    "erfc": lambda x: (math.erfc(x), 1.2),
    "abs": lambda x: (abs(x), 1.0),
    "log": lambda x: (math.log(x), 1 / abs(x)),
    "log1p": lambda x: (math.log1p(x), 1 / abs(1 + x)),
    "expm1": lambda x: (math.expm1(x), math.exp(x)),
    "logsigmoid": lambda x: (-math.log1p(math.exp(-x)), 1.0),
    "softshrink(0.3)": lambda x: (x - math.copysign(0.3, x) if abs(x) > 0.3 else 0.0, 1.0),
    "hardshrink(0.3)": lambda x: (x if abs(x) > 0.3 else 0.0, 1.0),
    "sqrt": lambda x: (math.sqrt(x), 1 / math.sqrt(x)),
    "rsqrt": lambda x: (1 / math.sqrt(x), x**-1.5),
    "sin": lambda x: (math.sin(x), 1.0),
    "sign": lambda x: (math.copysign(1.0, x) if x else 0.0, 0.0),
    "cos": lambda x: (math.cos(x), 1.0),
    "elu(0.5, 1, 1)": lambda x: (x if x > 0 else math.expm1(x) / 2, 1.0),
    "elu(0.5, 1, 2)": lambda x: (x if x > 0 else math.expm1(2 * x) / 2, 1.0),
    "leaky_relu(0.1)": lambda x: (max(x, 0.1 * x), 1.0),
    "softplus(1, 20)": lambda x: (math.log1p(math.exp(x)), 1.0),
    "softplus(2, 3)": lambda x: (math.log1p(math.exp(2 * x)) / 2 if 2 * x <= 3 else x, 1.0),
    "mish": lambda x: (x * math.tanh(math.log1p(math.exp(x))), 1.2),
    "hardswish": lambda x: (x * min(max(x + 3, 0.0), 6.0) / 6, 1.5),
    "hardsigmoid": lambda x: (min(max(x + 3, 0.0), 6.0) / 6, 0.2),
    "hardtanh(-0.5, 0.5)": lambda x: (min(max(x, -0.5), 0.5), 1.0),
    "clamp(-0.5, 0.5)": lambda x: (min(max(x, -0.5), 0.5), 1.0),
    "clamp(0, inf)": lambda x: (max(x, 0.0), 1.0),
    "clamp(-inf, 0.5)": lambda x: (min(x, 0.5), 1.0),
    "clamp(0.25, inf)": lambda x: (max(x, 0.25), 1.0),
    "clamp(-inf, 0.25)": lambda x: (min(x, 0.25), 1.0),
    "threshold(0.5, 0.1)": lambda x: (x if x > 0.5 else 0.1, 1.0),
    "gelu": lambda x: (x * (1 + math.erf(x / math.sqrt(2))) / 2, 1.2),
    "gelu_tanh": lambda x: (
        x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        1.2,
    ),
}


OF_SEVERAL: dict[str, Callable[..., float]] = {
    "maximum": max,
    "minimum": min,
    "gt": lambda a, b: float(a > b),
    "ge": lambda a, b: float(a >= b),
    "lt": lambda a, b: float(a < b),
    "le": lambda a, b: float(a <= b),
    "eq": lambda a, b: float(a == b),
    "ne": lambda a, b: float(a != b),
    "both": lambda a, b: a * b,
    "either": max,
    "opposite": lambda a: 1 - a,
    "where": lambda c, a, b: a if c else b,
}
"""Functions that change no faster than what they are of, and conditions, which are 0 or 1."""


@dataclass
class Number:
    """A number; its error is at most `roundings * EPSILON * scale`, to first order."""

    value: float
    scale: float
    roundings: int = 0

    def __mul__(self, other: "Number") -> "Number":
        return Number(
            self.value * other.value, self.scale * other.scale, self.roundings + other.roundings + 1
        )

    def __add__(self, other: "Number") -> "Number":
        return Number(
            self.value + other.value, self.scale + other.scale, max(self.roundings, other.roundings) + 1
        )


Position = dict[Axis, int]


class Evaluation:
    """Index notation as a number, for one value of each free axis."""

    def __init__(self, tensors: Mapping[Value, Tensor]) -> None:
        self.entries = {value: tensor.tolist() for value, tensor in tensors.items()}

    def sum(self, terms: Sequence[Term], at: Position) -> Number:
        total = Number(0.0, 0.0)
        for term in terms:
            for values in itertools.product(*(range(axis.size) for axis in term.bound)):
                total = total + self.product(term, {**at, **dict(zip(term.bound, values, strict=True))})
        return total

    def product(self, term: Term, at: Position) -> Number:
        coefficient = float(term.coefficient)
        result = Number(coefficient, abs(coefficient), 1)
        for factor in term.factors:
            # First: what a delta excludes may lie outside of a tensor.
            if isinstance(factor, Delta) and at[factor.axis] != position(factor.index, at):
                return Number(0.0, 0.0)
        for factor in term.factors:
            result = result * self.factor(factor, at)
        return result

    def factor(self, factor: Factor, at: Position) -> Number:
        if isinstance(factor, Delta):
            return Number(1.0, 1.0)
        if isinstance(factor, Leaf):
            return self.entry(factor.value, [position(index, at) for index in factor.index])
        assert not factor.entries, "an argument that is not read"
        arguments = [self.sum(terms, at) for terms in factor.sums]
        numbers = [argument.value for argument in arguments]
        if factor.name in OF_SEVERAL:
            value, slope = OF_SEVERAL[factor.name](*numbers), 1.0
        else:
            value, slope = FUNCTIONS[factor.name](*numbers)
        scale = abs(value) + slope * sum(argument.scale for argument in arguments)
        roundings = max((argument.roundings for argument in arguments), default=0)
        return Number(value, scale, roundings + OPERATION_ROUNDINGS)

    def entry(self, value: object, where: Sequence[int]) -> Number:
        if isinstance(value, Stacked):
            return self.entry(value.parts[where[0]], where[1:])
        found = self.entries[value]
        for size, i in zip(value.shape, where, strict=True):
            assert 0 <= i < size, f"{value}{list(where)} is outside of {value.shape}"
            found = found[i]
        return Number(found, abs(found))


def position(index: Index, at: Position) -> int:
    return index.offset + sum(stride * at[axis] for stride, axis in index.digits)


# -- programs ----------------------------------------------------------------------------------------------


@dataclass
class Program:
    """A function of tensors: what it gives, and what is read of it."""

    tape: Tape
    inputs: list[Value]
    result: Value
    tensors: dict[Value, Tensor]
    expected: Tensor
    reader: Reader
    terms: list[Term]
    index: tuple[Index, ...]

    @property
    def leaves(self) -> set[object]:
        return {leaf.value for term in self.terms for leaf in leaves(term.factors)}

    @property
    def operations(self) -> set[str]:
        return {value.op.name for value in self.tape.values if value.op is not None}


def program(function: Callable[..., Tensor], *shapes: tuple[int, ...], seed: int = 0) -> Program:
    """Run a function in float64 on random tensors, record it, and read its result."""
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    expected = function(*(tensor.clone() for tensor in given))
    with FakeTensorMode():  # as graphs are recorded
        tape, inputs, result = record_function(function, *shapes)
    # What a program makes of nothing (constants) has no value on the tape: only inputs are given.
    tensors = replay(tape, dict(zip(inputs, given, strict=True)))
    reader = Reader()
    index = entry_axes(result)
    terms = read(result, index, reader)
    index = tuple(reader.axes.current(i) for i in index)
    return Program(tape, inputs, result, tensors, expected, reader, terms, index)


def check(found: Program, terms: Sequence[Term] | None = None, index: Sequence[Index] | None = None) -> None:
    """Assert that a normal form is the result of a program, at every entry.

    The bound follows from the roundings on both sides; it is below 1e-12 of the scale up to 9000 of them.
    """
    terms = found.terms if terms is None else terms
    index = found.index if index is None else index
    assert tuple(found.expected.shape) == tuple(found.result.shape)
    read = {v: t for v, t in found.tensors.items() if t.dtype.is_floating_point or t.dtype is torch.bool}
    evaluation = Evaluation(read)
    eager = eager_roundings(found.tape)
    axes = [axis for i in index for axis in i.axes]
    assert len(set(axes)) == len(axes), "a diagonal stands for the whole"
    seen = set()
    for values in itertools.product(*(range(axis.size) for axis in axes)):
        at = dict(zip(axes, values, strict=True))
        entry = tuple(position(i, at) for i in index)
        number = evaluation.sum(terms, at)
        bound = (number.roundings + eager) * EPSILON * number.scale
        assert abs(number.value - found.expected[entry].item()) <= bound, (entry, number, terms)
        seen.add(entry)
    assert len(seen) == found.expected.numel()


def eager_roundings(tape: Tape) -> int:
    """Roundings on any way through a program, at most: one a summand, a few an elementwise operation."""
    total = 0
    for op in dict.fromkeys(value.op for value in tape.values if value.op is not None):
        longest = max((int(size) for value in op.inputs for size in value.shape), default=1)
        if op.name in ("sum", "mean"):
            longest = max((math.prod(map(int, value.shape)) for value in op.inputs), default=1)
        total += OPERATION_ROUNDINGS + longest
    return total
