import ast
from pathlib import Path

import pytest

import benchmarks

ROOT = Path(benchmarks.__file__).parent


@pytest.mark.parametrize(("folder", "other"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_what_both_use_is_in_neither(folder, other):
    files = sorted((ROOT / folder).glob("*.py"))
    names = [
        name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    ]
    assert f"benchmarks.{folder}" in {str(name).rpartition(".")[0] for name in names}
    assert [name for name in names if str(name).startswith(f"benchmarks.{other}")] == []
