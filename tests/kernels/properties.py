"""What holds of every call of the operator, in either implementation.

The Triton kernels run in the interpreter, which is chosen when Triton is imported: it has its own process.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mhf_compile.kernels.flash_mhf import blocked
from mhf_compile.kernels.ops import flash_mhf
from tests.fuzz.property import Property, assume
from tests.kernels import battery
from tests.kernels.battery import NAMES, formula, results
from tests.kernels.drawn import (
    BLOCKED,
    TRITON,
    Call,
    Sizes,
    calls,
    dense,
    extreme,
    special,
    various,
    whole,
)

SINGLE = torch.finfo(torch.float32)

# -- what computes a call -----------------------------------------------------------------------------------


@contextmanager
def implementation(way: str) -> Iterator[Any]:
    """A module, or what is like one, with `forward` and `backward`."""
    if way == "blocked":
        yield blocked
    elif way == "small blocks":  # that end inside batches and inside sub-networks
        with patch.object(blocked, "TOKENS", 5), patch.object(blocked, "block_limit", lambda: 5 * 6):
            yield blocked
    else:
        from mhf_compile.kernels.flash_mhf import backward, config, forward

        arch, _, in_chunks = way.partition(" ")
        options = {"target": config.Target(arch, 8), "workspace": 0 if in_chunks else None}
        worthwhile, least = (0, 5) if in_chunks else (config.WORTHWHILE, config.LEAST_CHUNK)
        with patch.multiple(config, WORTHWHILE=worthwhile, LEAST_CHUNK=least):
            yield SimpleNamespace(
                forward=functools.partial(forward.forward, **options),
                backward=functools.partial(backward.backward, **options),
            )


@functools.cache
def interpreter() -> ProcessPoolExecutor:
    """A process whose Triton is interpreted, and silent where its arithmetic overflows."""
    silent = {"initializer": warnings.simplefilter, "initargs": ("ignore", RuntimeWarning)}
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), **silent)


def close() -> None:
    """End that process, if there is one: a process of multiprocessing's would wait for it."""
    if interpreter.cache_info().currsize:
        interpreter().shutdown()
        interpreter.cache_clear()


def placed(check: Callable[[Call], None]) -> Callable[[Call], None]:
    """The check, in the process that has what computes the call."""

    @functools.wraps(check)
    def run(call: Call) -> None:
        if call.way in BLOCKED or os.environ.get("TRITON_INTERPRET") == "1":
            check(call)
            return
        try:
            with patch.dict(os.environ, TRITON_INTERPRET="1"):
                interpreter().submit(run, call).result()
        except BrokenProcessPool:
            interpreter.cache_clear()
            raise

    return run


def computed(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """The result and all gradients, by name."""
    needs = [x is not None for x in operands]
    with implementation(call.way) as kernels:
        out = kernels.forward(*operands, *call.constants)
        grads = kernels.backward(grad, *operands, *call.constants, needs)
    return dict(zip(["out", *call.given], [out, *grads], strict=True))


# -- what it should be --------------------------------------------------------------------------------------


RELU: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_squared": lambda x: torch.relu(x) ** 2,
}
"""Torch's, whose slope is 0 at 0 and 1 at NaN; those of the battery's clamp are 1 and 0."""


