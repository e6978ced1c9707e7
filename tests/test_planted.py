"""Faults that are planted by hand are found: some property fails within 200 examples of its own strategy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.planted import FAULTS, LIMIT, START, Fault, examples_until_it_fails
from tests.planting import Edit


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_is_found(fault: Fault, record_property: Callable[[str, object], None]) -> None:
    failure = examples_until_it_fails(fault.property, fault.edits)
    assert failure is not None, f"{fault.property} holds for {LIMIT} examples"
    count, error = failure
    found = {f"{fault} -> {fault.property}, {error}": count}
    if fault.unproved:
        failure = examples_until_it_fails(fault.unproved, fault.edits, **{"flashmhf.prove": "never"})
        assert failure is not None, f"not proved, {fault.unproved} holds for {LIMIT} examples"
        count, error = failure
        found[f"{fault}, not proved -> {fault.unproved}, {error}"] = count
    record_property("examples until a planted fault was found", found)


@pytest.mark.parametrize("name", sorted({fault.property for fault in FAULTS}))
def test_without_a_fault_it_holds(name: str) -> None:
    """Where all else is as with a fault, an edit included."""
    assert examples_until_it_fails(name, (Edit(START.function, START.old, START.old),), limit=4) is None


def test_an_edit_that_finds_no_place_is_none() -> None:
    with pytest.raises(AssertionError, match="0 times"):
        examples_until_it_fails(FAULTS[0].property, (Edit(START.function, "not there", ""),))
