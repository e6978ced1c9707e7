"""Every test of the backend starts from the same random numbers, and counts from 0."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from mhf_compile import backend


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    counters.clear()
    yield
    torch._dynamo.reset()
    backend.flashmhf.reset()  # Dynamo resets the backends that it called itself
