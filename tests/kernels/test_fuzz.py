"""Calls that are drawn: each property of the operator is a test, and so is what the strategies promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz.property import SUITE, Property
from tests.kernels.battery import ACTIVATIONS, NAMES
from tests.kernels.drawn import (
    BLOCKED,
    DTYPES,
    LARGE,
    MORE,
    SCALES,
    TINY,
    TRITON,
    WAYS,
    Call,
    Layout,
    Operand,
    calls,
    extreme,
    layouts,
    ordinary,
    special,
)
from tests.kernels.drawn import (
    SPECIAL as SPECIAL_VALUES,
)
from tests.kernels.properties import PROPERTIES


@pytest.mark.parametrize("rule", PROPERTIES, ids=lambda rule: rule.name)
def test_holds(rule: Property) -> None:
    rule.hold()


def test_no_two_properties_have_a_name() -> None:
    assert len({rule.name for rule in PROPERTIES}) == len(PROPERTIES)


# -- calls --------------------------------------------------------------------------------------------------


def named(name: str, axes: int, dtype: str) -> st.SearchStrategy[Operand]:
    """One operand that says what it was drawn for: to draw many takes the most of the time of a call."""
    return st.just(Operand(kind=f"{name}, {axes} axes, {dtype}"))


def test_each_choice_is_drawn() -> None:
    seen: dict[str, set[object]] = {}

    @settings(SUITE, max_examples=1600, phases=[Phase.generate])
    @given(calls(ways=WAYS, values=named))
    def draw(call: Call) -> None:
        for name, x in vars(call).items():
            if not isinstance(x, Operand):
                seen.setdefault(name, set()).add(x)
        seen.setdefault("there", set()).update(call.everything)
        for name, operand in call.everything.items():
            assert operand.kind == f"{name}, {len(call.shapes[name])} axes, {call.dtype}"

    draw()
    assert seen["way"] == set(WAYS)
    assert seen["dtype"] == set(DTYPES)
    assert seen["r_dtype"] == set(DTYPES)
    assert seen["activation"] == set(ACTIVATIONS)
    assert seen["gate_scale"] == seen["scale"] == set(SCALES)
    assert seen["there"] == {*NAMES, "grad"}
    for size in ("head_dim", "width", "out_dim"):
        assert seen[size] >= set(range(1, 10))
        assert seen[size] & set(MORE)
    for size in ("batch", "length"):
        assert 0 in seen[size]
    assert max(seen["length"]) > 64


@pytest.mark.parametrize("axes", [3, 4])
def test_each_choice_of_an_operand_is_drawn(axes: int) -> None:
    seen: dict[str, set[object]] = {}

    @settings(SUITE, max_examples=200, phases=[Phase.generate])
    @given(ordinary("q", axes, "float32"))
    def draw(operand: Operand) -> None:
        for field in ("kind", "power"):
            seen.setdefault(field, set()).add(getattr(operand, field))
        for field, x in vars(operand.layout).items():
            seen.setdefault(field, set()).add(x != ())

    draw()
    assert seen["kind"] == {"normal", "sparse", "zero"}
    assert seen["power"] == {-2, -1, 0, 1}
    for field in ("order", "steps", "gaps", "expanded"):
        assert seen[field] == {True, False}


def smallest(predicate: Callable[[Call], bool], **choices: object) -> Call:
    """The simplest call of which something holds."""
    return find(calls(**choices), predicate, settings=settings(SUITE, max_examples=500))


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        (lambda call: True, Call(activation="silu")),
        (lambda call: call.heads > 1, Call(activation="silu", group=2)),
        (lambda call: call.batch * call.length == 0, Call(activation="silu", batch=0)),
        (
            lambda call: call.u is not None and call.u.layout.expanded,
            Call(activation="silu", u=Operand(layout=Layout(expanded=(0,)))),
        ),
        (
            lambda call: call.way in TRITON and call.width > 9,
            Call(activation="silu", way=TRITON[0], width=MORE[0]),
        ),
    ],
    ids=["any", "heads", "empty", "layout", "wide"],
)
def test_what_is_found_is_small(predicate: Callable[[Call], bool], expected: Call) -> None:
    assert smallest(predicate, ways=WAYS) == expected


@pytest.mark.parametrize("value", SPECIAL_VALUES)
def test_what_is_not_finite_is_drawn(value: str) -> None:
    call = smallest(lambda call: any(x == value for _, x in call.k.special), values=special)
    assert call == Call(activation="silu", k=Operand(special=((0, value),)))
    assert str(call.operands()[1].item()) == value  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", LARGE)
def test_extremes_are_of_the_dtype(dtype: str) -> None:
    """Large numbers are finite, and no products of them; tiny ones are subnormal."""
    info = torch.finfo(getattr(torch, dtype))
    powers: set[int] = set()

    @settings(SUITE, max_examples=200, phases=[Phase.generate])
    @given(extreme("q", 4, dtype))
    def check(operand: Operand) -> None:
        powers.add(operand.power)
        x = operand.tensor((1, 50, 1, 2), 1.0, getattr(torch, dtype), seed=0)
        assert x.isfinite().all()
        if operand.power == LARGE[dtype]:
            assert (x.double() ** 2).max() > info.max
        if operand.power == TINY[dtype]:
            assert x.any()
            assert (x.abs() < info.smallest_normal).all()

    check()
    assert powers >= {0, LARGE[dtype], TINY[dtype]}


@settings(SUITE, max_examples=40)
@given(calls(ways=WAYS, values=special))
def test_a_call_is_its_source(call: Call) -> None:
    names: dict[str, object] = {}
    exec(call.source, names)
    assert names["EXAMPLE"] == call
    assert len({call, names["EXAMPLE"]}) == 1


@settings(SUITE, max_examples=40)
@given(calls(ways=WAYS))
def test_operands_are_what_a_call_says(call: Call) -> None:
    assert call.way in (BLOCKED if call.dtype == "float64" else WAYS)
    assert call.heads % call.kv_heads == 0
    assert call.up_bias is None or call.u is not None
    for name, x in zip(call.shapes, (*call.operands(), call.gradient()), strict=True):
        if x is None:
            assert name not in call.everything
            continue
        assert x.shape == call.shapes[name]
        assert x.dtype == getattr(torch, call.r_dtype if name == "r" else call.dtype)
        operand = call.everything[name]
        again = call.tensor(name, x.dtype)
        assert torch.equal(x, again)
        assert operand.kind != "zero" or not x.any()
        for axis in operand.layout.expanded:
            assert x.shape[axis] <= 1 or x.stride(axis) == 0


@settings(SUITE, max_examples=40)
@given(layouts(4))
def test_a_layout_is_what_it_says(layout: Layout) -> None:
    plain = torch.arange(1.0, 121.0).view(2, 3, 4, 5)
    x = layout.of(plain)
    want = plain
    for axis in layout.expanded:
        want = want.narrow(axis, 0, 1).expand_as(want)
    assert torch.equal(x, want)
    order = [a for a in layout.order or range(4) if a not in layout.expanded]
    strides = [x.stride(a) for a in order]
    assert strides == sorted(strides, reverse=True)
    if layout == Layout():
        assert x.is_contiguous()
    assert not entries(x).isnan().all()
    assert entries(x)[~entries(x).isnan()].unique().tolist() == want.unique().tolist()


def entries(x: Tensor) -> Tensor:
    """All that there is in memory."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
