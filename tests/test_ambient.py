"""The state around a program: what works with another backend works with this one, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

import mhf_compile
from tests.fuzz import ambient
from tests.fuzz.ambient import OPTIONS, Ambient, logged, what_works_under_another_backend_works_under_this_one
from tests.fuzz.property import Property
from tests.strategies.ambient import AROUND, CALLS, WITHIN, arguments, feed_forward


@pytest.mark.parametrize("property_", ambient.PROPERTIES, ids=lambda property_: property_.name)
def test_holds(property_: Property, record_property: Callable[[str, object], None]) -> None:
    ambient.COUNTS.clear()
    property_.hold()
    assert ambient.COUNTS["feed-forwards rewritten"] > 0
    record_property("programs in a state that was drawn", dict(ambient.COUNTS))


EACH = [
    *(Ambient("layered", around=(name,)) for name in AROUND),
    *(Ambient("layered", call=name) for name in CALLS),
    *(Ambient("layered", within=(name,)) for name in WITHIN),
    Ambient("layered", call="forward_mode", grad=False),
    Ambient("in_rows", within=("inference_mode",), grad=False),
]
NOTHING = {"dispatch_mode", "flop_counter", "vmap", "func_grad", "func_jvp"}
"""Where nothing is rewritten: Dynamo compiles nothing, or what it compiles is inside a transform."""


@pytest.mark.parametrize("example", EACH, ids=lambda e: "_".join((e.call, *e.around, *e.within)))
def test_each_state_alone(example: Ambient) -> None:
    ambient.COUNTS.clear()
    what_works_under_another_backend_works_under_this_one(example)
    rewritten = ambient.COUNTS["feed-forwards rewritten"]
    assert (rewritten == 0) == bool(NOTHING & {example.call, *example.around, *example.within})


def test_a_nested_region_counts_each_time_it_is_run() -> None:
    ambient.COUNTS.clear()
    what_works_under_another_backend_works_under_this_one(Ambient("feed_forward", within=("nested_region",)))
    assert ambient.COUNTS["feed-forwards rewritten"] == 2


# -- sizes that only the data tell --------------------------------------------------------------------------


def pieces(x: Tensor, sizes: Tensor, *weights: Tensor) -> Tensor:
    return torch.cat([feed_forward(piece, *weights) for piece in torch.split(x, sizes.tolist())])


def jagged(x: Tensor, sizes: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    rows = torch.nested.nested_tensor_from_jagged(x.flatten(1), offsets)
    gate, up = (linear(rows, torch.cat([weight[0], weight[1]], 1)) for weight in (k, u))
    return linear(silu(gate) * up, v[0].t()).values()


@pytest.mark.parametrize("program", [pieces, jagged], ids=lambda program: program.__name__)
def test_sizes_that_only_the_data_tell(program: Callable[..., Tensor]) -> None:
    x, *weights = arguments(grad=True)
    sizes = torch.tensor([2, 4])
    with logged() as records, torch._dynamo.config.patch(capture_scalar_outputs=True):
        found = torch.compile(program, backend="flashmhf", options=OPTIONS)(x, sizes, *weights)
    torch.testing.assert_close(found, program(x, sizes, *weights), rtol=1e-4, atol=1e-4)
    assert [record.getMessage() for record in records] == []
    assert any(report.rewrites or report.misses for report in mhf_compile.last_reports())
