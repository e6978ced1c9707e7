"""The patterns: each formula is what its docstring says, entry by entry, and its layouts are true."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

import mhf_compile
from mhf_compile.kernels.activations import ACTIVATIONS, hidden_of
from mhf_compile.matching.search import normal_pattern
from mhf_compile.notation import Func, Leaf
from mhf_compile.patterns import FLASH_MHF, PATTERNS, UNGATED_MHF
from mhf_compile.patterns.pattern import Pattern, Purpose, split

SIZES = {"b": 2, "t": 3, "h": 2, "g": 1, "e": 2, "f": 3, "d": 2, "o": 3}
DEFINITIONS: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "identity": lambda x: x,
}


def operands(pattern: Pattern, sizes: dict[str, int], given: set[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(
            [math.prod(sizes[a] for a in dim.split()) for dim in slot.dims],
            generator=generator,
            dtype=torch.float64,
        )
        for name, slot in pattern.operands.items()
        if name not in pattern.optional or name in given
    }


def by_definition(
    tensors: dict[str, Tensor], sizes: dict[str, int], activation: str, gate_scale: float, scale: float
) -> Tensor:
    """The formula of the paper as loops over every index, in Python numbers; without u the up score is 1."""
    q, k, v = (tensors[name].tolist() for name in "qkv")
    u = tensors["u"].tolist() if "u" in tensors else None
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
            up = 1.0
            if u is not None:
                up = sum(q[b][t][h][d] * u[kv][e][f][d] for d in dims) + up_bias[kv][e][f]
            weight = r[b][t][h][e] if r is not None else 1.0
            for o in range(sizes["o"]):
                result[b, t, h, o] += scale * weight * DEFINITIONS[activation](gate) * up * v[kv][e][f][o]
    return result


def subsets(names: Iterable[str]) -> list[set[str]]:
    ordered = sorted(names)
    return [set(c) for n in range(len(ordered) + 1) for c in itertools.combinations(ordered, n)]


CASES = [
    (pattern, activation, given, group)
    for pattern in PATTERNS
    for group in (1, 3)
    for given, activation in [
        *((given, "silu") for given in subsets(pattern.optional)),
        *((set(pattern.optional), activation) for activation in sorted(pattern.activations - {"silu"})),
    ]
]


@pytest.mark.parametrize(
    ("pattern", "activation", "given", "group"),
    CASES,
    ids=[f"{p.name}-{a}-{'+'.join(sorted(given)) or 'none'}-{g}" for p, a, given, g in CASES],
)
def test_a_formula_is_its_definition(pattern: Pattern, activation: str, given: set[str], group: int) -> None:
    sizes = {**SIZES, "g": group}
    tensors = operands(pattern, sizes, given)
    hidden = hidden_of(activation, pattern.is_gated)
    found = pattern.formula(*(tensors.get(name) for name in pattern.operands), hidden, 0.5, -3.0)
    expected = by_definition(tensors, sizes, activation, 0.5, -3.0)
    # Sums of at most 2 + 2 * 6 products, and a few roundings in each: under 100 units in the last place.
    torch.testing.assert_close(found, expected, rtol=100 * torch.finfo(torch.float64).eps, atol=1e-13)


def test_the_defaults_are_no_scales_and_the_usual_activation() -> None:
    for pattern, hidden in ((FLASH_MHF, hidden_of("silu", True)), (UNGATED_MHF, hidden_of("relu", False))):
        required = operands(pattern, SIZES, set()).values()
        absent = [None] * len(pattern.optional)
        wanted = pattern.formula(*required, *absent, hidden, 1.0, 1.0)
        assert torch.equal(pattern.formula(*required), wanted)


def test_the_activations_are_the_op_s() -> None:
    assert FLASH_MHF.activations == ACTIVATIONS.keys() == DEFINITIONS.keys()
    assert UNGATED_MHF.activations == FLASH_MHF.activations - {"identity"}  # that is no feed-forward


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_layouts_are_those_of_the_formula(pattern: Pattern) -> None:
    tensors = [torch.zeros(pattern.shape(slot.dims)) for slot in pattern.operands.values()]
    for activation in pattern.activations:
        hidden = hidden_of(activation, pattern.is_gated)
        result = pattern.formula(*tensors, hidden, *pattern.scalars.values())
        assert result.shape == pattern.shape(pattern.result)
    parameters = list(inspect.signature(pattern.formula).parameters)
    assert parameters == ["hidden" if name == "activation" else name for name in _arguments(pattern)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_a_pattern_is_consistent(pattern: Pattern) -> None:
    sizes = [role.size for role in pattern.roles.values()]
    assert len(set(sizes)) == len(sizes)
    assert len(set(pattern.scalars.values())) == len(pattern.scalars)
    assert 1 not in (*sizes, *pattern.scalars.values())
    used = {role for slot in pattern.operands.values() for role in slot.roles} | {*split(pattern.result)}
    assert used == set(pattern.roles)
    assert {
        *pattern.hidden,
        *pattern.dense,
        *(role for roles in pattern.fields.values() for role in roles),
    } <= used
    assert pattern.of(Purpose.INPUT) and pattern.of(Purpose.WEIGHT)
    assert {*pattern.of(Purpose.FACTOR), *pattern.of(Purpose.BIAS)} == pattern.optional
    for name, slot in pattern.operands.items():
        if slot.purpose in (Purpose.WEIGHT, Purpose.BIAS):
            assert not set(pattern.tokens) & set(slot.roles), name
    assert {*pattern.tokens} <= {*pattern.broadcast} <= {*split(pattern.result)}
    assert pattern.product == "r" and pattern.broadcast == ("b", "t", "h", "g")


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_roles_are_what_the_formula_does_with_them(pattern: Pattern) -> None:
    """The hidden value has the axes that are said; those contracted in the scores are summed in it."""
    names, _, term = normal_pattern(pattern)
    letters = {role.size: letter for letter, role in pattern.roles.items()}
    (gate,) = (f for f in term.factors if isinstance(f, Func) and f.name)
    assert {letters[axis.size] for axis in gate.axes} == set(pattern.hidden)
    (score,) = (t for t in gate.terms if t.bound)
    contracted = {letter for letter, role in pattern.roles.items() if role.is_contracted}
    assert {letters[axis.size] for axis in score.bound} == contracted
    assert {names[leaf.value] for leaf in score.factors if isinstance(leaf, Leaf)} == {"q", "k"}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_the_fields_of_a_report_are_sizes(pattern: Pattern) -> None:
    sizes = {"tokens", "heads", "kv_heads", "subnetworks", "head_dim", "width", "out_dim"}
    assert set(pattern.fields) == sizes <= {field.name for field in dataclasses.fields(mhf_compile.Rewrite)}


def test_operands_are_called_by_their_words() -> None:
    assert FLASH_MHF.words(["result", "v", "k"]) == "the gate's weight and the values and the result"
    assert FLASH_MHF.words([]) == ""
    assert FLASH_MHF.counted(FLASH_MHF.broadcast) == ["token", "head"]


def _arguments(pattern: Pattern) -> list[str]:
    return [*pattern.operands, "activation", *pattern.scalars]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_the_schema_of_the_op_is_the_pattern_s(pattern: Pattern) -> None:
    import mhf_compile.kernels.ops  # noqa: F401

    namespace, name = pattern.op.split("::")
    schema = getattr(getattr(torch.ops, namespace), name).default._schema
    names = [argument.name for argument in schema.arguments]
    own = _arguments(pattern)
    assert [name for name in names if name in own] == own
    optional = {a.name for a in schema.arguments if isinstance(a.type, torch.OptionalType)}
    others = [other for other in PATTERNS if other.op == pattern.op]
    lacking = {name for o in others for name in own if name in o.optional or name not in _arguments(o)}
    assert {*pattern.optional, *set(names) - set(own)} <= optional  # what the pattern lacks is None
    assert optional & set(own) == lacking


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
def test_a_formula_reads_as_one_term_of_all_operands(pattern: Pattern) -> None:
    names, index, term = normal_pattern(pattern)
    assert sorted(names.values()) == sorted(pattern.operands)
    assert len(index) == len(pattern.result)
    functions = [factor.name for factor in term.factors if isinstance(factor, Func)]
    assert sorted(functions) == ([""] if "u" in pattern.operands else []) + ["relu"]  # any will do
    assert {names[leaf.value] for leaf in term.factors if isinstance(leaf, Leaf)} == {"v", "r"}
    assert term.coefficient == pattern.scalars["scale"]