@contextmanager
def definition(**activations: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The formula of the battery, with these activations besides."""
    with patch.dict(battery.ACTIVATIONS, {**RELU, **activations}):
        yield


def exactly(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """The result and all gradients in float64, in which no product of float32 overflows or underflows."""
    with definition():
        found = results(formula, operands, grad, torch.float64, call.constants)
    return dict(zip(["out", *call.given], (x.detach() for x in found), strict=True))


def magnitudes(
    call: Call,
    operands: tuple[Tensor | None, ...],
    grad: Tensor,
    activation: Callable[[Tensor], Tensor],
    least: float = 0.0,
) -> dict[str, Tensor]:
    """The formula and its gradients on magnitudes, none of which is less than `least`, in float64."""

    def of(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.double().abs().clamp(min=least)

    constants = ("bound", *(max(least, abs(x)) for x in call.constants[1:]))
    with definition(bound=activation):
        found = results(formula, tuple(map(of, operands)), of(grad), torch.float64, constants)
    return dict(zip(["out", *call.given], (x.detach() for x in found), strict=True))


def limits(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """What neither a result nor a value on the way to it exceeds in magnitude, whatever the order of factors.

    Where no magnitude is less than 1, no factor makes anything smaller, and the product of some factors is at
    most that of all. For x >= 1 no activation exceeds 2 x^3, no slope 6 x^2, and nor does a part of either.
    """
    return magnitudes(call, operands, grad, lambda x: 2 * x**3, least=1.0)


def roundings(call: Call, operands: tuple[Tensor | None, ...], grad: Tensor) -> dict[str, Tensor]:
    """How far rounding may take a result from the exact one; each entry for itself.

    A sum of n products errs by less than n u times the sum of magnitudes, u the unit roundoff. So each result
    errs by less than C u times the formula on magnitudes, with the activations' `BOUNDS`, where C counts the
    operations in a row:

        gate                D products, the scale, the bias; of degree 4 at most in activations and slopes
        up, d_hidden        D products and the bias, O products
        activation, slope   8 each
        the rest            6 products: of both with up, d_hidden, r and the scales
        the result          a sum over E and F, over tokens and heads of a group, or over F

    A result is rounded to its dtype in the end; Triton rounds hidden, d_gate and d_up as well, and the sums
    over chunks of those: up to three in a row. Below the normal numbers a rounding is by half of the smallest
    number there is, times the other factors. There Triton's interpreter takes any bfloat16 for any other,
    also in an operand.
    """
    own = torch.finfo(getattr(torch, call.dtype))
    single = min(own.eps, SINGLE.eps) / 2
    rows, tokens = call.subnetworks * call.width, call.batch * call.length * call.group
    count = 4 * (call.head_dim + 2) + call.head_dim + 1 + call.out_dim + 16 + 6 + max(2 * rows, tokens)
    halves = 0 if call.way in BLOCKED else 3
    bound = magnitudes(call, operands, grad, BOUNDS.get(call.activation, BOUNDS["silu"]))
    below = limits(call, operands, grad)
    errors = {}
    for name in bound:
        last = torch.finfo(getattr(torch, call.r_dtype)) if name == "r" else own
        relative = count * single + halves * own.eps / 2 + last.eps / 2
        absolute = sum(n * x.smallest_normal * x.eps for n, x in ((count, SINGLE), (halves, own), (1, last)))
        if halves and call.dtype == "bfloat16":
            absolute += (len(call.everything) + halves + 1) * own.smallest_normal
        errors[name] = relative * bound[name] + absolute * below[name]
    return errors


BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: 1.2 * x + x**2,
    "gelu_tanh": lambda x: 1.2 * x + x**2 + x**4,  # 1 - tanh^2 cancels, and is multiplied by x^3 in the slope
    "sigmoid": lambda x: 1 + x + x**2,
}
"""Functions that increase, as do their slopes. Each bounds its activation, and how far that errs where x does
by as much as itself; its slope so bounds the slope. Silu's does for the others."""


def gates(call: Call, operands: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """All gates, and the sums of the magnitudes of their terms, in float64."""

    def of(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        gate = torch.einsum("bthd,hefd->bthef", q, k.repeat_interleave(call.group, 0)) * scale
        return gate if bias is None else gate + bias.repeat_interleave(call.group, 0)

    q, k, _, _, _, bias, _ = (None if x is None else x.double() for x in operands)
    assert q is not None and k is not None
    magnitude = of(q.abs(), k.abs(), None if bias is None else bias.abs(), abs(call.gate_scale))
    return of(q, k, bias, call.gate_scale), magnitude


def smooth(call: Call, operands: tuple[Tensor | None, ...]) -> bool:
    """Whether rounding cannot decide on which side of relu's kink a gate is.

    A sum of D products, times a scale, and a bias err by less than (D + 2) u times the sum of magnitudes, and
    below the normal numbers by half of the smallest number each. In half precision eager errs more; that is
    then allowed to us. A gate is 0 in any arithmetic where all its terms are.
    """
    if call.activation != "relu":
        return True
    gate, magnitude = gates(call, operands)
    smallest = SINGLE.smallest_normal * SINGLE.eps * max(1.0, abs(call.gate_scale))
    near = gate.abs() <= (call.head_dim + 2) * (SINGLE.eps * magnitude + smallest)
    return not (near & (magnitude > 0)).any()


# -- what holds ---------------------------------------------------------------------------------------------


@placed
def errs_at_most_twice_as_much_as_eager(call: Call) -> None:
    """The criterion of the battery, which is of means: of results of many entries that differ."""
    assume(smooth(call, call.operands()))
    layout = replace(call.grad.layout, expanded=())
    with implementation(call.way) as kernels, definition():
        battery.check(
            SimpleNamespace(
                forward=kernels.forward,
                backward=lambda grad, *args: kernels.backward(layout.of(grad), *args),
            ),
            call,
            getattr(torch, call.dtype),
            expanded_grad=bool(call.grad.layout.expanded),
        )


@placed
def errs_no_more_than_rounding_may(call: Call) -> None:
    """Each entry, of results of any size."""
    operands, grad = call.operands(), call.gradient()
    assume(smooth(call, operands))
    found, exact = computed(call, operands, grad), exactly(call, operands, grad)
    for name, bound in roundings(call, operands, grad).items():
        error = (found[name].double() - exact[name]).abs()
        assert (error <= bound).all(), f"{name}: {(error / bound).nan_to_num(0).max():.2f} of the bound"


@placed
def whole_numbers_are_computed_exactly(call: Call) -> None:
    """In arithmetic that is exact every order of summation, and any strides, give the same bits.

    So are whole numbers of at most 24 bits in float32, and in what is rounded to half precision those of 8 or
    11. The result is rounded once.
    """
    operands, grad = call.operands(), call.gradient()
    dtype = torch.finfo(getattr(torch, call.dtype))
    ones = max(1.0, abs(call.gate_scale)), max(1.0, abs(call.scale))
    gate, up = ones[0] * call.head_dim + 1, call.head_dim + 1.0
    activated, sloped = (gate**2, 2 * gate) if call.activation == "relu_squared" else (gate, 1.0)
    hidden = max(activated * up, sloped * up * call.out_dim * ones[0] * ones[1])
    assume(call.way in BLOCKED or hidden <= 1 / dtype.eps)
    rows, tokens = call.subnetworks * call.width, call.batch * call.length * call.group
    largest = activated * up * call.out_dim * ones[0] * ones[1] * max(rows, tokens)
    assume(largest <= 1 / min(dtype.eps, SINGLE.eps))
    found, exact = computed(call, operands, grad), exactly(call, operands, grad)
    for name, x in found.items():
        assert torch.equal(x, exact[name].to(x.dtype)), name


@placed
def what_is_not_finite_is_where_eager_s_is(call: Call) -> None:
    """Infinities and NaN of the operands reach what they reach in the formula."""
    operands, grad = call.operands(), call.gradient()
    found, exact = computed(call, operands, grad), exactly(call, operands, grad)
    for name, x in found.items():
        ours, eager_s = x.isfinite(), exact[name].isfinite()
        assert not (ours & ~eager_s).any(), f"{name} hides"
        assert not (eager_s & ~ours).any(), f"{name} spreads"


@placed
def what_overflows_is_what_must(call: Call) -> None:
    """A result is finite where it and all on the way to it are in range, and is not where it is out of range.

    The way is in float32, but for hidden, d_gate and d_up in Triton, which are of the operands' dtype.
    """
    operands, grad = call.operands(), call.gradient()
    assume(smooth(call, operands))
    dtype = torch.finfo(getattr(torch, call.dtype))
    largest = dtype.max if call.way not in BLOCKED else max(dtype.max, SINGLE.max)
    found, exact = computed(call, operands, grad), exactly(call, operands, grad)
    limit, error = limits(call, operands, grad), roundings(call, operands, grad)
    for name, x in found.items():
        most = torch.finfo(x.dtype).max
        in_range = (limit[name] < largest / 2) & (exact[name].abs() + error[name] < most)
        assert x[in_range].isfinite().all(), f"{name} overflows"
        out_of_range = (limit[name] < largest / 2) & (exact[name].abs() - error[name] > 2 * most)
        assert not x[out_of_range].isfinite().any(), f"{name} is finite"
        err = (x.double() - exact[name]).abs()
        assert (err <= error[name])[in_range].all(), f"{name} errs"


@placed
def a_gradient_alone_is_the_one_among_all(call: Call) -> None:
    """Bit for bit."""
    operands, grad = call.operands(), call.gradient()
    everything = computed(call, operands, grad)
    with implementation(call.way) as kernels:
        for name in call.given:
            needs = [n == name for n in NAMES]
            (alone,) = kernels.backward(grad, *operands, *call.constants, needs)
            assert torch.equal(alone, everything[name]), name


@placed
def strides_change_nothing(call: Call) -> None:
    """Bit for bit, of kernels that load tiles; the library's products on a CPU sum in another order."""
    operands, grad = call.operands(), call.gradient()
    dense = tuple(None if x is None else x.clone(memory_format=torch.contiguous_format) for x in operands)
    found = computed(call, operands, grad)
    for name, x in computed(call, dense, grad.clone(memory_format=torch.contiguous_format)).items():
        assert torch.equal(x, found[name]), name


@placed
def twice_is_the_same(call: Call) -> None:
    """Bit for bit."""
    first, second = (computed(call, call.operands(), call.gradient()) for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@placed
def operands_are_not_written_to(call: Call) -> None:
    """Nor is the memory between their entries, nor does autograd count a write; no result shares theirs."""
    tensors = [*(x for x in call.operands() if x is not None), call.gradient()]
    before = [(memory(x).clone(), x._version) for x in tensors]
    operands = iter(tensors)
    found = computed(call, tuple(next(operands) if n in call.given else None for n in NAMES), tensors[-1])
    for x, (bits, version) in zip(tensors, before, strict=True):
        assert torch.equal(memory(x), bits)
        assert x._version == version
    places = {x.untyped_storage().data_ptr() for x in tensors if x.numel()}
    for name, x in found.items():
        assert not x.numel() or x.untyped_storage().data_ptr() not in places, name
        assert x.is_contiguous() and not x.requires_grad


def memory(x: Tensor) -> Tensor:
    """All bytes of what a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())


@placed
def powers_of_two_factor_out(call: Call) -> None:
    """Bit for bit: of operands that are 2^n times others, every product and every sum is.

    The gate is left as it is, for which its scale makes up. Float16 has too few exponents for this.
    """
    power = {name: x.power for name, x in call.everything.items()}
    power["gate_bias"] = 0
    power["up_bias"] = power["q"] + power.get("u", 0)
    out = sum(power.get(name, 0) for name in ("v", "r", "u")) + (power["q"] if call.u is not None else 0)
    scaled = with_powers(call, power)
    scaled = replace(scaled, gate_scale=call.gate_scale * 2.0 ** -(power["q"] + power["k"]))
    plain = with_powers(call, {})
    before = computed(plain, plain.operands(), plain.gradient())
    after = computed(scaled, scaled.operands(), scaled.gradient())
    for name, x in before.items():
        n = out if name == "out" else out + power["grad"] - power[name]
        assert torch.equal(x * 2.0**n, after[name]), name


def with_powers(call: Call, powers: dict[str, int]) -> Call:
    return replace(call, **{n: replace(x, power=powers.get(n, 0)) for n, x in call.everything.items()})


@placed
def what_is_multiplied_by_zero_is_zero(call: Call) -> None:
    """The result of a zero factor, and gradients that have it as a factor, have no rounding error."""
    for zero in ("r", "v", "u", "grad", "q"):
        if zero not in call.everything or (zero == "q" and call.u is None):  # an activation of 0 is not 0
            continue
        where = replace(call, up_bias=None, **{zero: replace(call.everything[zero], kind="zero", power=0)})
        for name, x in computed(where, where.operands(), where.gradient()).items():
            factors = {"u": {"u", "up_bias"}, "q": {"q", "u", "up_bias"}}.get(zero, {zero})
            if name not in factors and (zero, name) != ("grad", "out"):
                assert not x.any(), f"{name} of {zero}"


def function(call: Call) -> Callable[..., Tensor]:
    """The operator, as a function of the operands that there are."""

    def f(*tensors: Tensor) -> Tensor:
        xs = dict(zip(call.given, tensors, strict=True))
        constants = dict(zip(("activation", "gate_scale", "scale"), call.constants, strict=True))
        return flash_mhf(xs.pop("q"), xs.pop("k"), xs.pop("u", None), xs.pop("v"), **xs, **constants)

    return f


def leaves(call: Call) -> tuple[Tensor, ...]:
    """The operands that there are, of one dtype, none with a gate that a step of 1e-6 takes over a kink."""
    operands = replace(call, r_dtype=call.dtype).operands()
    assume(not call.activation.startswith("relu") or (gates(call, operands)[0].abs() > 1e-4).all())
    return tuple(x.requires_grad_() for x in operands if x is not None)


def torch_accepts_the_operators(call: Call) -> None:
    """Schemas, fakes, autograd and compilers."""
    operands = tuple(None if x is None else x.requires_grad_() for x in call.operands())
    torch.library.opcheck(torch.ops.mhf.flash_mhf.default, (*operands, *call.constants))
    needs = [x is not None and call.seed >> i & 1 == 0 for i, x in enumerate(operands)]
    args = (call.gradient(), *operands, *call.constants, needs)
    torch.library.opcheck(torch.ops.mhf.flash_mhf_backward.default, args)


def first_derivatives_are_differences(call: Call) -> None:
    """With steps of 1e-6."""
    assert torch.autograd.gradcheck(function(call), leaves(call))


def second_derivatives_are_differences(call: Call) -> None:
    """With steps of 1e-6."""
    assert torch.autograd.gradgradcheck(function(call), leaves(call))


# -- all of them --------------------------------------------------------------------------------------------

FEW: Sizes = {"batch": (1, 2), "length": (1, 4), "group": (1, 2), "subnetworks": (1, 3)}
"""For the interpreter, in which each program takes milliseconds."""

SMALL: Sizes = {name: (1, 2) for name in (*FEW, "head_dim", "width", "out_dim")}
"""For derivatives by differences, one for each entry."""

MANY: Sizes = {"length": (8, 16), "head_dim": (8, 16), "width": (8, 16), "out_dim": (8, 16)}
"""Enough entries for a mean."""

HALF_AND_SINGLE = ("float32", "float16", "bfloat16")
WIDE_EXPONENTS = ("float32", "bfloat16", "float64")
NONZERO = (1.0, 0.7, -1.3, 2.0, -0.5)  # products that are multiplied by 0 the library leaves out, NaN or not

ENOUGH: dict[str, Any] = {
    "values": various, "dtypes": HALF_AND_SINGLE, "scales": NONZERO, "empty": False, "sizes": MANY,
}  # fmt: skip
SPECIAL: dict[str, Any] = {"values": special, "scales": NONZERO}
EXTREME: dict[str, Any] = {"values": extreme, "dtypes": HALF_AND_SINGLE}
WHOLE: dict[str, Any] = {
    "values": whole, "activations": ("identity", "relu", "relu_squared"), "scales": (1.0, -1.0, 2.0, 0.0),
}  # fmt: skip
DERIVATIVES: dict[str, Any] = {"values": dense, "dtypes": ("float64",), "wide": False, "sizes": SMALL}
TRITONS: dict[str, Any] = {"ways": TRITON, "wide": False, "sizes": FEW}


def in_triton(check: Callable[[Call], None]) -> Callable[[Call], None]:
    """A check, named for the implementation of its calls."""

    def run(call: Call) -> None:
        check(call)

    run.__name__ = f"triton_{check.__name__}"
    return run


PROPERTIES: tuple[Property, ...] = (
    Property(errs_at_most_twice_as_much_as_eager, calls(**ENOUGH), 20),
    Property(errs_no_more_than_rounding_may, calls(), 30),
    Property(whole_numbers_are_computed_exactly, calls(**WHOLE), 40),
    Property(what_is_not_finite_is_where_eager_s_is, calls(**SPECIAL), 30),
    Property(what_overflows_is_what_must, calls(**EXTREME), 30),
    Property(a_gradient_alone_is_the_one_among_all, calls(), 20),
    Property(twice_is_the_same, calls(), 20),
    Property(operands_are_not_written_to, calls(), 20),
    Property(powers_of_two_factor_out, calls(dtypes=WIDE_EXPONENTS), 20),
    Property(what_is_multiplied_by_zero_is_zero, calls(), 8),
    Property(torch_accepts_the_operators, calls(wide=False, sizes=FEW), 2),
    Property(first_derivatives_are_differences, calls(**DERIVATIVES), 20),
    Property(second_derivatives_are_differences, calls(**DERIVATIVES), 5),
    Property(
        in_triton(errs_at_most_twice_as_much_as_eager),
        calls(**{**ENOUGH, **TRITONS, "sizes": {**FEW, **MANY}}),
        5,
    ),
    Property(in_triton(errs_no_more_than_rounding_may), calls(**{**TRITONS, "wide": True}), 8),
    Property(in_triton(whole_numbers_are_computed_exactly), calls(**{**TRITONS, **WHOLE}), 12),
    Property(in_triton(what_is_not_finite_is_where_eager_s_is), calls(**{**TRITONS, **SPECIAL}), 8),
    Property(in_triton(what_overflows_is_what_must), calls(**{**TRITONS, **EXTREME}), 6),
    Property(in_triton(a_gradient_alone_is_the_one_among_all), calls(**TRITONS), 4),
    Property(in_triton(strides_change_nothing), calls(**TRITONS), 5),
    Property(in_triton(operands_are_not_written_to), calls(**TRITONS), 4),
    Property(in_triton(powers_of_two_factor_out), calls(**TRITONS, dtypes=WIDE_EXPONENTS), 4),
    Property(in_triton(what_is_multiplied_by_zero_is_zero), calls(**TRITONS), 2),
)
