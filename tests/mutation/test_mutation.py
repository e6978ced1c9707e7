"""A sample of the mutants: none has a wrong result, and most are found out by a few programs alone."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.mutation.__main__ import unlike
from tests.mutation.judge import Said, differs, usable
from tests.mutation.suite import KnownTest

SAID: Said = {"name": "", "report": [["flash_mhf", "8"]], "value": 1e-16, "gradient": 1e-16, "failure": ""}
MISSED = [["a.py:1", "it is cast"]]
REFUSED = [["a.py:1", "the proof failed: it is another function"]]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, ""),
        ({"value": 1e-8}, "wrong value"),
        ({"gradient": float("inf"), "report": MISSED}, "wrong gradient"),
        ({"report": REFUSED}, "refused by the proof"),
        ({"report": MISSED}, "found by a test"),
        ({"report": []}, "found by a test"),
        ({"report": [["flash_mhf", "4"]]}, "found by a test"),
        ({"failure": "the analysis raises KeyError"}, "found by a test"),
    ],
)
def test_what_differs(changes: dict[str, object], verdict: str) -> None:
    changed: Said = {**SAID, **changes}  # type: ignore[typeddict-item]
    assert differs(changed, SAID)[0] == verdict


def test_what_rounds_may_round() -> None:
    rounded: Said = {**SAID, "value": 1e-8}
    assert usable(rounded) and not usable({**SAID, "value": float("inf")})
    assert differs({**SAID, "value": 2e-8}, rounded)[0] == ""
    assert differs({**SAID, "value": 2e-7}, rounded)[0] == "wrong value"


def test_what_runs_other_lines_comes_first() -> None:
    """As much as there is time for; and where all lines have run, from the beginning."""
    one, two, three = (("module", line) for line in (1, 2, 3))
    among = [
        KnownTest("some", frozenset([one]), 1.0),
        KnownTest("other", frozenset([three]), 2.0),
        KnownTest("more", frozenset([one, two]), 1.0),
        KnownTest("all, slowly", frozenset([one, two, three]), 30.0),
    ]
    assert [test.name for test in unlike(among, 10)] == ["more", "other", "some"]
    assert [test.name for test in unlike(among, 40)] == ["more", "other", "some", "all, slowly"]


def test_a_sample() -> None:
    """In a process that has not imported the package; the same mutants until their functions change."""
    command = [sys.executable, "-m", "tests.mutation", "--no-tests", "--jobs", "1"]
    done = subprocess.run(
        [*command, "--count", "6", "--programs", "20"], capture_output=True, text=True, timeout=600
    )
    table = re.split(r"^(?:matching|notation|reading) ", done.stdout, maxsplit=1, flags=re.MULTILINE)[0]
    verdicts = re.findall(r"^(wrong|survived|not equiv|refused|found|equivalent).* -> ", table, re.MULTILINE)
    assert len(verdicts) == 6, done.stdout + done.stderr
    assert "wrong" not in verdicts, done.stdout
    assert verdicts.count("refused") + verdicts.count("found") >= 1, done.stdout
