"""Where a node of a graph stands in the user's program: its module and its line."""

from __future__ import annotations

from pathlib import Path

from torch import fx


def module_of(node: fx.Node | None) -> str:
    """The path of the module that a node comes from, "" outside; of an ``nn.SiLU`` its parent's."""
    stack = list((node.meta.get("nn_module_stack") or {}).values()) if node is not None else []
    if len(stack) > 1:
        kind = stack[-1][1]  # a class, or from torch.export the name of one
        if str(getattr(kind, "__module__", kind)).startswith("torch.nn.modules.activation"):
            stack.pop()
    if not stack:
        return ""
    path = str(stack[-1][0])
    path = path.removeprefix("L['self']").removeprefix("L['").removeprefix("G['")  # a local, a global
    for old, new in (("._modules['", "."), ("']", ""), ("[", "."), ("]", ""), ("'", "")):
        path = path.replace(old, new)
    return path.strip(".")


def source_of(node: fx.Node | None) -> str:
    """The user's line that a node comes from: "file.py:123"."""
    frames = (
        [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
        if node is not None
        else []
    )
    lines = [frame for frame in frames if frame.startswith("File ")]
    own = [line for line in lines if "/torch/" not in line] or lines
    if not own:
        return ""
    name, number = own[-1].split(", ")[:2]
    path = Path(name[6:-1])
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{number.removeprefix('line ')}"
