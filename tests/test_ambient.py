"""The state around a program: what works with another backend works with this one, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz import ambient
from tests.fuzz.ambient import Ambient, what_works_under_another_backend_works_under_this_one
from tests.fuzz.property import Property
from tests.strategies.ambient import AROUND, CALLS, WITHIN


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
]


@pytest.mark.parametrize("example", EACH, ids=lambda e: "_".join((e.call, *e.around, *e.within)))
def test_each_state_alone(example: Ambient) -> None:
    what_works_under_another_backend_works_under_this_one(example)


REWRITTEN = [
    Ambient("layered", call="checkpoint"),
    Ambient("layered", call="reentrant_checkpoint"),
    Ambient("layered", around=("hooks",)),
    Ambient("layered", around=("no_hooks",)),
    Ambient("layered", within=("inference_mode",)),
    Ambient("in_rows", within=("inference_mode",), grad=False),
    Ambient("layered", around=("inference_mode",)),
    Ambient("layered", around=("function_mode",)),
    Ambient("layered", within=("of_data",)),
    Ambient("layered", around=("compiled_autograd",)),
]
"""What is rewritten all the same."""


@pytest.mark.parametrize("example", REWRITTEN, ids=lambda e: "_".join((e.call, *e.around, *e.within)))
def test_is_rewritten_all_the_same(example: Ambient) -> None:
    ambient.COUNTS.clear()
    what_works_under_another_backend_works_under_this_one(example)
    assert ambient.COUNTS["feed-forwards rewritten"] > 0
