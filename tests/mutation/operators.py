"""Mutations of a module's source: every small change of its syntax tree that may change what it computes.

A mutation changes an operator, a comparison, a condition, a constant, an index, the order of arguments, or
drops a statement, a branch, a filter, an operand, an argument or an entry. Left as they are: annotations,
decorators, docstrings, imports, assertions, ``__repr__`` and ``__str__``, calls of a logger, f-strings and
strings with a space, which are words for a reader, and module-level names of types.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

Way = tuple[tuple[str, int | None], ...]
"""The way from a tree's root to a node: names of fields, and positions where a field is a list."""

SHOWN = 12
"""A change of fewer characters is shown with the expression around it."""


@dataclass(frozen=True)
class Mutation:
    """A change of one node.

    Attributes:
        module: the module's name.
        function: the innermost function, with the classes and functions it is in; "" outside of functions.
        line: where the statement starts that it is in.
        before: what is changed, as text.
        after: what it becomes.
        path: where the node is.
        variant: which of the node's variants it becomes.
        number: how many like it come before it in its function.
        imported: whether it is run when the module is imported, as what is in a class but in no function.
    """

    module: str
    function: str
    line: int
    before: str
    after: str
    path: Way
    variant: int
    number: int = 0
    imported: bool = False

    @property
    def key(self) -> str:
        """What names it, wherever its lines are."""
        again = f" #{self.number + 1}" if self.number else ""
        return f"{self.module}:{self.function}: {self.before} -> {self.after}{again}"

    def __str__(self) -> str:
        return f"{self.module.partition('.')[2]}:{self.line} {self.function}: {self.before} -> {self.after}"


def mutations(module: str, source: str) -> list[Mutation]:
    """All mutations of a module, in the order of its source."""
    found = list(_mutations(module, ast.parse(source), (), "", None, []))
    seen: Counter[str] = Counter()
    numbered = []
    for mutation in found:
        numbered.append(replace(mutation, number=seen[mutation.key]))
        seen[mutation.key] += 1
    return numbered


def drawn(among: Sequence[Mutation], count: int, seed: int) -> list[Mutation]:
    """Some mutations, of as many functions as there are: of each function one before another of any.

    What is drawn hangs on the mutation alone: a change of other functions draws no others of this one.
    """

    def rank(mutation: Mutation) -> str:
        return hashlib.sha256(f"{seed} {mutation.key}".encode()).hexdigest()

    ordered = sorted(among, key=rank)
    firsts = list({(m.module, m.function): m for m in reversed(ordered)}.values())
    taken = set(firsts)
    return [*sorted(firsts, key=rank), *(m for m in ordered if m not in taken)][:count]


def mutated(mutation: Mutation, source: str) -> ast.Module:
    """A module with a mutation."""
    tree = ast.parse(source)
    *way, (name, position) = mutation.path
    parent: Any = tree
    for field, number in way:
        parent = getattr(parent, field) if number is None else getattr(parent, field)[number]
    node = getattr(parent, name) if position is None else getattr(parent, name)[position]
    new = list(_variants(node, parent))[mutation.variant]
    _put(parent, name, position, new)
    return ast.fix_missing_locations(tree)


def marked(module: str, source: str) -> ast.Module:
    """A module that tells each statement in a function that runs: ``__ran__`` of its name and a line."""
    tree = ast.parse(source)

    def mark(line: int) -> ast.stmt:
        call = ast.Call(ast.Name("__ran__", ast.Load()), [ast.Constant(module), ast.Constant(line)], [])
        return ast.Expr(call)

    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list) and not isinstance(node, (ast.Module, ast.ClassDef)):
                marks = [s for statement in statements for s in (mark(statement.lineno), statement)]
                own = [mark(node.lineno)] if isinstance(node, ast.FunctionDef) else []  # of its defaults
                setattr(node, name, [*own, *marks])
    return ast.fix_missing_locations(tree)


