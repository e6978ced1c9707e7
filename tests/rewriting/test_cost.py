"""What the model of costs says: of the GPU that was measured what its clock did, of programs what they do."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear, silu

import benchmarks
import mhf_compile
from benchmarks.gpu.protocol import FULL
from mhf_compile.kernels.flash_mhf.config import Sizes
from mhf_compile.rewriting import cost, refusals
from mhf_compile.rewriting.cost import CPU, GPU, GPU_FLOAT32, Machine, Work, of_call

H200 = Path(benchmarks.__file__).parent / "results/h200"
CONFIGS = {**FULL.sizes, "dense": FULL.dense}


def sizes_of(name, tokens):
    model = CONFIGS[name]
    heads, dim = model.ffn_heads, model.head_dim
    return Sizes(
        tokens, heads, heads, model.subnetworks, model.subnetwork_width, dim, dim, True, torch.bfloat16
    )


def of_formula(sizes, training):
    """What a program does that is written as the formula, in three products."""
    tokens, size = sizes.tokens * sizes.heads, sizes.dtype.itemsize
    wide, rows = (n * sizes.subnetworks * sizes.width for n in (tokens, sizes.kv_heads))
    scores = Work(
        wide * sizes.head_dim, size * (tokens * sizes.head_dim + rows * sizes.head_dim + 2 * wide), 1
    )
    values = Work(wide * sizes.out_dim, size * (2 * wide + rows * sizes.out_dim + tokens * sizes.out_dim), 1)
    return (scores * (1 + sizes.gated) + values) * (3 if training else 1)


def measured():
    for file, levels in (("run", ("op",)), ("dense", ("op", "dense"))):
        for one in json.loads((H200 / f"{file}.json").read_text())["speeds"]:
            if one["level"] in levels and one["part"] in ("forward", "step") and one["tokens"] >= 4096:
                times = {name: found["seconds"]["median"] for name, found in one["race"]["timings"].items()}
                peer = times.get("Inductor") or times["SwiGLU Inductor"]
                yield one["size"], one["tokens"], one["part"], times["flashmhf"], peer


WITHIN = 2.0
"""A model of so few numbers is taken to be right to a factor."""


@pytest.mark.parametrize(("size", "tokens", "part", "fused", "program"), list(measured()))
def test_it_says_what_the_clock_did(size, tokens, part, fused, program):
    sizes, training = sizes_of(size, tokens), part == "step"
    modelled = (
        of_call(sizes, False, training, GPU.tile).seconds(GPU),
        of_formula(sizes, training).seconds(GPU),
    )
    for model, clock in zip(modelled, (fused, program), strict=True):
        assert 1 / WITHIN <= model / clock <= WITHIN
    if size == "dense":  # which is left to Inductor
        assert modelled[0] > refusals.GAIN * modelled[1] and fused > program
    else:
        assert modelled[0] < modelled[1]


SIZES = st.builds(
    Sizes,
    tokens=st.integers(1, 10**5),
    heads=st.just(4),
    kv_heads=st.sampled_from([1, 2, 4]),
    subnetworks=st.integers(1, 30),
    width=st.integers(1, 2000),
    head_dim=st.integers(1, 600),
    out_dim=st.integers(1, 600),
    gated=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)


@given(SIZES, st.sampled_from([CPU, GPU, GPU_FLOAT32]), st.booleans())
def test_more_of_anything_costs_no_less(sizes, machine, training):
    def seconds(sizes, training=training):
        return of_call(sizes, machine is CPU, training, machine.tile).seconds(machine)

    least = seconds(sizes)
    for name in ("tokens", "subnetworks", "width", "head_dim", "out_dim"):
        assert seconds(sizes._replace(**{name: 2 * getattr(sizes, name)})) >= least
    assert seconds(sizes, True) > seconds(sizes, False) > 0
    assert seconds(sizes._replace(heads=8)) > least


def test_a_machine_says_what_work_takes():
    work = Work(10, 20, 3) + Work(2, 0, 1) * 2
    assert work == Work(14, 20, 5)
    assert work.seconds(Machine(multiply=1, byte=0.5, call=10, tile=1)) == 14 + 10 + 50


@pytest.fixture
def estimated(monkeypatch):
    """The work that was modelled, of each region: of the call, with its operands, and of the program."""
    found = []
    real = cost.estimates

    def watched(region):
        match, dtype = region.match, region.dtype
        sizes = cost.sizes_of(match, dtype)
        found.append((sizes, cost.of_operands(match, dtype), cost.of_program(region, match.hints)))
        return real(region)

    monkeypatch.setattr(refusals, "estimates", watched)
    return found


def tensors(*shapes, grad=False):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


@pytest.mark.parametrize("grad", [False, True])
def test_the_products_of_a_program_are_counted(estimated, grad):
    def program(x, k, u, v):
        return linear(silu(linear(x, k)) * linear(x, u), v)

    shapes = (10, 6), (7, 6), (7, 6), (5, 7)
    report = mhf_compile.explain(program, *tensors(*shapes, grad=grad), options={"flashmhf.dense": "never"})
    assert "flashmhf.dense is 'never'" in str(report)
    ((sizes, operands, work),) = estimated
    assert sizes == Sizes(10, 1, 1, 1, 7, 6, 5, True, torch.float32) and operands == Work()
    gate, values = 10 * 6 + 7 * 6 + 2 * 10 * 7, 2 * 10 * 7 + 7 * 5 + 2 * 10 * 5
    forward = Work(10 * 7 * (6 + 6 + 5), 4 * (2 * gate + values), 3)
    assert work == forward * (3 if grad else 1)


def test_of_two_projections_in_one_product_it_is_one_call(estimated):
    def program(x, w, v):
        gate, up = linear(x, w).chunk(2, -1)
        return linear(silu(gate) * up, v)

    mhf_compile.explain(program, *tensors((10, 6), (14, 6), (5, 7)))
    ((_, _, work),) = estimated
    assert (work.products, work.calls) == (10 * 7 * 17, 2)


def test_products_that_are_spelled_as_sums_are_counted(estimated):
    def program(x, k, u, v):
        gate, up = ((x[:, None] * w).sum(-1) for w in (k, u))
        return ((silu(gate) * up)[..., None] * v).sum(1)

    mhf_compile.explain(program, *tensors((10, 6), (7, 6), (7, 6), (7, 5)))
    ((_, _, work),) = estimated
    assert (work.products, work.calls) == (10 * 7 * 17, 3)


def test_an_operand_that_is_a_product_is_made_first(estimated):
    def program(q, k, u, v, r, s):
        gate, up = (torch.einsum("bthd,hefd->bthef", q, w) for w in (k, u))
        hidden = silu(gate) * up * r[..., None] * s[..., None]
        return torch.einsum("bthef,hefo->btho", hidden, v)

    weights = [(3, 2, 7, 6)] * 3
    mhf_compile.explain(program, *tensors((2, 5, 3, 6), *weights, (2, 5, 3, 2), (2, 5, 3, 2)))
    ((_, operands, _),) = estimated
    assert operands == Work(0, 2 * 4 * 2 * 5 * 3 * 2, 1)


def experts(x, k, u, v):
    """An expert for each token."""
    hidden = silu(torch.einsum("ned,efd->nef", x, k)) * torch.einsum("ned,efd->nef", x, u)
    return torch.einsum("nef,efo->neo", hidden, v)


@pytest.mark.parametrize(
    ("tokens", "count", "dim", "is_dearer"), [(1, 256, 16, True), (1, 8, 16, False), (1024, 8, 64, False)]
)
def test_what_would_cost_much_more_is_refused_with_both_numbers(tokens, count, dim, is_dearer):
    """On a CPU each head takes some calls, which nobody would notice of 8 heads."""
    report = mhf_compile.explain(experts, *tensors((tokens, count, dim), *[(count, 4 * dim, dim)] * 3))
    assert len(report.rewrites) == 1 - is_dearer
    for miss in report.misses:
        assert "a fused call would take about 25 ms where the program takes 0." in miss.reason
        assert miss.advice


@pytest.mark.parametrize(("tokens", "training", "found"), [(512, True, 0), (512, False, 1), (2048, True, 1)])
def test_what_stays_in_a_cache_may_cost_less_more(tokens, training, found):
    """Eight heads, whose hidden values are 8 MiB and 32 MiB: only the latter go through memory in eager."""
    shapes = (tokens, 8, 128), *[(8, 512, 128)] * 3
    given = [torch.zeros(shape).requires_grad_(training) for shape in shapes]
    report = mhf_compile.explain(experts, *given)
    assert len(report.rewrites) == found
    assert len(report.misses) == 1 - found


def test_parts_of_what_costs_more_are_not_rewritten_one_by_one():
    """Each would lose a time that nobody notices, and all of them what is noticed."""

    def program(x, r, ks, us, vs):
        total = torch.zeros_like(x)
        for e, (k, u, v) in enumerate(zip(ks, us, vs, strict=True)):
            total = total + r[:, e, None] * ((silu(x @ k) * (x @ u)) @ v)
        return total

    shapes = (256, 256), (256, 8), *[(8, 256, 512)] * 2, (8, 512, 256)
    x, r, k, u, v = (torch.zeros(shape).requires_grad_() for shape in shapes)
    report = mhf_compile.explain(program, x, r, k.unbind(), u.unbind(), v.unbind())
    assert not report.rewrites
    (miss,) = report.misses
    assert "a fused call would take about" in miss.reason


@pytest.mark.parametrize("dim", [16, 64, 256])
@pytest.mark.parametrize("training", [False, True])
def test_dense_feed_forwards_are_left_to_inductor_on_a_cpu(dim, training):
    """Measured on two cores, 4096 tokens, inference: fused took 2.1, 1.2 and 1.1 times as long."""
    sizes = Sizes(4096, 1, 1, 1, 4 * dim, dim, dim, True, torch.float32)
    fused, program = of_call(sizes, True, training).seconds(CPU), of_formula(sizes, training).seconds(CPU)
    assert fused > refusals.GAIN * program


@pytest.mark.parametrize(("dense", "found"), [("auto", 0), ("never", 0), ("always", 1)])
def test_a_dense_feed_forward_is_a_matter_of_cost(dense, found):
    def program(x, k, u, v):
        return linear(silu(linear(x, k)) * linear(x, u), v)

    shapes = (512, 128), (256, 128), (256, 128), (128, 256)
    report = mhf_compile.explain(program, *tensors(*shapes, grad=True), options={"flashmhf.dense": dense})
    assert len(report.rewrites) == found
    if dense == "auto":
        assert "which takes about" in str(report) and "a fused call" in str(report)
