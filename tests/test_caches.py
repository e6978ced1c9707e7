"""The inner compiler's caches serve both directions again, but not another version of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mhf_compile
from tests.programs import D, F, H

PROGRAM = f"""
import json
import sys
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import silu

def program(q, k, u, v):
    gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (k, u))
    return torch.einsum("bthf,hfo->btho", silu(gate) * up, v)

tensors = [torch.ones(2, 5, {H}, {D}), *(torch.ones({H}, {F}, {D}) for _ in range(3))]
for tensor in tensors:
    tensor.requires_grad_()
found = []

def note():
    kinds = counters["inductor"]
    found.append([kinds["fxgraph_cache_hit"], kinds["fxgraph_cache_miss"]])

result = torch.compile(program, backend="flashmhf", options={{"flashmhf.require": 1}})(*tensors)
note()
result.sum().backward()
note()
print(json.dumps({{"from": sys.modules["mhf_compile"].__file__, "hits and misses": found}}))
"""


def run(folder: Path) -> list[list[int]]:
    """Run the program on the copy of the package in a folder: hits and misses after forward and backward."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(("TORCH", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**inherited, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["from"]) == folder / "mhf_compile" / "__init__.py"
    counts: list[list[int]] = found["hits and misses"]
    return counts


def test_an_upgrade_of_the_package_misses_in_both_directions(tmp_path: Path) -> None:
    package = shutil.copytree(Path(mhf_compile.__file__).parent, tmp_path / "mhf_compile")
    assert run(tmp_path) == [[0, 1], [0, 2]]
    assert run(tmp_path) == [[2, 0], [2, 0]]
    with (package / "kernels" / "flash_mhf" / "blocked.py").open("a") as file:
        file.write("\n# another version\n")
    assert run(tmp_path) == [[0, 1], [0, 2]]
