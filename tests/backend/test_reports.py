"""A report for each graph, in the log as well."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

import mhf_compile
from tests.faults.stages import EAGER
from tests.programs import BY_NAME


def test_a_report_for_each_graph_until_reset() -> None:
    q, k, u, v = BY_NAME["exponential"].tensors()

    def program(q: Tensor) -> Tensor:
        first = BY_NAME["exponential"].program(q, k, u, v)
        torch._dynamo.graph_break()
        return BY_NAME["exponential"].program(first, k, u, v) + q

    compiled = torch.compile(program, backend="flashmhf", options=EAGER)
    compiled(q)
    assert [len(report.rewrites) for report in mhf_compile.last_reports()] == [1, 1]
    compiled(q)
    assert len(mhf_compile.last_reports()) == 2
    compiled(q[:, :5])  # both graphs again
    reports = mhf_compile.last_reports()
    assert [len(report.rewrites) for report in reports] == [1] * 4
    assert reports[0].rewrites[0].tokens == 80
    assert isinstance(reports[2].rewrites[0].tokens, str)
    reports.clear()  # a list of one's own
    assert len(mhf_compile.last_reports()) == 4
    torch._dynamo.reset()
    assert mhf_compile.last_reports() == []


def test_a_report_says_what_cuts_the_program() -> None:
    q, k, u, v = BY_NAME["exponential"].tensors()

    def program(q: Tensor) -> Tensor:
        first = BY_NAME["exponential"].program(q, k, u, v)
        torch._dynamo.graph_break()
        return first + q

    said = "a feed-forward that a graph break cuts apart is not found: Call to `torch._dynamo.graph_break()`"
    torch.compile(program, backend="flashmhf", options=EAGER)(q)
    assert [report.notes for report in mhf_compile.last_reports()] == [(said,), ()]
    notes = mhf_compile.explain(program, q).notes
    assert notes == (said, "the model was compiled in 2 graphs, each looked at on its own")


def test_nothing_is_compiled() -> None:
    def program(q: Tensor) -> Tensor:
        for _ in range(2):
            torch._dynamo.graph_break()  # in a loop: all of it runs as it is
        return q

    notes = mhf_compile.explain(program, torch.ones(3)).notes
    assert notes[0].startswith("nothing of the model was compiled")


def test_the_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "mhf_compile"):
        torch.compile(BY_NAME["loop"].program, backend="flashmhf", options=EAGER)(*BY_NAME["loop"].tensors())
    entries = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "mhf_compile.backend"]
    (report,) = mhf_compile.last_reports()
    assert ("INFO", str(report)) in entries
    assert ("DEBUG", f"{report.rewrites[0].source}: {report.rewrites[0].equation}") in entries
