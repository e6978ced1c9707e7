"""What the README and the documents show: programs run, reports are as printed, links lead somewhere."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import mhf_compile
from mhf_compile.__main__ import main
from mhf_compile.options import PREFIX, Options

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
SESSIONS = [text for language, text in BLOCKS if not language and text.startswith("$ ")]


def without_numbers(text):
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?", "0", text)).strip()


def the(blocks, word):
    """The only block that has a word."""
    (found,) = [block for block in blocks if word in block]
    return found


@pytest.fixture
def no_inductor(monkeypatch):
    """The rewritten graphs run as they are: a C++ compiler takes its time."""
    given = torch.compile

    def quick(model, *, backend, options=None, **others):
        return given(model, backend=backend, options={**(options or {}), "flashmhf.inner": "eager"}, **others)

    monkeypatch.setattr(torch, "compile", quick)
    torch._dynamo.reset()


def printed_report():
    """The command that prints the report of the README's program, and what it prints."""
    command, _, promised = the(SESSIONS, "explain").partition("\n")
    return command.removeprefix("$ python -m mhf_compile "), promised


def test_the_ten_lines(no_inductor, capsys):
    exec(compile(the(PROGRAMS, "last_reports()"), "small.py", "exec"), {"__name__": "__main__"})
    printed, (_, promised) = capsys.readouterr().out, printed_report()
    legend = promised.splitlines()[-1]
    assert without_numbers(printed + legend) == without_numbers(promised)
    (report,) = mhf_compile.last_reports()
    assert (len(report.rewrites), len(report.misses)) == (9, 1)


def test_the_report_is_as_printed(tmp_path, monkeypatch, capsys):
    (tmp_path / "small.py").write_text(the(PROGRAMS, "def small"))
    command, promised = printed_report()
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "small", None)  # the command imports it; afterwards it is gone
    main(command.replace("small.py", str(tmp_path / "small.py")).split())
    printed = capsys.readouterr().out
    assert without_numbers(printed) == without_numbers(promised)
    assert printed.partition(";")[0] == promised.partition(";")[0]


def test_options_are_those_that_there_are():
    named = re.findall(r"^\| `(flashmhf\.\w+)` \| `(.*?)` \|", README, re.MULTILINE)
    assert dict(named) == {
        PREFIX + field.name: repr(field.default).replace("'", '"') for field in fields(Options)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links or document.name == "ecosystem.md"
    for link in links:
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_commands_name_is_there(document):
    text = document.read_text()
    for module in re.findall(r"python -m (benchmarks[.\w]*)", text):
        path = ROOT.joinpath(*module.rstrip(".").split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?\bmake (\w+)\b(?= ARGS|`|  | *#)", text)) <= targets
    for path in re.findall(r"`(tests/[\w/.]+)`|ARGS=(tests/[\w/.]+)", text):
        assert (ROOT / "".join(path)).exists(), path
