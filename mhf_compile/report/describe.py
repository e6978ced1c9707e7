"""Say of what was found in a graph what a report holds, which keeps nothing of the graph alive."""

from __future__ import annotations

from collections import Counter

from mhf_compile import notation
from mhf_compile.matching.match import Match, Unmatched
from mhf_compile.notation import Func, Leaf, Size, Tensor
from mhf_compile.notation.fold import parts
from mhf_compile.report.data import Miss, Rewrite
from mhf_compile.report.equation import PHI, Axis, Entry, Equation, Function, Position, Term
from mhf_compile.report.names import Path, condensed, shortest
from mhf_compile.rewriting.region import Region
from mhf_compile.tape.source import module_of, source_of

INNER = "i"
"""The letter of axes that have no role: those that are summed in what is added to a match."""


def rewrite_of(match: Match, region: Region, proof: str) -> Rewrite:
    """What the report says of a match that was replaced."""
    anchor = min(match.anchors, key=lambda value: value.time)
    node = anchor.op.node if anchor.op is not None else None
    return Rewrite(
        pattern=match.pattern.name,
        module=module_of(node),
        source=source_of(node),
        **{field: plain(match.unification.size(*roles)) for field, roles in match.pattern.fields.items()},
        dtype=str(region.dtype).removeprefix("torch."),
        proof=proof,
        saved_bytes=plain(region.saved),
        notation=equation_of(match),
    )


def miss_of(unmatched: Unmatched) -> Miss:
    """What the report says of an activation that was left alone."""
    node = unmatched.anchor.op.node if unmatched.anchor.op is not None else None
    why = unmatched.why
    return Miss(unmatched.pattern.name, module_of(node), source_of(node), why.reason, why.advice)


def plain(size: Size) -> int | str:
    """A size as a number, or the text of a symbolic one."""
    return size if isinstance(size, int) else str(size)


def equation_of(match: Match) -> Equation:
    """What was read, its axes named by their roles and its tensors as the user knows them."""
    root = Leaf(match.root, match.index)
    terms = (match.term, *match.addends)
    leaves = [root, *(leaf for term in terms for leaf in notation.leaves(term.factors))]
    names = names_of([leaf.value for leaf in leaves])
    axes = _axes_of(match)
    activation = match.unification.activation
    phi = "" if activation in match.pattern.activations else activation

    def axis(given: notation.Axis) -> Axis:
        inner = sum(axis.role == INNER for axis in axes.values())
        return axes.setdefault(given, Axis(INNER, inner + 1))

    def entry(leaf: Leaf) -> Entry:
        positions = (
            Position(tuple((plain(stride), axis(a)) for stride, a in index.digits), plain(index.offset))
            for index in leaf.index
        )
        return Entry(names[leaf.value], tuple(positions))

    def factor(given: notation.Factor) -> Entry | Function:
        match given:
            case Leaf():
                return entry(given)
            case Func(name, arguments):
                sums = (
                    (Term((entry(a),)),) if isinstance(a, Leaf) else tuple(map(term, a)) for a in arguments
                )
                return Function(PHI if phi and name == phi else name, tuple(sums))
        raise AssertionError(f"{given} in a match")

    def term(given: notation.Term) -> Term:
        return Term(tuple(map(factor, given.factors)), tuple(map(axis, given.bound)), given.coefficient)

    return Equation(entry(root), tuple(map(term, terms)), phi)


def _axes_of(match: Match) -> dict[notation.Axis, Axis]:
    """The axes of a match that have a role."""
    axes = {
        axis: Axis(role, number if len(same) > 1 else 0)
        for role, same in match.unification.roles.items()
        for number, axis in enumerate(same, start=1)
    }
    for leaf in notation.leaves(match.term.factors):  # the up score has an axis of its own for d
        for own in (own for own in match.leaves if own.value == leaf.value):
            for ours, theirs in zip(own.index, leaf.index, strict=True):
                for known, other in zip(ours.axes, theirs.axes, strict=False):
                    if known in axes:
                        axes.setdefault(other, axes[known])
    return axes


def names_of(tensors: list[Tensor]) -> dict[Tensor, str]:
    """Names of tensors, which are the shortest ends of their paths that differ; the same path is numbered."""
    paths = {tensor: _path_of(tensor) for tensor in tensors}
    names = {tensor: shortest(path, paths.values()) for tensor, path in paths.items()}
    shared, count = Counter(names.values()), Counter[str]()
    for tensor, name in names.items():
        if shared[name] > 1:
            count[name] += 1
            names[tensor] = f"{name}_{count[name]}"
    return names


def _path_of(tensor: Tensor) -> Path:
    """The path of a value, or of a stack of them."""
    paths = condensed(value.path for value in parts(tensor))
    return paths[0] if len(paths) == 1 else (f"stack({','.join(map('.'.join, paths))})",)
