"""The soak: what it counts, what it keeps, and that it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.matching.reasons import NoMatch, Refusal
from mhf_compile.reading import rules
from tests.fuzz import coverage, kept, soak
from tests.fuzz.counted import Program
from tests.fuzz.near import Near
from tests.strategies.running import OPTIONS, compiled

ONE_CALL = next(p for p in kept.PROPERTIES if p.name == "each_feed_forward_is_one_call")


def test_each_property_has_a_name_of_its_own() -> None:
    assert len({p.name for p in kept.PROPERTIES}) == len(kept.PROPERTIES)


# -- coverage -----------------------------------------------------------------------------------------------


def test_a_rule_that_is_applied_is_counted() -> None:
    counts: Counter[str] = Counter()
    before = dict(rules.RULES)
    with coverage.counting(counts):
        compiled(kept.load(kept.FOLDER / "scaled_then_next.py").example.text)
    assert counts["rule: mm"] and not counts["rule: convolution"]
    assert before == rules.RULES
    assert counts.keys() <= coverage.fired().keys()


def test_a_refusal_that_is_told_is_counted() -> None:
    counts: Counter[str] = Counter()

    def program(x: torch.Tensor) -> torch.Tensor:
        return silu(x @ x.mT).roll(1, 0) @ x

    with coverage.counting(counts):
        torch._dynamo.reset()
        torch.compile(program, backend="flashmhf", options=OPTIONS)(torch.randn(3, 4))
    (miss,) = mhf_compile.last_reports()[0].misses
    assert "roll" in miss.reason
    told = {name for name in counts if name.startswith("refusal")}
    assert told, "the refusal"
    assert any("is applied to it" in name for name in told), told
    assert counts.keys() <= coverage.fired().keys()


def test_every_refusal_of_the_sources_is_known() -> None:
    made = {(site.file, site.first) for site in coverage.refusals()}
    assert len(made) == len(coverage.refusals()) > 50
    for error in (NoMatch, Refusal):
        assert error.__name__ in coverage.ERRORS


# -- what is kept -------------------------------------------------------------------------------------------


def no_relu(program: Program) -> None:
    assert "relu(gate)" not in program.text, "there is a relu"


def test_a_failure_is_kept_and_replayed(tmp_path: Path) -> None:
    """As the smallest program that fails; it holds again when what was wrong is mended."""
    failing = replace(ONE_CALL, check=no_relu, count=100)
    with mock.patch.object(kept, "PROPERTIES", (failing,)):
        result = soak.hold(failing, 0, time.time() + 60, tmp_path)
        (failure,) = result.failures
        (path,) = tmp_path.glob("*.py")
        assert str(path) in failure
        regression = kept.load(path)
        assert regression.property is failing
        assert regression.example.claims.layers == 1
        with pytest.raises(AssertionError, match="there is a relu"):
            regression.property.check(regression.example)
    text = path.read_text()
    assert "there is a relu" in text and "class FeedForward" in text
    assert len(text.splitlines()) < 70
    with mock.patch.object(kept, "PROPERTIES", (replace(failing, check=ONE_CALL.check),)):
        with pytest.raises(StopIteration):  # a property that is gone is no silent success
            kept.load(path)
        path.write_text(text.replace('"no_relu"', f'"{ONE_CALL.name}"'))
        kept.load(path).property.check(kept.load(path).example)


def test_a_failure_of_another_kind_is_kept(tmp_path: Path) -> None:
    name = "a_near_miss_is_left_alone_or_right"
    path = kept.keep(name, Near("summed_over_tokens_with_the_values", 3), 'it said """so"""\\', tmp_path)
    regression = kept.load(path)
    assert regression.example == Near("summed_over_tokens_with_the_values", 3)
    regression.property.check(regression.example)


# -- the soak -----------------------------------------------------------------------------------------------


def test_it_ends_and_prints_what_it_did(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.02", "--jobs", "1", "--seed", "1"]
    done = subprocess.run(
        [*command, "--only", "zero_is_zero", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "seed 1, 1 processes" in done.stdout
    assert "what_is_multiplied_by_zero_is_zero" in done.stdout
    assert "rule: convolution" in done.stdout  # whether it fired or not
    assert "0 failures" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_is_a_failure(tmp_path: Path) -> None:
    with mock.patch.object(soak, "work", dies):
        total = soak.soak(1.0, 1, 0, folder=tmp_path)
    assert total.failures == ["a process died with 3 in the start"]


def dies(*_: object) -> None:
    sys.exit(3)


def test_what_fires_too_seldom_is_told() -> None:
    result = soak.Result(fired=Counter({name: soak.AT_LEAST for name in coverage.fired()}))
    assert soak.rare(result) == []
    result.fired["rule: mm"] -= 1
    assert soak.rare(result) == ["rule: mm"]
