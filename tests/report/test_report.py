"""What a user reads: the table, the JSON, module paths and source lines."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.report import Miss, Report, Rewrite
from mhf_compile.report.data import Outcome
from mhf_compile.report.describe import plain
from mhf_compile.report.equation import Axis, Entry, Equation, Position, Term
from mhf_compile.report.names import megabytes
from mhf_compile.report.text import table
from mhf_compile.tape.source import module_of, source_of
from tests.programs import D, F, H


def copy_of(tensor: str) -> Equation:
    """The equation of a result that is a tensor's entries."""
    index = (Position(((1, Axis("t")),)),)
    return Equation(Entry("o", index), (Term((Entry(tensor, index),)),))


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
    notation=copy_of("q"),
)
MISS = Miss("flash_mhf", "", "model.py:40", "it is used elsewhere")


def lines_of(report: Report, equations: bool = False) -> list[str]:
    return [" ".join(line.split()) for line in report.text(equations).splitlines()]


def test_the_table() -> None:
    short = replace(REWRITE, module="ffn", tokens=64, proof="exact", saved_bytes="8*s0")
    report = Report((REWRITE, short), (MISS,), ("all is well",))
    assert lines_of(report) == [
        "2 of 3 feed-forwards rewritten, each to one fused call; at least 3.5 MiB less kept for the backward",
        "module N H Hk E D F O dtype saved proof source",
        "layers.0.ffn s0*s1 8 2 11 96 256 128 bfloat16 3.5 MiB exact, 8 tokens model.py:12",
        "ffn 64 8 2 11 96 256 128 bfloat16 8*s0 bytes exact model.py:12",
        "not rewritten: model.py:40",
        "it is used elsewhere",
        "note: all is well",
    ]
    lines = str(report).splitlines()
    assert (
        len({line.index("model.py:12") for line in lines[2:4]} | {lines[1].index("source")}) == 1
    )  # aligned


def test_what_is_no_feed_forward_is_shown_where_it_is_asked_for() -> None:
    other = Miss("flash_mhf", "t", "model.py:50", "it is returned before a product with values")
    report = Report((REWRITE,), (MISS,), others=(other, other))
    assert lines_of(report)[0].startswith("1 of 2 feed-forwards rewritten")
    assert report.text(others=True).removeprefix(report.text()).splitlines() == [
        "",
        "no feed-forward: t (2 times), model.py:50",
        "    it is returned before a product with values",
    ]
    (shown,) = json.loads(Report(others=(other,)).to_json())["others"]
    assert Miss(**shown) == other
    assert "no feed-forward found" in str(Report(others=(other,)))


def test_columns_that_say_nothing_are_left_out() -> None:
    plain_heads = replace(REWRITE, module="", kv_heads=8, out_dim=96, saved_bytes=0)
    assert lines_of(Report((plain_heads,)))[:2] == [
        "1 of 1 feed-forwards rewritten, each to one fused call",
        "N H E D F dtype saved proof source",
    ]
    other = replace(plain_heads, pattern="another", kv_heads=4)
    assert "N H Hk E D F dtype saved proof op source" in lines_of(Report((plain_heads, other)))


def test_layers_that_are_alike_are_one_line() -> None:
    layers = [replace(REWRITE, module=f"layers.{n}.ffn", notation=copy_of(f"{n}.k")) for n in range(32)]
    other = replace(layers[7], heads=4)
    misses = [
        Miss("flash_mhf", f"layers.{n}.mlp", "model.py:40", "the activation hidden is returned", "do not")
        for n in range(3)
    ]
    report = Report((*layers[:7], other, *layers[8:]), (*misses, replace(misses[0], source="model.py:50")))
    assert lines_of(report, equations=True)[2:] == [
        "layers.0-6,8-31.ffn (31 modules) "
        "s0*s1 8 2 11 96 256 128 bfloat16 31 x 3.5 MiB exact, 8 tokens model.py:12",
        "layers.7.ffn s0*s1 4 2 11 96 256 128 bfloat16 3.5 MiB exact, 8 tokens model.py:12",
        "read: layers.0-6,8-31.ffn (31 modules)",
        "o[t] = 0.k[t]",
        "read: layers.7.ffn",
        "o[t] = 7.k[t]",
        "not rewritten: layers.0-2.mlp (3 modules), model.py:40",
        "the activation hidden is returned",
        "what to change: do not",
        "not rewritten: layers.0.mlp, model.py:50",
        "the activation hidden is returned",
        "what to change: do not",
    ]


