"""Programs that are drawn: each property of a right program, and of one that is subtly not, is a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import kept, programs
from tests.fuzz.counted import COUNTS, Kept
from tests.fuzz.property import Property


@pytest.mark.parametrize("property_", programs.PROPERTIES, ids=lambda property_: property_.name)
def test_holds(property_: Property, record_property: Callable[[str, object], None]) -> None:
    COUNTS.clear()
    property_.hold()
    record_property("programs that were drawn", dict(COUNTS))


# -- programs that were kept --------------------------------------------------------------------------------

KEPT = sorted(kept.FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_holds_of_what_is_kept(path: Path, request: pytest.FixtureRequest) -> None:
    """A program with a GAP is a right one that is not found as it should be."""
    regression = kept.load(path)
    if regression.gap:
        request.applymarker(pytest.mark.xfail(reason=regression.gap, strict=True))
    regression.property.check(regression.example)


MISSED = [p for p in KEPT if kept.load(p).gap and isinstance(kept.load(p).example, Kept)]


@pytest.mark.parametrize("path", MISSED, ids=lambda path: path.stem)
def test_what_is_missed_is_not_wrong(path: Path) -> None:
    programs.a_mutant_is_never_wrong(kept.load(path).example)
