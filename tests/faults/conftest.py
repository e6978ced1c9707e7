"""The graph that faults are planted in the analysis of."""

from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from mhf_compile.graphs import copied_module
from tests.faults.stages import captured, program, tensors


@pytest.fixture(scope="module")
def compiled() -> tuple[fx.GraphModule, list[Any]]:
    return captured(program, tensors())


@pytest.fixture
def graph(compiled: tuple[fx.GraphModule, list[Any]]) -> fx.GraphModule:
    return copied_module(compiled[0])


@pytest.fixture
def inputs(compiled: tuple[fx.GraphModule, list[Any]]) -> list[Any]:
    return compiled[1]
