"""Near misses: left alone for the true reason or rewritten, and never wrong."""

from __future__ import annotations

import traceback
from collections import Counter

from tests.fuzz.coverage import counting, refusals
from tests.fuzz.near import BY_NAME, Near, a_near_miss_is_left_alone_or_right
from tests.near_misses import NEAR_MISSES, SILENT


def test_there_are_many() -> None:
    refused = [near for near in NEAR_MISSES if near.reason not in ("", SILENT)]
    assert len(refused) >= 60
    assert len({near.reason for near in refused}) >= 15
    assert len({near.kind for near in refused}) >= 13
    assert len(BY_NAME) == len(NEAR_MISSES)


def test_each_is_left_alone_or_right_and_they_are_told_every_refusal() -> None:
    """One test, as each process of a suite that runs in several has some of the tests only."""
    counts: Counter[str] = Counter()
    failed = {}
    for name in BY_NAME:
        try:
            with counting(counts):
                a_near_miss_is_left_alone_or_right(Near(name))
        except Exception:
            failed[name] = traceback.format_exc(limit=-2)
    assert not failed, "\n".join(f"{name}: {shown}" for name, shown in failed.items())
    assert [str(site) for site in refusals() if not counts[f"refusal: {site}"]] == []
