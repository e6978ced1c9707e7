"""A report as one HTML page that needs no other file: what was rewritten, what was not, and where it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from mhf_compile.report.data import Miss, Outcome, Rewrite
from mhf_compile.report.equation import Equation
from mhf_compile.report.mathml import mathml
from mhf_compile.report.names import compact, megabytes, total_megabytes
from mhf_compile.report.style import STYLE
from mhf_compile.report.tree import Node, tree


class Html(str):
    """Text that is HTML already; all other text is escaped where it goes into an element."""


def element(name: str, *children: str, **attributes: str) -> Html:
    """An HTML element; ``class_`` is its attribute ``class``."""
    given = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    inner = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{name}{given}>{inner}</{name}>")


def page(outcome: Outcome) -> str:
    """All of it as a page."""
    rewrites, misses = outcome.grouped_rewrites, outcome.grouped_misses
    title = outcome.modules[0][1] if outcome.modules else "Report"
    parts = [
        _head(outcome, title),
        *(element("aside", _sentence(note)) for note in outcome.notes),
        *_section("Rewritten", [_rewrite(f"r{n}", *group) for n, group in enumerate(rewrites)]),
        *_section("Left alone", [_miss(f"m{n}", *group) for n, group in enumerate(misses)]),
        *_section("In no feed-forward", _others(outcome)),
        *_section("Modules", _modules(outcome.modules, rewrites, misses)),
    ]
    head = (
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", f"{title} - mhf_compile"),
        element("style", Html(STYLE)),
    )
    document = element("html", element("head", *head), element("body", element("main", *parts)), lang="en")
    return f"<!doctype html>\n{document}\n"


def _section(title: str, parts: Sequence[Html]) -> list[Html]:
    return [element("section", element("h2", title), *parts)] if parts else []


def _head(outcome: Outcome, title: str) -> Html:
    done, total = len(outcome.rewrites), outcome.total
    if not total:
        return element("header", element("h1", title), element("p", "There is no feed-forward in it."))
    figures = [_figure(f"{done} of {total}", "feed-forwards run as one fused call")]
    saved = total_megabytes(rewrite.saved_bytes for rewrite in outcome.rewrites)
    if saved:
        figures.append(_figure(saved, "less is kept for the backward"))
    share = element("span", style=f"width: {100 * done / total:.2f}%")
    return element(
        "header",
        element("h1", title),
        element("div", *figures, class_="figures"),
        element("div", share, class_="share"),
    )


def _figure(number: str, meaning: str) -> Html:
    return element("p", element("strong", number), " ", element("span", meaning))


# -- rewrites and misses -----------------------------------------------------------------------------------


def _title(name: str, modules: Sequence[str], source: str) -> Html:
    distinct = len(set(modules))
    how_many = f"{distinct} modules" if distinct > 1 else ""
    if distinct < len(modules):
        how_many = f"{len(modules)} times"
    path = compact(modules) or source
    where = element("code", source, class_="source") if path != source else Html()
    return element("h3", element("code", path), " ", element("span", how_many), where, id=name)


def _rewrite(name: str, rewrite: Rewrite, modules: Sequence[str]) -> Html:
    each = " each" if len(modules) > 1 else ""
    sizes = [
        _size("tokens", rewrite.tokens, "bt"),
        _size("heads", rewrite.heads, "h" if rewrite.heads == rewrite.kv_heads else "hg"),
        *([_size("heads of the weights", rewrite.kv_heads, "h")] * (rewrite.heads != rewrite.kv_heads)),
        *([_size("sub-networks", rewrite.subnetworks, "e")] * (rewrite.subnetworks != 1)),
        _size("width", rewrite.width, "f"),
        _size("head width", rewrite.head_dim, "d" if rewrite.head_dim != rewrite.out_dim else "do"),
        *([_size("output width", rewrite.out_dim, "o")] * (rewrite.head_dim != rewrite.out_dim)),
        _size("dtype", rewrite.dtype),
        _size("proof", rewrite.proof),
        *([_size("saved", megabytes(rewrite.saved_bytes) + each)] * (rewrite.saved_bytes != 0)),
    ]
    return element(
        "article",
        _title(name, modules, rewrite.source),
        *([_equation(rewrite.notation)] if rewrite.notation is not None else []),
        element("dl", *sizes),
    )


def _size(meaning: str, value: int | str, axes: str = "") -> Html:
    symbols = Html("<mo>,</mo>".join(element("mi", axis) for axis in axes))
    symbol = [" ", element("math", symbols)] if axes else []
    return element("div", element("dt", meaning, *symbol), element("dd", str(value)))


def _equation(equation: Equation) -> Html:
    maths = (element("math", Html(piece), displaystyle="true") for piece in mathml(equation))
    return element("p", Html(" ".join(maths)), class_="equation")


def _miss(name: str, miss: Miss, modules: Sequence[str]) -> Html:
    parts = [_title(name, modules, miss.source), element("p", _sentence(miss.reason))]
    if miss.advice:
        parts.append(
            element("p", element("b", "What to change"), " ", _sentence(miss.advice), class_="advice")
        )
    return element("article", *parts)


def _others(outcome: Outcome) -> list[Html]:
    """The activations that are in no feed-forward, closed at first."""
    others = [_miss(f"o{n}", *group) for n, group in enumerate(outcome.grouped_others)]
    count = len(outcome.others)
    summary = element("summary", f"{count} activation" + "s" * (count != 1))
    return [element("details", summary, *others)] if others else []


def _sentence(text: str) -> str:
    word = text.partition(" ")[0]
    start = word.capitalize() if word.isalpha() else word  # not a name, such as flashmhf.dense
    return start + text[len(word) :] + "." * (not text.endswith("."))


# -- the modules --------------------------------------------------------------------------------------------


def _modules(
    modules: Sequence[tuple[str, str]],
    rewrites: Sequence[tuple[Rewrite, Sequence[str]]],
    misses: Sequence[tuple[Miss, Sequence[str]]],
) -> list[Html]:
    if not modules:
        return []
    results: dict[str, list[int]] = {}
    for number, (_, paths) in enumerate([*rewrites, *misses]):
        for path in paths:
            results.setdefault(path, []).append(number)
    links = [element("a", "fused", href=f"#r{n}", class_="fused") for n in range(len(rewrites))]
    links += [element("a", "left alone", href=f"#m{n}", class_="alone") for n in range(len(misses))]
    return [element("ul", *_node(tree(modules, results), links), class_="tree")]


def _node(node: Node, links: Sequence[Html]) -> Iterator[Html]:
    times = f" \N{MULTIPLICATION SIGN} {node.times}" if node.times > 1 else ""
    row = [
        *([element("code", node.name), " "] if node.name else []),
        element("span", node.kind + times),
        *(child for number in dict.fromkeys(node.results) for child in (" ", links[number])),
    ]
    if not node.children:
        yield element("li", *row)
        return
    inside = [item for child in node.children for item in _node(child, links)]
    below = any(child.has_results for child in node.children)
    opening = Html("<details open>" if below or not node.name else "<details>")
    yield element("li", opening, element("summary", *row), element("ul", *inside), Html("</details>"))
