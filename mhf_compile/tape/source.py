"""What a node of a graph is in the user's program: its module, its line, the name of its value."""

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


def path_of(node: fx.Node) -> tuple[str, ...]:
    """The user's name of what a node gives, as a path such as ("layers", "3", "weight").

    That of an input or attribute is where it was read from, from the model on; that of a result the variable
    it was assigned to, or else the operation, without the number that tells such names of a graph apart.
    """
    if node.op == "get_attr":
        return tuple(str(node.target).split("."))
    if node.op == "placeholder":
        return path_in_self(node) or tuple(_path(_dynamo_source(node))) or (str(node.target),)
    return (_without_number(node.name),)


def is_named(node: fx.Node) -> bool:
    """Whether the user has a name for what a node gives; else its name is that of the operation."""
    operation = str(getattr(node.target, "__name__", node.target))
    return not node.op.startswith("call_") or _without_number(node.name).strip("_") != operation.strip("_")


def _without_number(name: str) -> str:
    base, _, number = name.rpartition("_")
    return base if base and number.isdecimal() else name


def path_in_self(node: fx.Node) -> tuple[str, ...]:
    """The path from ``self`` to an input of a Dynamo graph; () of an input from elsewhere."""
    root, *path = *_path(_dynamo_source(node)), ""
    return tuple(path[:-1]) if root == "self" else ()


def _dynamo_source(node: fx.Node) -> object:
    return getattr(node, "_dynamo_source", None)


_CONTAINERS = ("_modules", "_parameters", "_buffers", "cell_contents")
"""Attributes that Dynamo goes through and a user does not write."""


def _path(source: object) -> list[str]:
    """The names on the way to a Dynamo source, a chain of attributes and items of a local or a global."""
    path: list[object] = []
    while source is not None:
        root = (getattr(source, name, "") for name in ("freevar_name", "local_name", "global_name"))
        if name := next(filter(None, root), ""):  # a global that Dynamo made stands for an imported module
            path += [name] if not name.startswith("__import_") else []
            break
        path += [getattr(source, name) for name in ("member", "index", "idx_key") if hasattr(source, name)]
        source = getattr(source, "base", None)
    return [str(part) for part in reversed(path) if isinstance(part, (str, int)) and part not in _CONTAINERS]
