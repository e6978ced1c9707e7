"""The choice of tiles: pure, so tested without a device. What they cost is in test_aot.py."""

import pytest
import torch

from mhf_compile.kernels.flash_mhf.config import tiles

KERNELS = ["forward", "dq", "dk_du", "dv"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_every_size_has_tiles_that_triton_can_multiply(kernel, dtype, capability):
    for head_dim in (1, 16, 17, 64, 80, 96, 128, 200, 4096):
        for out_dim in (1, 64, 128, 513):
            chosen = tiles(kernel, head_dim, out_dim, dtype, capability)
            for side in chosen[:4]:
                assert side >= 16 and side & (side - 1) == 0


def test_columns_are_one_block_up_to_128_in_half_precision():
    assert tiles("forward", 96, 40, torch.bfloat16, (9, 0))[2:4] == (128, 64)
    assert tiles("forward", 200, 5, torch.bfloat16, (9, 0))[2:4] == (128, 16)
    assert tiles("forward", 96, 40, torch.float32, (9, 0))[2:4] == (64, 64)
