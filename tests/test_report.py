"""What a user reads: the table, the JSON, module paths and source lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.report import Miss, Report, Rewrite, megabytes, module_of, plain, source_of, table
from tests.programs import D, F, H

REWRITE = Rewrite(
    pattern="flash_mhf",
    module="layers.0.ffn",
    source="model.py:12",
    tokens="s0*s1",
    heads=8,
    kv_heads=2,
    subnetworks=11,
    head_dim=96,
    width=256,
    out_dim=128,
    dtype="bfloat16",
    proof="exact, 8 tokens",
    saved_bytes=3 * 2**20 + 2**19,
    equation="o[n, h] = ...",
)
MISS = Miss("flash_mhf", "", "model.py:40", "it is used elsewhere")


def test_the_table() -> None:
    short = replace(REWRITE, module="ffn", tokens=64, proof="exact", saved_bytes="8*s0")
    lines = str(Report((REWRITE, short), (MISS,))).splitlines()
    assert lines[0] == "2 of 3 gated feed-forwards rewritten, each to one fused call"
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "module source op N H Hk E D F O dtype proof saved",
        "layers.0.ffn model.py:12 flash_mhf s0*s1 8 2 11 96 256 128 bfloat16 exact, 8 tokens 3.5 MiB",
        "ffn model.py:12 flash_mhf 64 8 2 11 96 256 128 bfloat16 exact 8*s0 bytes",
    ]
    assert len({line.index("flash_mhf") for line in lines[2:4]} | {lines[1].index("op")}) == 1  # aligned
    assert lines[4:] == ["not rewritten: (no module) model.py:40: it is used elsewhere"]


def test_a_report_of_nothing() -> None:
    assert str(Report()) == "0 of 0 gated feed-forwards rewritten, each to one fused call"
    assert json.loads(Report().to_json()) == {"rewrites": [], "misses": []}


def test_json_round_trip() -> None:
    report = Report((REWRITE,), (MISS, MISS))
    read = json.loads(report.to_json())
    assert (
        Report(tuple(Rewrite(**r) for r in read["rewrites"]), tuple(Miss(**m) for m in read["misses"]))
        == report
    )
    assert asdict(REWRITE) == read["rewrites"][0]


def test_rows_are_aligned_and_not_padded_at_the_end() -> None:
    assert table([("a", 1), ("bcd", 22), ("", "x")]) == ["a    1", "bcd  22", "     x"]


def test_sizes_for_people() -> None:
    import sympy

    assert [megabytes(0), megabytes(2**20), megabytes("8*s0")] == ["0.0 MiB", "1.0 MiB", "8*s0 bytes"]
    assert plain(3) == 3
    assert plain(2 * sympy.Symbol("s0")) == "2*s0"


# -- where a rewrite is -------------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k, self.u, self.v = (nn.Parameter(torch.randn(H, F, D)) for _ in range(3))

    def forward(self, q: Tensor) -> Tensor:
        gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (self.k, self.u))
        return q + torch.einsum("bthf,hfo->btho", silu(gate) * up, self.v)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ffn = Heads()

    def forward(self, q: Tensor) -> Tensor:
        return self.ffn(q)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.tail = nn.Sequential(Layer(), nn.Identity())
        self.named = nn.ModuleDict({"main": Layer()})

    def forward(self, q: Tensor) -> Tensor:
        for layer in self.layers:
            q = layer(q)
        return self.named["main"](self.tail(q))


def reported(model: Callable[[Tensor], Tensor]) -> list[Rewrite]:
    return list(mhf_compile.explain(model, torch.randn(2, 3, H, D)).rewrites)


LINE = next(
    n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "silu(gate) * up" in line
)


def test_module_paths() -> None:
    torch._dynamo.reset()
    paths = ["layers.0.ffn", "layers.1.ffn", "tail.0.ffn", "named.main.ffn"]
    found = reported(Model())
    assert [rewrite.module for rewrite in found] == paths
    assert {rewrite.source for rewrite in found} == {f"tests/test_report.py:{LINE}"}


def test_the_module_of_a_function_of_a_model() -> None:
    model = Model()
    found = []
    for function in (lambda q: model.layers[1](q), Heads()):
        torch._dynamo.reset()
        found += reported(function)
    assert [rewrite.module for rewrite in found] == ["model.layers.1.ffn", ""]


def test_a_source_outside_of_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch._dynamo.reset()
    monkeypatch.chdir(tmp_path)
    (rewrite,) = reported(Heads())
    assert rewrite.source == f"{Path(__file__)}:{LINE}"


def test_nodes_that_say_nothing() -> None:
    node = fx.Graph().placeholder("x")
    assert (module_of(None), source_of(None), module_of(node), source_of(node)) == ("", "", "", "")


def test_the_line_is_the_user_s_and_not_pytorch_s() -> None:
    node = fx.Graph().placeholder("x")
    node.meta["stack_trace"] = (
        'File "/home/a user/model.py", line 7, in forward\\n    return self.act(x)\\n'
        'File "/usr/lib/python3/site-packages/torch/nn/modules/activation.py", line 99, in forward\\n    silu'
    ).replace("\\n", "\n")
    assert source_of(node) == "/home/a user/model.py:7"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("L['self']", ""),
        ("L['self'].ffn", "ffn"),
        ("L['self']._modules['layers']._modules['0'].ffn", "layers.0.ffn"),
        ("L['self'].layers[3].ffn", "layers.3.ffn"),
        ("L['model'].layers[3]", "model.layers.3"),
        ("G['model'].tail._modules['0']", "model.tail.0"),
    ],
)
def test_paths_that_dynamo_writes(path: str, shown: str) -> None:
    node = fx.Graph().placeholder("x")
    node.meta["nn_module_stack"] = {"outer": ("L['self']", object), "inner": (path, object)}
    assert module_of(node) == shown
