import sys

import pytest
import torch

from mhf_compile.commands.measure import Cost, saved_bytes


def test_saved_bytes_counts_a_storage_once_and_owned_ones_not_at_all():
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8)

    def forward():
        hidden = x @ weight  # saves x
        return (hidden.sigmoid() * hidden.view(4, 8)).sum()  # saves hidden under two names, and its sigmoid

    assert saved_bytes(forward, owned=[weight, x]) == 2 * 4 * 8 * 4
    assert saved_bytes(forward, owned=[weight]) == 3 * 4 * 8 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux shows it")
def test_cost_sees_memory_that_is_freed_again():
    size = 64 * 2**20
    with Cost("cpu") as cost:
        torch.ones(size // 4)
    with Cost("cpu") as nothing:
        pass
    assert cost.peak == pytest.approx(size, rel=0.1)
    assert nothing.peak < size / 10
