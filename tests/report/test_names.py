"""Names for people: module paths as one, the shortest names that differ, bytes."""

from __future__ import annotations

import pytest

from mhf_compile.report.names import compact, condensed, shortest, total_megabytes


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        ([""], ""),
        (["ffn"], "ffn"),
        (["ffn", "ffn"], "ffn"),
        ([f"layers.{n}.mlp" for n in range(32)], "layers.0-31.mlp"),
        ([f"layers.{n}.mlp" for n in range(32) if n != 7], "layers.0-6,8-31.mlp"),
        ([f"{n}" for n in (10, 9, 2, 0)], "0,2,9-10"),
        ([f"a.{n}.b.{m}" for n in range(2) for m in range(3)], "a.0-1.b.0-2"),
        (["a.0.b.0", "a.1.b.1"], "a.0.b.0, a.1.b.1"),  # not a.0-1.b.0-1, which are four
        ([f"a.{n}.b.{n}" for n in range(9)], "a.0.b.0, ..., a.8.b.8"),
        (["encoder.0.mlp", "encoder.1.mlp", "decoder.0.mlp", "head"], "encoder.0-1.mlp, decoder.0.mlp, head"),
        (["layers.0", "layers.0.mlp"], "layers.0, layers.0.mlp"),
    ],
)
def test_paths(paths: list[str], shown: str) -> None:
    assert compact(paths) == shown


def test_a_name_with_a_dot_in_it_is_one_name() -> None:
    assert condensed([("heads", "v1.0"), ("heads", "v1.1")]) == [("heads", "v1.0"), ("heads", "v1.1")]


@pytest.mark.parametrize(
    ("path", "others", "shown"),
    [
        ("q", [], "q"),
        ("mlp.gate.weight", [], "weight"),
        ("mlp.gate.weight", ["mlp.up.weight"], "gate.weight"),
        ("a.gate.weight", ["b.gate.weight"], "a.gate.weight"),
        ("keys.0-1", ["q"], "keys.0-1"),  # a number alone says nothing
        ("mlp.w", ["mlp.w"], "w"),  # the same path cannot be told apart by more of it
        ("weight", ["gate.weight"], "weight"),
    ],
)
def test_the_shortest_name(path: str, others: list[str], shown: str) -> None:
    paths = [tuple(other.split(".")) for other in (path, *others)]
    assert shortest(paths[0], paths) == shown


@pytest.mark.parametrize(
    ("counts", "shown"),
    [([], ""), ([0], ""), (["8*s0"], ""), ([2**20, 2**19], "1.5 MiB"), ([2**20, "s0"], "at least 1.0 MiB")],
)
def test_totals(counts: list[int | str], shown: str) -> None:
    assert total_megabytes(counts) == shown
