"""The page: all of the report is in it, it needs nothing else, and no name in it is markup."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import mhf_compile
from mhf_compile.report import Miss, Report, Rewrite
from mhf_compile.report.page import page
from tests.report.test_report import MISS, REWRITE, Model, copy_of

HOSTILE = "<script>alert('1')</script> & \"quoted\""


class Reader(HTMLParser):
    """Reads a page, and complains of elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "mspace"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


MODULES = (("", "Model"), ("layers", "ModuleList"), ("layers.0", "Layer"), ("layers.0.ffn", "Heads"))
REPORTS = {
    "empty": Report(),
    "function": Report((replace(REWRITE, module=""),)),
    "misses": Report((), (MISS, replace(MISS, reason="another", advice="do"))),
    "model": Report((REWRITE,), (replace(MISS, module="layers.0"),), ("a note",), MODULES),
    "symbolic": Report((replace(REWRITE, saved_bytes="8*s0"),)),
    "others": Report((), (MISS,), others=(MISS, replace(MISS, reason="another"))),
}


@pytest.mark.parametrize("name", REPORTS)
def test_it_needs_nothing_else(name: str) -> None:
    text = page(REPORTS[name])
    reader = Reader(text)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "base", "object"}
    assert not re.search(r"https?:|//|url\(|@import|src=", text)
    targets = [f"#{attributes['id']}" for _, attributes in reader.tags if "id" in attributes]
    assert len(targets) == len(set(targets))
    assert set(reader.attributes("a", "href")) <= set(targets)


def test_all_that_is_reported_is_shown() -> None:
    miss = replace(MISS, module="layers.0", advice="use it once")
    reader = Reader(page(Report((REWRITE,), (miss,), ("a note",), MODULES)))
    for value in (
        *(
            getattr(REWRITE, field.name)
            for field in fields(Rewrite)
            if field.name not in ("pattern", "saved_bytes", "notation")
        ),
        "ot= qt",
        "1 of 2",
        "3.5 MiB",
        "model.py:40",
        "It is used elsewhere.",
        "Use it once.",
        "A note.",
        *(kind for _, kind in MODULES),
    ):
        assert str(value) in reader.text, value
    assert reader.attributes("a", "href") == ["#m0", "#r0"]  # in the tree: the layer, and the network in it


def test_activations_of_no_feed_forward_are_apart() -> None:
    reader = Reader(page(Report((REWRITE,), others=(replace(MISS, reason="it is returned"),))))
    for text in ("In no feed-forward", "1 activation", "It is returned.", "1 of 1"):
        assert text in reader.text
    assert "Left alone" not in reader.text


def test_sentences_begin_with_a_capital_and_names_do_not() -> None:
    reader = Reader(page(Report((), (replace(MISS, reason="Done. ok", advice="mlp.w is written"),))))
    assert "Done. ok." in reader.text
    assert "mlp.w is written." in reader.text


@pytest.mark.parametrize("kind", ["rewrite", "equation", "miss", "note", "module"])
def test_no_name_is_markup(kind: str) -> None:
    texts = ("module", "source", "tokens", "dtype", "proof", "saved_bytes")
    hostile = replace(REWRITE, **dict.fromkeys(texts, HOSTILE))  # type: ignore[arg-type]
    report = {
        "rewrite": Report((hostile,)),
        "equation": Report((replace(REWRITE, notation=copy_of(HOSTILE)),)),
        "miss": Report((), (Miss(*[HOSTILE] * 5),)),
        "note": Report(notes=(HOSTILE,)),
        "module": Report(modules=(("", HOSTILE), (HOSTILE, HOSTILE))),
    }[kind]
    text = page(report)
    reader = Reader(text)
    assert "<script" not in text
    assert HOSTILE in reader.text


def test_a_model_as_it_is_explained(tmp_path: Path) -> None:
    torch._dynamo.reset()
    report = mhf_compile.explain(Model(), torch.randn(2, 3, 3, 16))
    report.save(tmp_path / "report.html")
    reader = Reader((tmp_path / "report.html").read_text("utf-8"))
    assert "4 of 4" in reader.text
    assert "layers.0-1.ffn, tail.0.ffn, named.main.ffn 4 modules" in reader.text
    assert "0-1 Layer \N{MULTIPLICATION SIGN} 2" in reader.text
    assert reader.attributes("a", "href") == ["#r0"] * 3  # the two layers are one in the tree
    assert "math" in {tag for tag, _ in reader.tags}


def test_only_what_leads_to_a_result_is_open() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
    modules = tuple((path, type(module).__name__) for path, module in model.named_modules())
    reader = Reader(page(Report((replace(REWRITE, module="1.0"),), modules=modules)))
    assert ["open" in attributes for tag, attributes in reader.tags if tag == "details"] == [
        True,
        False,
        True,
    ]
