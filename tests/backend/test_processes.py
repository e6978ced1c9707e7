"""The backend in a process of its own: by name, with logs, traces, caches and the minifier."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.stages import EAGER
from tests.programs import D, F, H


def run_python(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with nothing of this one."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(("TORCH", "PYTHONPATH"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**inherited, **environment},
    )


PROGRAM = f"""
import torch
from torch.nn.functional import silu

def program(x, k, u, v):
    q = x.unflatten(-1, ({H}, {D}))
    gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (k, u))
    return torch.einsum("bthf,hfo->btho", silu(gate) * up, v)

tensors = [torch.randn(2, 5, {H * D}), *(torch.randn({H}, {F}, {D}) for _ in range(3))]
"""

COMPILED = """
import sys
assert "mhf_compile.backend" not in sys.modules
assert "flashmhf" in torch._dynamo.list_backends()
torch.compile(program, backend="flashmhf", options={OPTIONS})(*tensors)
assert torch._dynamo.lookup_backend("flashmhf") is sys.modules["mhf_compile"].flashmhf
(report,) = sys.modules["mhf_compile"].last_reports()
print(report.to_json())
print(report, file=sys.stderr)
counters = torch._dynamo.utils.counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


def traced(folder: Path) -> str:
    """The report in a structured trace."""
    (trace,) = folder.glob("*.log")
    lines = trace.read_text().splitlines()
    position = next(i for i, line in enumerate(lines) if '"flashmhf_rewrites"' in line)
    payload = itertools.takewhile(lambda line: line.startswith("\t"), lines[position + 1 :])
    return "\n".join(line.removeprefix("\t") for line in payload)


def test_by_name_with_logs_and_trace(tmp_path: Path) -> None:
    """No import of the package: PyTorch finds it; its log and its trace say what the report says."""
    program = PROGRAM + COMPILED.replace("{OPTIONS}", str(EAGER))
    trace = tmp_path / "trace"
    done = run_python(program, tmp_path, TORCH_LOGS="+mhf_compile", TORCH_TRACE=str(trace))
    assert done.returncode == 0, done.stderr
    report = "".join(done.stdout.splitlines(keepends=True)[:-1]).strip()
    assert [rewrite["heads"] for rewrite in json.loads(report)["rewrites"]] == [H]
    assert traced(trace) == report
    printed = done.stderr.splitlines()[-3:]  # by the program, after the logs
    assert printed[0].startswith("1 of 1 feed-forwards rewritten")
    logged = [
        line.partition("] ")[2] for line in done.stderr.splitlines() if "mhf_compile/backend.py" in line
    ]
    assert all(any(line.endswith(text) for line in logged) for text in printed)
    assert "sum_{f} silu(" in done.stderr  # the equation, at the level of debugging


def test_a_second_process_is_served_from_the_caches_and_reports_the_same(tmp_path: Path) -> None:
    outputs = []
    for number in range(2):
        trace = tmp_path / f"trace{number}"
        done = run_python(
            PROGRAM + COMPILED.replace("{OPTIONS}", "{}"),
            tmp_path,
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
            TORCH_TRACE=str(trace),
        )
        assert done.returncode == 0, done.stderr
        *report, hits = done.stdout.splitlines()
        assert traced(trace) == "\n".join(report)
        outputs.append((hits, report))
    assert [hits for hits, _ in outputs] == ["0 0", "1 1"]
    assert outputs[0][1] == outputs[1][1]


def test_logs_are_quiet_unless_asked_for(tmp_path: Path) -> None:
    done = run_python(
        PROGRAM + 'torch.compile(program, backend="flashmhf", options={"flashmhf.inner": "eager"})(*tensors)',
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_minifier_takes_our_graphs(tmp_path: Path) -> None:
    """A failure of the inner compiler is written down as a program to reproduce it."""
    done = run_python(
        PROGRAM
        + """
import torch._dynamo
@torch._dynamo.register_backend
def failing(module, inputs):
    raise RuntimeError("the inner compiler failed")
torch.compile(program, backend="flashmhf", options={"flashmhf.inner": "failing"})(*tensors)
""",
        tmp_path,
        TORCHDYNAMO_REPRO_AFTER="dynamo",
        TORCHDYNAMO_REPRO_LEVEL="2",
    )
    assert done.returncode != 0
    assert "the inner compiler failed" in done.stderr
    (launcher,) = tmp_path.rglob("minifier_launcher.py")
    assert "flashmhf" in launcher.read_text()