# -- where --------------------------------------------------------------------------------------------------

_NO_RESULT = ("annotation", "returns", "decorator_list", "type_comment", "type_params")
_WORDS = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)


def _mutations(
    module: str, node: ast.AST, path: Way, function: str, statement: ast.stmt | None, above: list[ast.AST]
) -> Iterator[Mutation]:
    """The mutations below a node, with the function and statement that it is in and the nodes above it."""
    for name, value in ast.iter_fields(node):
        if name in _NO_RESULT:
            continue
        for position, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _is_left(child, function):
                continue
            inside = child if isinstance(child, ast.stmt) else statement
            named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            within = f"{function}.{child.name}".lstrip(".") if named else function  # type: ignore[attr-defined]
            where = (*path, (name, position))
            for number, new in enumerate(_variants(child, node)):
                before, after = _texts(child, new, name, position, [*above, node])
                if before != after and inside is not None:
                    imported = not any(isinstance(outer, ast.FunctionDef) for outer in (*above, node))
                    yield Mutation(
                        module, within, inside.lineno, before, after, where, number, imported=imported
                    )
            yield from _mutations(module, child, where, within, inside, [*above, node])


def _is_left(node: ast.AST, function: str) -> bool:
    """Whether nothing below a node is mutated."""
    match node:
        case ast.FunctionDef(name="__repr__" | "__str__"):
            return True
        case ast.Expr(ast.Constant()) | ast.Expr(ast.Call(ast.Attribute(ast.Name("log" | "logger")))):
            return True
        case ast.If(ast.Name("TYPE_CHECKING")) | ast.keyword("strict"):
            return True
        case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)):
            return not function and not name.isupper()
    return isinstance(node, _WORDS)


def _texts(
    old: ast.AST, new: ast.AST, name: str, position: int | None, above: list[ast.AST]
) -> tuple[str, str]:
    """What a change replaces and by what, with the expression around it where it is short."""
    before = context = old
    after = new
    for parent in reversed(above):
        if len(_text(before)) >= SHOWN or isinstance(context, ast.stmt) or isinstance(parent, ast.stmt):
            break
        if isinstance(parent, ast.Module):
            break
        if context is old:
            before = parent
            after = copy.copy(parent)
            _put(after, name, position, new)
        else:
            after = _replaced(parent, before, after)
            before = parent
        context = parent
    return _text(before), _text(after)


def _replaced(parent: ast.AST, child: ast.AST, new: ast.AST) -> ast.AST:
    """A copy of a node with another child."""
    result = copy.copy(parent)
    for name, value in ast.iter_fields(parent):
        if value is child:
            setattr(result, name, new)
        elif isinstance(value, list):
            setattr(result, name, [new if entry is child else entry for entry in value])
    return result


def _put(parent: ast.AST, name: str, position: int | None, new: ast.AST) -> None:
    """Set a field, or an entry of its list, which is copied."""
    if position is None:
        setattr(parent, name, new)
    else:
        setattr(parent, name, [*(entries := getattr(parent, name))[:position], new, *entries[position + 1 :]])


def _text(node: ast.AST) -> str:
    """A node as one line; of a compound statement its head."""
    match node:
        case ast.If(test) | ast.While(test):
            return f"if {ast.unparse(test)}"
        case ast.Match(subject, cases):
            return f"match {ast.unparse(subject)}: {' | '.join(map(_text, cases))}"
        case ast.match_case(pattern, guard):
            return f"case {ast.unparse(pattern)}" + (f" if {ast.unparse(guard)}" if guard else "")
    return " ".join(ast.unparse(node).split())


# -- what ---------------------------------------------------------------------------------------------------

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list"}
_METHODS = {"startswith": "endswith", "endswith": "startswith", "issubset": "issuperset"}


