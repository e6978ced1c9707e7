"""Every test of the backend starts from the same random numbers, and counts from 0."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.manual_seed(0)
    counters.clear()
