"""Replay: recorded operations, run on integers modulo a prime.

What runs is the recorded ATen call itself, on integers in float64, reduced afterwards. Written here is only
what would not be exact or has no meaning in the field (elementwise functions, division, products of more than
two factors, long contractions, casts), and calls that take sizes, as a replay may have fewer tokens than were
recorded. A test holds all of it against PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeVar

import sympy
import torch
from torch import Tensor

from mhf_compile.rewriting.field import CHUNK, PRIME, inverse, matmul, number, of_two, rational, table
from mhf_compile.tape.values import Op, Value, convert

T = TypeVar("T")

Shape = tuple[int, ...]

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""The dtypes of real numbers up to rounding."""

MOVES = frozenset(
    ["permute", "t", "transpose", "select", "slice", "split", "split_with_sizes", "unbind"]
).union(["unsqueeze", "squeeze", "alias", "detach", "lift_fresh", "clone"])
"""Calls run as they were recorded, whose numbers are positions."""

RESHAPES = frozenset(["view", "_unsafe_view"])

ARITHMETIC = frozenset(["add", "sub", "rsub", "neg", "mul"])
"""Calls run as they were recorded, whose numbers are elements of the field: of two factors at most."""

PIECES = frozenset(["cat", "stack", "scatter_view"])
"""Calls of whose arguments some may never be looked at."""

CONSTANTS = frozenset(["zeros", "zeros_like", "new_zeros", "zero", "ones", "ones_like", "new_ones"]).union(
    ["full", "full_like", "new_full", "fill", "scalar_tensor"]
)
"""Calls that take of a tensor no more than its shape and dtype."""

PRODUCTS = frozenset(["mm", "bmm", "mv", "dot", "addmm", "baddbmm"])
"""Products of their last two arguments."""

OF_TWO = frozenset(["maximum", "minimum", "gt", "ge", "lt", "le", "eq", "ne"])
"""Functions of two numbers."""

CONDITIONAL = OF_TWO | frozenset(["logical_and", "bitwise_and", "logical_or", "bitwise_or"]).union(
    ["logical_not", "bitwise_not", "where", "masked_fill"]
)
"""Calls in which there may be conditions: 1 where they hold, else 0."""

UNTAGGED = frozenset(["hardswish", "leaky_relu", "log_sigmoid_forward"])
"""Elementwise functions that not every supported PyTorch tags as such."""

PLACEMENT = frozenset(["dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"])
"""Arguments that say where and how a result is kept."""


class ReplayError(Exception):
    """What was recorded cannot be what was read of it, or cannot be run."""


class Zeros(Exception):
    """A tensor that was not read, being multiplied by zeros."""

    def __init__(self, value: Value) -> None:
        super().__init__(value)
        self.value = value