def _variants(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    match node:
        case ast.Compare(_, ops, _):
            for number, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield _with(node, ops=[*ops[:number], other(), *ops[number + 1 :]])
        case ast.BinOp(left, op, _):
            yield _with(node, op=_ARITHMETIC[type(op)]())
            yield left
        case ast.BoolOp(op, values):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for number in range(len(values)):
                rest = _without(values, number)
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.If() | ast.While():
            yield _with(node, test=ast.Constant(False))
            if isinstance(node, ast.If):
                yield _with(node, test=ast.Constant(True))
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.comprehension(ifs=ifs):
            for number in range(len(ifs)):
                yield _with(node, ifs=_without(ifs, number))
        case ast.match_case(guard=ast.expr()):
            yield _with(node, guard=None)
        case ast.Match(cases=cases) if len(cases) > 1:
            for number in range(len(cases)):
                yield _with(node, cases=_without(cases, number))
        case ast.Constant(value):
            yield from map(ast.Constant, _constants(value))
        case ast.Slice(lower, upper):
            if lower is not None:
                yield _with(node, lower=None)
            if upper is not None:
                yield _with(node, upper=None)
        case ast.Subscript(slice=ast.UnaryOp(ast.USub(), ast.Constant(1)), ctx=ast.Load()):
            yield _with(node, slice=ast.Constant(0))
        case ast.Call():
            yield from _calls(node)
        case ast.Tuple(elts, ast.Load()) | ast.List(elts, ast.Load()) if len(elts) > 1:
            if not _has_no_order(parent) and not any(isinstance(entry, ast.Starred) for entry in elts[:2]):
                yield _with(node, elts=[elts[1], elts[0], *elts[2:]])
            if all(isinstance(entry, ast.Constant) for entry in elts):
                yield _with(node, elts=elts[:-1])
        case ast.Set(elts) if len(elts) > 1:
            yield _with(node, elts=elts[:-1])
        case ast.Dict(keys, values) if len(keys) > 1:
            yield _with(node, keys=keys[:-1], values=values[:-1])
        case ast.Return() if not isinstance(parent, (ast.FunctionDef, ast.Lambda)):
            yield ast.Pass()
        case ast.AugAssign(op=op):
            yield _with(node, op=_ARITHMETIC[type(op)]())
            yield ast.Pass()
        case ast.Expr() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def _has_no_order(parent: ast.AST) -> bool:
    """Whether what is in a node is compared with a value, or made a set."""
    match parent:
        case ast.Compare() | ast.Call(ast.Name("set" | "frozenset")):
            return True
    return False


def _constants(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        yield value - 1
    elif isinstance(value, str) and value and " " not in value:
        yield ""


def _calls(call: ast.Call) -> Iterator[ast.Call]:
    """A call with two arguments swapped, without one that has a name, of another function."""
    ordered = not (isinstance(call.func, ast.Name) and call.func.id in ("isinstance", "getattr"))
    for number, (one, other) in enumerate(pairwise(call.args)):
        if ordered and not isinstance(one, ast.Starred) and not isinstance(other, ast.Starred):
            yield _with(call, args=[*call.args[:number], other, one, *call.args[number + 2 :]])
    for number, keyword in enumerate(call.keywords):
        if keyword.arg not in ("strict", None):
            yield _with(call, keywords=_without(call.keywords, number))
    match call.func:
        case ast.Name(name) if name in _FUNCTIONS:
            keywords = [] if _FUNCTIONS[name] == "list" else call.keywords
            yield _with(call, func=ast.Name(_FUNCTIONS[name], ast.Load()), keywords=keywords)
        case ast.Attribute(attr=name) if name in _METHODS:
            yield _with(call, func=_with(call.func, attr=_METHODS[name]))


def _with(node: Any, **fields: object) -> Any:
    """A copy of a node with other fields."""
    result = copy.copy(node)
    for name, value in fields.items():
        setattr(result, name, value)
    return result


def _without(entries: Sequence[Any], number: int) -> list[Any]:
    return [*entries[:number], *entries[number + 1 :]]
