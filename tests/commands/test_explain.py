"""The command `explain`: what it takes, what it prints, how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import torch

from tests.commands.running import Done, run_command

SOURCE = """
import torch
from torch import nn
from torch.nn.functional import silu


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.k, self.u, self.v = (nn.Parameter(torch.randn(3, 24, 16)) for _ in range(3))

    def forward(self, q, options=None):
        gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (self.k, self.u))
        return torch.einsum("bthf,hfo->btho", silu(gate) * up, self.v)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


QUERY = torch.randn(2, 5, 3, 16)


def model():
    return nn.Sequential(Heads(), Heads(), Dense()), (QUERY,)


class Factories:
    @staticmethod
    def keywords():
        return Heads(), {"q": QUERY, "options": {}}


def both():
    return Heads(), ((QUERY,), {"options": {}})


def broken():
    def program(q):
        raise LookupError("the model's own fault")

    return program, (QUERY,)


def fails():
    raise LookupError("the factory's own fault")


def alone():
    return Heads()


def three():
    return Heads(), (QUERY,), {}


def uncallable():
    return "model", (QUERY,)


def tensor():
    return Heads(), QUERY
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with programs in it, in which the command runs as in a process of its own."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "small.py").write_text(SOURCE)
    (tmp_path / "package" / "beside.py").write_text("from small import model")
    (tmp_path / "package" / "wrong.py").write_text("import a_module_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    path, modules = sys.path[:], set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)) or name == "package":
            del sys.modules[name]


class Explain(Protocol):
    """Runs the command with some arguments."""

    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str]) -> Explain:
    return partial(run_command, capsys, "explain")


def test_the_table_and_the_page(folder: Path, explain: Explain) -> None:
    done = explain("package.small:model", "--equations", "--html", "page.html")
    assert (done.status, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0].startswith("2 of 3 feed-forwards rewritten")
    assert lines[2].startswith("0-1 (2 modules) 10 3 1 16 24 float32 2 x ")
    assert lines[2].endswith(" exact package/small.py:14")
    assert "[b,t,h,o] = sum_{f} silu(" in done.stdout
    assert "not rewritten: 2, package/small.py:23" in lines
    assert 'what to change: set "flashmhf.dense" to "always" to rewrite it all the same' in lines
    assert "2 of 3" in (folder / "page.html").read_text("utf-8")


def test_what_is_no_feed_forward_is_shown_on_demand(folder: Path, explain: Explain) -> None:
    (folder / "ends.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def model():\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (torch.randn(3, 4),)\n"
    )
    assert explain("ends:model").stdout == "no feed-forward found\n"
    assert "no feed-forward: " in explain("ends:model", "--all").stdout
    (other,) = json.loads(explain("ends:model", "--json").stdout)["others"]
    assert other["reason"] == "it is returned before a product with values"


def test_json_alone_is_printed(explain: Explain) -> None:
    done = explain("package/small.py:model", "--json", "--dense", "always")
    report = json.loads(done.stdout)
    assert [rewrite["module"] for rewrite in report["rewrites"]] == ["0", "1", "2"]
    assert report["modules"][0] == ["", "Sequential"]


@pytest.mark.parametrize(
    "spec", ["package.small:Factories.keywords", "package/small.py:both", "package/beside.py:model"]
)
def test_ways_to_name_a_factory_and_to_give_inputs(explain: Explain, spec: str) -> None:
    done = explain(spec)
    assert done.status == 0, done.stderr
    assert "feed-forwards rewritten" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(2, 0), (3, 1)])
def test_require(explain: Explain, number: int, status: int) -> None:
    done = explain("package.small:model", "--require", str(number))
    assert done.status == status
    assert "2 of 3 feed-forwards rewritten" in done.stdout
    said = "python -m mhf_compile explain: 2 of 3 were rewritten, --require asks for 3\n"
    assert done.stderr == said * status


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["small"], "'small' is not of the form package.module:name or path/to/file.py:name"),
        ([":model"], "':model' is not of the form package.module:name or path/to/file.py:name"),
        (["package/none.py:model"], "there is no file package/none.py"),
        (["none:model"], "there is no module none, seen from "),
        (["package.none:model"], "there is no module package.none, seen from "),
        (["package.small.deep:model"], "there is no module package.small.deep, seen from "),
        ([".small:model"], ".small is a relative name"),
        (["package.small:none"], "package.small has no none"),
        (["package.small:model.none"], "package.small has no model.none"),
        (["package.small:QUERY"], "package.small:QUERY is not callable: it is of type Tensor"),
        (
            ["package.small:alone"],
            "package.small:alone returned something of type Heads; it is to return (model, inputs)",
        ),
        (["package.small:three"], "returned something of type tuple and length 3"),
        (["package.small:uncallable"], "returned a model that is not callable: it is of type str"),
        (
            ["package.small:tensor"],
            "returned inputs of type Tensor; they are a tuple, a dict, or (tuple, dict)",
        ),
        (["package.small:model", "--html", "none/page.html"], "cannot write none/page.html: No such file"),
    ],
)
def test_wrong_specs_are_one_line(explain: Explain, arguments: list[str], said: str) -> None:
    done = explain(*arguments)
    assert done.status == 2
    assert done.stderr.startswith("python -m mhf_compile explain: error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("spec", "error", "fault"),
    [
        ("package.small:broken", LookupError, "the model's own fault"),
        ("package.small:fails", LookupError, "the factory's own fault"),
        ("package.wrong:model", ModuleNotFoundError, "No module named 'a_module_that_is_not_there'"),
    ],
)
def test_errors_of_the_program_are_let_through(
    explain: Explain, spec: str, error: type[Exception], fault: str
) -> None:
    with pytest.raises(error, match=fault):
        explain(spec)


def test_from_where_it_is_called(folder: Path) -> None:
    """Modules are looked for in the working directory, also where Python itself does not."""
    command = [sys.executable, "-m", "mhf_compile", "explain", "package.small:model", "--require", "3"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 1
    assert "2 of 3 feed-forwards rewritten" in done.stdout
    assert "--require asks for 3" in done.stderr


def test_help_has_an_example_that_runs(folder: Path, explain: Explain) -> None:
    text = explain("--help").stdout
    program = [line.removeprefix("    ") for line in text.partition("small.py:\n")[2].splitlines()]
    commands = [line for line in program if line.startswith("python -m mhf_compile explain ")]
    source = "\n".join(program[: program.index(commands[0])]).replace('CONFIGS["128M"]', "CONFIG")
    source = source.replace(
        "def small", 'from dataclasses import replace\nCONFIG = replace(CONFIGS["128M"], layers=1)\ndef small'
    )
    (folder / "small.py").write_text(source)
    for command in commands:
        done = explain(*command.split()[4:])
        assert done.status == 0, done.stderr
        assert "1 of 1 feed-forwards rewritten" in done.stdout
    assert (folder / "small.html").exists()
