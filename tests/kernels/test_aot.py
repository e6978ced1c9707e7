"""Ahead-of-time compilation of the Triton kernels: their tiles fit, with no GPU in the machine."""

from itertools import product

import pytest
import torch

from . import aot
from .battery import UNGATED

# Bytes of shared memory that one program may have, of CUDA's table of compute capabilities.
SHARED = {(8, 0): 99 * 1024, (9, 0): 227 * 1024}
# Local memory that is not worth a warning: 8 registers of a thread.
SPILLED = 32


@pytest.mark.parametrize("capability", SHARED, ids=str)
@pytest.mark.parametrize("kernel", aot.KERNELS)
@pytest.mark.parametrize("dim", [64, 128])
def test_half_precision_fits(kernel, dim, capability):
    used = aot.resources(kernel, dim, dim, torch.bfloat16, capability)
    assert used.shared <= SHARED[capability]
    assert used.local <= SPILLED


@pytest.mark.parametrize("kernel", aot.KERNELS)
def test_full_precision_and_biases_fit(kernel):
    used = aot.resources(kernel, 96, 80, torch.float32, (9, 0), biases=True)
    assert used.shared <= SHARED[9, 0]
    assert used.local <= SPILLED


# Every kernel with every activation, on one device or the other.
@pytest.mark.parametrize(
    ("kernel", "capability", "activation"), list(product(aot.KERNELS, SHARED, UNGATED))[::2], ids=str
)
def test_ungated_leaves_the_products_with_u_out(kernel, capability, activation):
    used = aot.resources(
        kernel, 64, 64, torch.bfloat16, capability, biases=True, gated=False, activation=activation
    )
    assert used.shared <= SHARED[capability]
    assert used.local <= SPILLED
    assert used.products == {"forward": 2, "dq": 3, "dk_du": 3, "dv": 2}[kernel]
