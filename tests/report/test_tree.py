"""The tree of modules: repeated layers are one."""

from __future__ import annotations

from mhf_compile.report.tree import Node, tree

BLOCK = (("", "Block"), (".norm", "Norm"), (".ffn", "Heads"))
MODULES = [
    ("", "Model"),
    ("blocks", "ModuleList"),
    *((f"blocks.{n}{path}", kind) for n in range(6) for path, kind in BLOCK),
    ("head", "Linear"),
]


def outline(node: Node) -> object:
    name = f"{node.name} {node.kind} x{node.times} {list(node.results)}"
    return {name: [outline(child) for child in node.children]} if node.children else name


def block(name: str, times: int, results: object = ()) -> object:
    return {f"{name} Block x{times} []": ["norm Norm x1 []", f"ffn Heads x1 {results}"]}


def test_layers_that_are_alike_are_one() -> None:
    results = {f"blocks.{n}.ffn": [0] for n in range(6)}
    assert outline(tree(MODULES, results)) == {
        " Model x1 []": [{"blocks ModuleList x1 []": [block("0-5", 6, [0])]}, "head Linear x1 []"]
    }


def test_layers_of_another_fate_are_others() -> None:
    results = {f"blocks.{n}.ffn": [1 if n == 2 else 0] for n in range(6)}
    blocks = tree(MODULES, results).children[0]
    assert [outline(child) for child in blocks.children] == [
        block("0-1", 2, [0]),
        block("2", 1, [1]),
        block("3-5", 3, [0]),
    ]


def test_names_that_are_no_numbers_stay_apart() -> None:
    root = tree([("", "Model"), ("a", "Linear"), ("b", "Linear")], {})
    assert [child.name for child in root.children] == ["a", "b"]


def test_what_leads_to_a_result() -> None:
    root = tree(MODULES, {"blocks.3.ffn": [0]})
    assert root.has_results
    assert [child.has_results for child in root.children] == [True, False]
    assert [child.has_results for child in root.children[0].children] == [False, True, False]
    assert not tree(MODULES, {"elsewhere": [0]}).has_results