class Replay:
    """Runs recorded operations modulo the prime.

    Attributes:
        shape: the sizes that a value has here.
        extent: a size as a number.
        tensors: what is known; at first the tensors given.
    """

    def __init__(
        self,
        shape: Callable[[Value], Shape],
        extent: Callable[[Any], int],
        known: Mapping[Value, Tensor],
    ) -> None:
        self.shape = shape
        self.extent = extent
        self.tensors = dict(known)
        self.pending: dict[Value, None] = {}
        self.generator = torch.Generator().manual_seed(0)  # for what nothing should read

    def run(self, values: Iterable[Value]) -> None:
        """Compute values, and no others. Raises ReplayError or Zeros."""
        ordered = sorted(values, key=lambda value: value.time)
        self.pending = dict.fromkeys(value for value in ordered if value not in self.tensors)
        while self.pending:
            self._compute(next(iter(self.pending)))

    def _find(self, value: Value) -> Tensor | None:
        """The tensor of a value, or of one that is computed alike; None of what is not to be computed."""
        if value in self.pending:
            return self._compute(value)
        if value not in self.tensors:
            twin = next((v for v in (*self.tensors, *self.pending) if computed_alike(v, value)), None)
            tensor = None if twin is None else self._find(twin)
            if tensor is None:
                return None
            self.tensors[value] = tensor
        return self.tensors[value]

    def _compute(self, value: Value) -> Tensor:
        del self.pending[value]
        op = value.op
        if op is None or op.random:
            raise ReplayError(f"{value} is not computed")
        numbers = FLOATS | {torch.bool} if op.name in CONDITIONAL else FLOATS
        if not all(v.plain and v.dtype in numbers for v in (value, *op.inputs)):
            raise ReplayError(f"{value} is not computed in real numbers")
        for position, argument in enumerate(op.inputs):
            overwritten = op.name in (*CONSTANTS, "copy") or op.kwargs.get("beta") == 0
            looked_at = op.name not in PIECES and (position or not overwritten)
            if looked_at and self._find(argument) is None:
                others = (self._find(other) for other in op.inputs)
                if any(tensor is not None and not tensor.any() for tensor in others):
                    raise Zeros(argument)
                raise ReplayError(f"{argument} was not read")
        result = self._run(op, value)
        if tuple(result.shape) != self.shape(value):
            raise ReplayError(f"{value} has another shape than was read")
        self.tensors[value] = result
        return result

    def _get(self, argument: object) -> Tensor:
        """An argument in the field."""
        if isinstance(argument, Value):
            tensor = self._find(argument)
            assert tensor is not None
            return tensor
        if not isinstance(argument, (int, float)) or not math.isfinite(argument):
            raise ReplayError(f"{argument} is no number")
        return torch.tensor(float(number(rational(argument))), dtype=torch.float64)

    def _call(self, op: Op, plain: Callable[[Any], Any]) -> tuple[Tensor, ...]:
        """What a recorded call gives, what is no tensor among its arguments converted."""

        def given(item: Any) -> Any:
            return self._get(item) if isinstance(item, Value) else plain(item)

        assert op.func is not None
        args = convert(op.args, given)
        kwargs = {key: convert(item, given) for key, item in op.kwargs.items() if key not in PLACEMENT}
        return _several(_fit(op.func, *args, **kwargs))

    def _position(self, item: Any) -> Any:
        return self.extent(item) if isinstance(item, sympy.Expr) else item

    def _run(self, op: Op, value: Value) -> Tensor:
        get, args, shape = self._get, op.args, self.shape(value)
        match op.name:
            case name if name in MOVES:
                return self._call(op, self._position)[value.output]
            case name if name in ARITHMETIC:
                return self._call(op, lambda item: int(get(item)))[0] % PRIME
            case name if name in RESHAPES:
                return _fit(torch.reshape, get(args[0]), shape)
            case "expand":
                return _fit(torch.Tensor.expand, get(args[0]), shape)
            case "repeat":
                source = get(args[0])
                own = (1,) * (len(shape) - source.dim()) + tuple(source.shape)
                return source.repeat([a // b if b else 1 for a, b in zip(shape, own, strict=False)])
            case "copy":
                return _fit(torch.Tensor.expand, get(args[1]), shape)
            case "fill" if isinstance(args[1], Value):
                return _fit(torch.Tensor.expand, get(args[1]), shape)
            case name if name in CONSTANTS:
                return torch.full(shape, self._constant(op, value), dtype=torch.float64)
            case "_to_copy":
                return get(args[0])
            case "cat" | "stack":
                return self._joined(op, shape)
            case "scatter_view":
                return self._scattered(op, shape)
            case "sum":
                return self._call(op, self._position)[0] % PRIME
            case "mean":
                return self._mean(op)
            case "div" if op.kwargs.get("rounding_mode") is None:
                return _fit(torch.mul, get(args[0]), inverse(get(args[1]))) % PRIME
            case "pow" if isinstance(args[1], (int, float)) and args[1] in range(1, 9):
                return reduce(lambda a, b: a * b % PRIME, [get(args[0])] * int(args[1]))
            case "addcmul":
                product = _fit(torch.mul, get(args[1]), get(args[2])) % PRIME
                return _fit(torch.add, get(args[0]), get(op.kwargs.get("value", 1)) * product) % PRIME
            case name if name in PRODUCTS:
                return self._product(op)
            case "convolution":
                if get(args[1])[0].numel() > CHUNK:
                    raise ReplayError("a convolution of many channels")
                return self._call(op, self._position)[0] % PRIME
            case name if name in OF_TWO:
                return _fit(of_two, name, get(args[0]), get(args[1]))
            case "logical_and" | "bitwise_and":
                return _fit(torch.mul, get(args[0]), get(args[1]))
            case "logical_or" | "bitwise_or":
                return _fit(torch.maximum, get(args[0]), get(args[1]))
            case "logical_not" | "bitwise_not":
                return 1 - get(args[0])
            case "where":
                return _fit(_chosen, *map(get, args))
            case "masked_fill":
                return _fit(_chosen, get(args[1]), get(args[2]), get(args[0]))
            case "glu":
                a, b = get(args[0]).chunk(2, args[1] if len(args) > 1 else -1)
                return a * table("sigmoid")[b.long()] % PRIME
        return self._function(op)

    def _function(self, op: Op) -> Tensor:
        """An elementwise function of one tensor: a table for it and all its parameters."""
        if op.func is None or not (torch.Tag.pointwise in op.func.tags or op.name in UNTAGGED):
            raise ReplayError(f"{op.name} is no function that can be run")
        if len(op.inputs) != 1 or op.args[0] is not op.inputs[0]:
            raise ReplayError(f"{op.name} of several tensors")
        parameters = op.func._schema.arguments[1:]
        given = dict(zip((p.name for p in parameters), op.args[1:], strict=False)) | op.kwargs
        values = [given.get(p.name, p.default_value if p.has_default_value() else None) for p in parameters]
        numbers = (float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values)
        return table(op.name, *numbers)[self._get(op.args[0]).long()]

    def _constant(self, op: Op, value: Value) -> int:
        """What zeros, ones, full and the like fill with, rounded to the dtype, in the field."""
        args = (
            () if isinstance(a, tuple) else torch.empty((), dtype=a.dtype) if isinstance(a, Value) else a
            for a in op.args
        )
        assert op.func is not None
        dtype = {} if op.name in ("zero", "fill") else {"dtype": value.dtype}
        return int(self._get(op.func(*args, **dtype).item()))

    def _mean(self, op: Op) -> Tensor:
        """A mean: times the number of its addends it is an integer, but for rounding."""
        (mean,) = self._call(op, self._position)
        count = self._get(op.args[0]).numel() // max(mean.numel(), 1)
        return (mean * count).round() % PRIME * int(inverse(torch.tensor(float(count)))) % PRIME

    def _product(self, op: Op) -> Tensor:
        *bias, a, b = op.args
        product = _fit(matmul, self._get(a), self._get(b))
        alpha, beta = (self._get(op.kwargs.get(name, 1)) for name in ("alpha", "beta"))
        if not bias or not beta:  # what is multiplied by this 0 may be anything, even NaN
            return alpha * product % PRIME
        return _fit(torch.add, alpha * product % PRIME, beta * self._get(bias[0])) % PRIME

    def _joined(self, op: Op, shape: Shape) -> Tensor:
        """The result of cat or stack, of whose pieces some may be never read."""
        dim = op.args[1] % len(shape) if len(op.args) > 1 else 0
        pieces = []
        for piece in op.args[0]:
            tensor = self._find(piece)
            if tensor is None and 0 not in piece.shape:
                own = (self.extent(piece.shape[dim]),) if op.name == "cat" else ()
                tensor = self._unread((*shape[:dim], *own, *shape[dim + 1 :]))
            pieces += [] if tensor is None else [tensor]
        assert op.func is not None
        return _several(_fit(op.func, pieces, *op.args[1:]))[0]

    def _scattered(self, op: Op, shape: Shape) -> Tensor:
        """A tensor after a write through a view of it: written through that view."""
        before, written, view, output = op.args
        whole, piece = self._find(before), self._find(written)
        result = self._unread(shape) if whole is None else whole.clone()
        if view.name in RESHAPES:
            part = _fit(result.view, self.shape(written) if piece is None else piece.shape)
        elif view.name in MOVES:
            part = _several(_fit(view.func, result, *convert(view.args[1:], self._position)))[output]
        else:
            raise ReplayError(f"a write through {view.name}")
        _fit(part.copy_, self._unread(part.shape) if piece is None else piece)
        return result

    def _unread(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), dtype=torch.float64).random_(PRIME, generator=self.generator)


def _chosen(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition == 1, a, b)


def _several(made: Any) -> tuple[Tensor, ...]:
    return tuple(made) if isinstance(made, (tuple, list)) else (made,)


def _fit(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What PyTorch gives. Raises ReplayError where sizes do not fit, which were read wrong then."""
    try:
        return function(*args, **kwargs)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ReplayError(f"it does not run ({error})") from error


def computed_alike(a: Value, b: Value) -> bool:
    """Whether two values are one function of the same values, and so equal, and followed alike by autograd.

    It follows the tape down to where both are the same: by the recorded calls and all their arguments.
    """
    pending, seen = [(a, b)], set[tuple[Value, Value]]()
    while pending:
        pair = pending.pop()
        a, b = pair
        if a is b or pair in seen:
            continue
        seen.add(pair)
        if a.op is None or b.op is None or a.op.func is None or a.op.func is not b.op.func:
            return False
        if not _is_function(a.op) or a.output != b.output or _others(a.op) != _others(b.op):
            return False
        if a.requires_grad != b.requires_grad:
            return False
        pending += zip(a.op.inputs, b.op.inputs, strict=True)
    return True


def _is_function(op: Op) -> bool:
    """Whether an operation gives the same of the same arguments: memory not yet written to holds anything."""
    return op.func is not None and op.func.namespace == "aten" and not op.random and "empty" not in op.name


def _others(op: Op) -> object:
    """What is no tensor among an operation's arguments, and where the tensors are."""
    return convert(
        (op.args, op.kwargs), lambda item: Value if isinstance(item, Value) else (type(item), item)
    )
