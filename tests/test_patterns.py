"""The patterns: each formula is what its docstring says, entry by entry, and its layouts are true."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor

from mhf_compile.match import normal_pattern
from mhf_compile.notation import Func, Leaf
from mhf_compile.patterns import FLASH_MHF, PATTERNS
from mhf_compile.patterns.flash_mhf import formula
from mhf_compile.patterns.pattern import Pattern

SIZES = {"b": 2, "t": 3, "h": 2, "g": 1, "e": 2, "f": 3, "d": 2, "o": 3}
ACTIVATIONS = {"silu": lambda x: x / (1 + math.exp(-x))}


def operands(sizes: dict[str, int], given: set[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(
            [math.prod(sizes[a] for a in dim.split()) for dim in dims],
            generator=generator,
            dtype=torch.float64,
        )
        for name, dims in FLASH_MHF.operands.items()
        if name not in FLASH_MHF.optional or name in given
    }


def by_definition(
    tensors: dict[str, Tensor], sizes: dict[str, int], gate_scale: float, scale: float
) -> Tensor:
    """The formula of the paper as loops over every index, in Python numbers."""
    q, k, u, v = (tensors[name].tolist() for name in "qkuv")
    zero = torch.zeros(sizes["h"], sizes["e"], sizes["f"]).tolist()
    gate_bias, up_bias = (tensors[n].tolist() if n in tensors else zero for n in ("gate_bias", "up_bias"))
    r = tensors["r"].tolist() if "r" in tensors else None
    batch, length, heads, group = sizes["b"], sizes["t"], sizes["h"], sizes["g"]
    result = torch.zeros(batch, length, heads * group, sizes["o"], dtype=torch.float64)
    for b, t, h in itertools.product(range(batch), range(length), range(heads * group)):
        kv = h // group
        for e, f in itertools.product(range(sizes["e"]), range(sizes["f"])):
            dims = range(sizes["d"])
            gate = gate_scale * sum(q[b][t][h][d] * k[kv][e][f][d] for d in dims) + gate_bias[kv][e][f]
            up = sum(q[b][t][h][d] * u[kv][e][f][d] for d in dims) + up_bias[kv][e][f]
            weight = r[b][t][h][e] if r is not None else 1.0
            for o in range(sizes["o"]):
                result[b, t, h, o] += scale * weight * ACTIVATIONS["silu"](gate) * up * v[kv][e][f][o]
    return result


OPTIONAL = sorted(FLASH_MHF.optional)
GIVEN = [set(c) for n in range(len(OPTIONAL) + 1) for c in itertools.combinations(OPTIONAL, n)]


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("given", GIVEN, ids=lambda g: "+".join(sorted(g)) or "none")
def test_the_formula_is_its_definition(given: set[str], group: int) -> None:
    sizes = {**SIZES, "g": group}
    tensors = operands(sizes, given)
    found = formula(*(tensors.get(name) for name in FLASH_MHF.operands), "silu", 0.5, -3.0)
    expected = by_definition(tensors, sizes, 0.5, -3.0)
    # Sums of at most 2 + 2 * 6 products, and a few roundings in each: under 100 units in the last place.
    torch.testing.assert_close(found, expected, rtol=100 * torch.finfo(torch.float64).eps, atol=1e-13)


def test_the_defaults_are_no_scales_and_silu() -> None:
    q, k, u, v = operands(SIZES, set()).values()
    assert torch.equal(formula(q, k, u, v), formula(q, k, u, v, None, None, None, "silu", 1.0, 1.0))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_layouts_are_those_of_the_formula(pattern: Pattern) -> None:
    def shape(dims: tuple[str, ...]) -> list[int]:
        return [math.prod(pattern.sizes[axis] for axis in dim.split()) for dim in dims]

    tensors = [torch.zeros(shape(dims)) for dims in pattern.operands.values()]
    for activation in pattern.activations:
        result = pattern.formula(*tensors, activation, *pattern.scalars.values())
        assert list(result.shape) == shape(pattern.result)
    parameters = list(inspect.signature(pattern.formula).parameters)
    assert parameters == [*pattern.operands, "activation", *pattern.scalars]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_a_pattern_is_consistent(pattern: Pattern) -> None:
    axes = {a for dims in (*pattern.operands.values(), pattern.result) for dim in dims for a in dim.split()}
    assert axes == set(pattern.sizes)
    assert len(set(pattern.sizes.values())) == len(pattern.sizes)
    assert len(set(pattern.scalars.values())) == len(pattern.scalars)
    assert 1 not in (*pattern.sizes.values(), *pattern.scalars.values())
    assert pattern.optional | {pattern.product} | pattern.shared - {"result"} <= set(pattern.operands)
    assert pattern.product in pattern.optional
    assert pattern.required | set(pattern.tokens) <= axes
    weights = set(pattern.operands) - {"q", "r"}
    for token in pattern.tokens:
        assert not any(token in " ".join(pattern.operands[name]).split() for name in weights)
        assert token in " ".join(pattern.result).split()


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_the_schema_of_the_op_is_the_pattern_s(pattern: Pattern) -> None:
    import mhf_compile.kernels.ops  # noqa: F401

    namespace, name = pattern.op.split("::")
    schema = getattr(getattr(torch.ops, namespace), name).default._schema
    names = [argument.name for argument in schema.arguments]
    assert names == [*pattern.operands, "activation", *pattern.scalars]
    optional = {a.name for a in schema.arguments if isinstance(a.type, torch.OptionalType)}
    assert optional == set(pattern.optional)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_a_formula_reads_as_one_term_of_all_operands(pattern: Pattern) -> None:
    names, index, term = normal_pattern(pattern)
    assert sorted(names.values()) == sorted(pattern.operands)
    assert len(index) == len(pattern.result)
    functions = {factor.name for factor in term.factors if isinstance(factor, Func)}
    assert functions == {"identity", *pattern.activations}
    assert {names[leaf.value] for leaf in term.factors if isinstance(leaf, Leaf)} == {"v", "r"}
    assert term.coefficient == pattern.scalars["scale"]
