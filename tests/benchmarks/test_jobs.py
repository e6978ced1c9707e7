"""A process that hangs, crashes or says nothing of use is a result, and is gone afterwards."""

import os
import sys
import time

import pytest

from benchmarks.gpu import jobs
from benchmarks.gpu.timing import Failure


def python(code):
    return [sys.executable, "-c", code]


def test_the_last_line_is_the_result():
    assert jobs.run(python("print('compiling'); print('{\"a\": 1.5}'); print()"), 60) == {"a": 1.5}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit('no memory')", "ended with status 1: no memory"),
        ("import os; os.kill(os.getpid(), 11)", "ended with status -11: "),
        ("raise ValueError('illegal access')", "ended with status 1: ValueError: illegal access"),
        ("print('half a li')", "no result, but 'half a li'"),
        ("print('[1]')", "no result, but '[1]'"),
        ("pass", "no result, but ''"),
    ],
)
def test_what_fails_is_a_failure(code, why):
    assert jobs.run(python(code), 60) == Failure(why)


def test_what_hangs_is_killed_with_what_it_started(tmp_path):
    file = tmp_path / "pids"
    code = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(file)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(600)
"""
    start = time.monotonic()
    assert jobs.run(python(code), 3) == Failure("no result in 3 s")
    assert time.monotonic() - start < 3 + jobs.LEAVING
    for pid in map(int, file.read_text().split()):
        assert not alive(pid)


def alive(pid):
    """Whether a process runs; one whose parent has not asked for its end is none."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