def test_a_module_that_runs_again_and_again() -> None:
    assert lines_of(Report((), (MISS, MISS)))[1] == "not rewritten: (2 times), model.py:40"
    inside = replace(MISS, module="cell")
    assert lines_of(Report((), (inside, inside)))[1] == "not rewritten: cell (2 times), model.py:40"


def test_sentences_do_not_pass_the_width() -> None:
    long = replace(MISS, reason="why " * 60, advice="what " * 60)
    many = replace(copy_of("q"), terms=copy_of("q").terms * 60)
    report = Report((replace(REWRITE, notation=many),), (long,), ("note " * 60,))
    lines = report.text(equations=True).splitlines()
    assert max(len(line) for line in lines[3:]) <= 110
    assert " ".join(lines).count("why") == 60


def test_a_report_of_nothing() -> None:
    assert str(Report()) == "no feed-forward found"
    empty = {"rewrites": [], "misses": [], "notes": [], "modules": [], "others": []}
    assert json.loads(Report().to_json()) == empty


def test_json_round_trip() -> None:
    unread = replace(REWRITE, notation=None)
    report = Report((REWRITE, unread), (MISS, MISS), ("a note",), (("", "Model"), ("ffn", "Heads")))
    read = json.loads(report.to_json())
    notations = [rewrite.pop("notation") for rewrite in read["rewrites"]]
    assert [rewrite.pop("equation") for rewrite in read["rewrites"]] == ["o[t] = q[t]", ""]
    assert Report((unread, unread), *(getattr(report, name) for name in ("misses", "notes", "modules"))) == (
        Report(
            tuple(Rewrite(**r) for r in read["rewrites"]),
            tuple(Miss(**m) for m in read["misses"]),
            tuple(read["notes"]),
            tuple(map(tuple, read["modules"])),
        )
    )
    index = [{"digits": [[1, {"role": "t", "number": 0}]], "offset": 0}]
    term = {"factors": [{"tensor": "q", "index": index}], "summed": [], "coefficient": "1"}
    assert notations == [{"result": {"tensor": "o", "index": index}, "terms": [term], "phi": ""}, None]


def test_json_has_all_that_is_held() -> None:
    read = json.loads(Report((REWRITE,), (MISS,)).to_json())
    assert set(read) == {field.name for field in fields(Outcome)}
    assert set(read["rewrites"][0]) == {field.name for field in fields(Rewrite)} | {"equation"}
    assert set(read["misses"][0]) == {field.name for field in fields(Miss)}


def test_rows_are_aligned_and_not_padded_at_the_end() -> None:
    assert table([("a", 1), ("bcd", 22), ("", "x")]) == ["a    1", "bcd  22", "     x"]


def test_sizes_for_people() -> None:
    import sympy

    shown = ["0.0 MiB", "1.5 KiB", "1.0 MiB", "8*s0 bytes"]
    assert [megabytes(count) for count in (0, 1536, 2**20, "8*s0")] == shown
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
    assert {rewrite.source for rewrite in found} == {f"tests/report/test_report.py:{LINE}"}


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


def test_an_activation_is_its_parent_s() -> None:
    torch._dynamo.reset()
    (miss,) = mhf_compile.explain(nn.Sequential(Activated()), torch.randn(3, 16)).misses
    assert miss.module == "0"


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


def test_nothing_that_was_printed_is_read_back() -> None:
    """No regular expressions outside of kernels/, where one makes a file's name of a device's."""
    house = Path(mhf_compile.__file__).parent
    imports = {
        (path.relative_to(house).parts[0], name)
        for path in house.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        )
    }
    assert ("report", "mhf_compile.report.mathml") in imports
    assert {room for room, name in imports if name == "re"} <= {"kernels"}
