"""What holds of every call of the operator, in either implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mhf_compile.kernels.ops import flash_mhf
from tests.fuzz.property import Property, assume
from tests.kernels import battery
from tests.kernels.battery import NAMES
from tests.kernels.bounds import SINGLE, definition, exactly, gates, limits, roundings, smooth
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
from tests.kernels.implementations import computed, implementation, placed

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
    Property(errs_at_most_twice_as_much_as_eager, calls(**ENOUGH), 12),
    Property(errs_no_more_than_rounding_may, calls(), 18),
    Property(whole_numbers_are_computed_exactly, calls(**WHOLE), 24),
    Property(what_is_not_finite_is_where_eager_s_is, calls(**SPECIAL), 18),
    Property(what_overflows_is_what_must, calls(**EXTREME), 18),
    Property(a_gradient_alone_is_the_one_among_all, calls(), 12),
    Property(twice_is_the_same, calls(), 12),
    Property(operands_are_not_written_to, calls(), 12),
    Property(powers_of_two_factor_out, calls(dtypes=WIDE_EXPONENTS), 12),
    Property(what_is_multiplied_by_zero_is_zero, calls(), 5),
    Property(torch_accepts_the_operators, calls(wide=False, sizes=FEW), 2),
    Property(first_derivatives_are_differences, calls(**DERIVATIVES), 12),
    Property(second_derivatives_are_differences, calls(**DERIVATIVES), 3),
    Property(
        in_triton(errs_at_most_twice_as_much_as_eager),
        calls(**{**ENOUGH, **TRITONS, "sizes": {**FEW, **MANY}}),
        5,
    ),
    Property(in_triton(errs_no_more_than_rounding_may), calls(**{**TRITONS, "wide": True}), 5),
    Property(in_triton(whole_numbers_are_computed_exactly), calls(**{**TRITONS, **WHOLE}), 7),
    Property(in_triton(what_is_not_finite_is_where_eager_s_is), calls(**{**TRITONS, **SPECIAL}), 5),
    Property(in_triton(what_overflows_is_what_must), calls(**{**TRITONS, **EXTREME}), 4),
    Property(in_triton(a_gradient_alone_is_the_one_among_all), calls(**TRITONS), 2),
    Property(in_triton(strides_change_nothing), calls(**TRITONS), 3),
    Property(in_triton(operands_are_not_written_to), calls(**TRITONS), 2),
    Property(in_triton(powers_of_two_factor_out), calls(**TRITONS, dtypes=WIDE_EXPONENTS), 2),
    Property(in_triton(what_is_multiplied_by_zero_is_zero), calls(**TRITONS), 2),
)
