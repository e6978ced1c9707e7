"""The inner compiler's caches know of the package, and serve what is rewritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import fx
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

import mhf_compile
from mhf_compile import backend
from mhf_compile import inner as inner_compilers
from mhf_compile.inner import package_hash
from mhf_compile.kernels.source import source_hash
from tests.backend.models import registered
from tests.comparison import counted_calls
from tests.faults.stages import fails
from tests.programs import BY_NAME


@pytest.mark.parametrize("error", [False, True])
def test_the_cache_key_carries_the_package(error: bool) -> None:
    tags: list[str] = []

    def inner(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        tags.append(torch.compiler.config.cache_key_tag)
        return fails() if error else module

    with (
        registered("spy", inner),
        torch.compiler.config.patch(cache_key_tag="the user's own"),
        pytest.raises(BackendCompilerFailed) if error else nullcontext(),
    ):
        torch.compile(lambda x: x + 1, backend="flashmhf", options={"flashmhf.inner": "spy"})(torch.ones(2))
        assert torch.compiler.config.cache_key_tag == "the user's own"
    (tag,) = tags
    assert tag.split() == ["the", "user's", "own", package_hash()]


def test_the_hash_changes_with_any_source(tmp_path: Path) -> None:
    package = shutil.copytree(Path(backend.__file__).parent, tmp_path / "mhf_compile")

    def digest() -> str:
        with mock.patch.object(inner_compilers, "__file__", str(package / "inner.py")):
            source_hash.cache_clear()
            return package_hash()

    assert digest() == package_hash()
    seen = {digest()}
    for name in ("kernels/flash_mhf/blocked.py", "patterns/flash_mhf.py", "reading/reader.py"):
        with (package / name).open("a") as file:
            file.write("\n# changed\n")
        seen.add(digest())
    (package / "kernels" / "new.py").write_text("")
    seen.add(digest())
    (package / "kernels" / "new.py").rename(package / "kernels" / "renamed.py")
    seen.add(digest())
    assert len(seen) == 6
    assert {len(name) for name in seen} == {len("mhf_compile-") + 16}


def test_a_hit_in_inductors_cache_is_reported(tmp_path: Path) -> None:
    tensors = BY_NAME["one_einsum"].tensors()
    options = {"flashmhf.strict": True}
    results = []
    with mock.patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}):
        for hits in (0, 1):
            torch._dynamo.reset()
            counters.clear()
            compiled = torch.compile(BY_NAME["one_einsum"].program, backend="flashmhf", options=options)
            with counted_calls() as calls:
                results.append(compiled(*tensors))
            assert counters["inductor"]["fxgraph_cache_hit"] == hits
            assert calls == [1]
            (report,) = mhf_compile.last_reports()
            assert [rewrite.proof for rewrite in report.rewrites] == ["exact"]
    assert torch.equal(*results)
