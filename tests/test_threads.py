"""Threads that meet this package at once, each time in a process that has not imported it."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMPILE = """
import sys, threading, torch
from torch.nn.functional import silu

def feed_forward(x, k, u, v):
    hidden = silu(torch.einsum("nhd,hfd->nhf", x, k)) * torch.einsum("nhd,hfd->nhf", x, u)
    return torch.einsum("nhf,hfo->nho", hidden, v)

given = torch.randn(6, 2, 4), *(torch.randn(2, 5, 4) for _ in range(3))
expected = feed_forward(*given)

def work():
    compiled = torch.compile(feed_forward, backend="flashmhf", options={"flashmhf.inner": "eager"})
    torch.testing.assert_close(compiled(*given), expected)
"""

IMPORT = """
import sys, threading
from importlib import import_module
import torch._dynamo  # whose modules import each other in a circle, which threads get lost in

NAMES = ["patterns", "backend", "api", "tape.recorder", "rewriting.region", "report.report"]
names = iter(NAMES)

def work():
    import_module("mhf_compile." + next(names))
    import mhf_compile
    mhf_compile.flash_mhf, mhf_compile.rewrite, mhf_compile.Report
"""

AT_ONCE = """
errors = []
start = threading.Barrier(6)
threading.excepthook = lambda args: errors.append(args.exc_value)
sys.setswitchinterval(1e-5)

def run():
    start.wait()
    work()

threads = [threading.Thread(target=run) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import mhf_compile
print(errors, len(mhf_compile.last_reports()))
"""


@pytest.mark.parametrize(("work", "reports"), [(COMPILE, 6), (IMPORT, 0)], ids=["compile", "import"])
def test_six_threads_at_first(work: str, reports: int) -> None:
    done = subprocess.run([sys.executable, "-c", work + AT_ONCE], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, f"[] {reports}"), done.stderr
