"""The ATen implementation: values, gradients and memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mhf_compile.kernels import activations
from mhf_compile.kernels.flash_mhf import blocked

from .battery import (
    ACTIVATIONS,
    CASES,
    EMPTY,
    SLOPES,
    Case,
    check,
    check_each_gradient_alone,
    check_slope,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_errs_at_most_twice_as_much_as_eager(case, dtype):
    check(blocked, case, dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_small_blocks_change_nothing(case, monkeypatch):
    """Blocks that end inside batches, and inside sub-networks."""
    monkeypatch.setattr(blocked, "TOKENS", 7)
    monkeypatch.setattr(blocked, "block_limit", lambda: 7 * 6)
    check(blocked, case, torch.float32)
    check(blocked, case, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_a_sum_has_stride_zero(dtype):
    check(blocked, CASES["plain"], dtype, expanded_grad=True)


@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY)
def test_without_tokens_weight_gradients_are_zero(case):
    operands = case.operands(torch.float32)
    out = blocked.forward(*operands, *case.constants)
    assert out.shape == (case.batch, case.length, case.heads, case.out_dim)
    needs = [x is not None for x in operands]
    dq, *weights = blocked.backward(out, *operands, *case.constants, needs)
    assert dq.numel() == 0
    assert not any(g.any() for g in weights)


@pytest.mark.parametrize("case", ["biases", "ungated gelu"])
def test_a_gradient_alone_is_the_one_among_all(case):
    check_each_gradient_alone(blocked, CASES[case])


@pytest.mark.parametrize("activation", SLOPES)
def test_slopes_of_large_gates_have_their_digits(activation):
    check_slope(lambda x: activations.ACTIVATIONS[activation].backward(torch.ones_like(x), x), activation)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.builds(
        Case,
        batch=st.integers(1, 3),
        length=st.integers(1, 12),
        heads=st.sampled_from([2, 4, 6]),
        kv_heads=st.sampled_from([1, 2]),
        head_dim=st.integers(1, 9),
        subnetworks=st.integers(1, 4),
        width=st.integers(1, 9),
        out_dim=st.integers(1, 9),
        activation=st.sampled_from(list(ACTIVATIONS)),
        gated=st.booleans(),
        router=st.booleans(),
        biases=st.booleans(),
        layout=st.sampled_from(["contiguous", "reversed axes", "every other", "expanded"]),
    )
)
def test_any_sizes_and_strides_agree_with_the_formula(case):
    check(blocked, case, torch.float32)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("gated", "forward", "backward"), [(True, 3, 8), (False, 2, 5)])
def test_each_product_is_needed(gated, forward, backward):
    case = Case(heads=1, kv_heads=1, gated=gated)
    operands = case.operands(torch.float32)
    with Products() as products:
        out = blocked.forward(*operands, *case.constants)
    assert products.count == forward
    with Products() as products:
        blocked.backward(out, *operands, *case.constants, [True] * 7)
    assert products.count == backward


class LargestAllocation(TorchDispatchMode):
    """Records the largest storage that an operator returned and that was not among its arguments'."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {
            x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in old:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_allocation_is_larger_than_a_block_or_a_gradient(dtype, monkeypatch):
    monkeypatch.setattr(blocked, "block_limit", lambda: 2**18)
    case = Case(batch=1, length=1500, heads=2, head_dim=8, out_dim=8, subnetworks=4, width=400)
    operands = case.operands(dtype)
    with LargestAllocation() as largest:
        out = blocked.forward(*operands, *case.constants)
        blocked.backward(out, *operands, *case.constants, [True] * 5 + [False] * 2)
    wide = 1500 * 2 * 4 * 400 * 4
    assert largest.bytes <= 4 * blocked.block_limit() < wide / 8


def test_block_sizes_keep_the_bound_and_cover_small_problems_whole():
    for tokens in (0, 1, 17, 1000, 10**6):
        for subnetworks in (1, 11, 100):
            for width in (1, 256, 14336, 10**6):
                n, e, f = blocked.block_sizes(tokens, subnetworks, width)
                assert 1 <= n * e * f <= blocked.block_limit()
                assert e == 1 or f == width
    assert blocked.block_sizes(5, 3, 7) == (5, 3, 7)
