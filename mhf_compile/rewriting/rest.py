"""A product of which a match stands for some columns, and the program needs others: these stay a product.

So one Linear may give both the queries of an attention and the gate of a feed-forward, which are then split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mhf_compile import notation
from mhf_compile.matching.match import Match
from mhf_compile.matching.normal_form import score
from mhf_compile.matching.reasons import NoMatch
from mhf_compile.notation import Axis, Index, Leaf, Size, Term, Unreadable
from mhf_compile.notation.fold import parts
from mhf_compile.reading.reader import Reader, entry_axes
from mhf_compile.reading.rules import Kind
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value

Indices = tuple[Index, ...]


@dataclass(frozen=True)
class Columns:
    """A tensor of the rest of a product: the shape, and which value it is a part of."""

    whole: Value
    shape: tuple[Size, ...]


@dataclass(frozen=True, eq=False)
class Rest:
    """What is needed of a product beside the part that a match stands for.

    Attributes:
        columns: the tensor of it.
        index: the index of its entries.
        terms: what an entry is: products of leaves.
        wanted: the values that something outside of the region reads: of each the index of its entries, and
            the entry of the columns that it is.
        between: the values by which these are read, with theirs, each with its index.
    """

    columns: Columns
    index: Indices
    terms: tuple[Term, ...]
    wanted: Mapping[Value, tuple[Indices, Leaf]]
    between: Mapping[Value, Indices]

    @property
    def leaves(self) -> Iterator[Leaf]:
        """The leaves that it is computed of."""
        for term in self.terms:
            yield from notation.leaves(term.factors)


def rests(
    match: Match, tape: Tape, inside: Iterable[Value], escaping: Mapping[Value, Sequence[Value]]
) -> list[Rest]:
    """What stays of the values of a region of which only other parts are needed elsewhere.

    Args:
        match: the match.
        tape: where it is.
        inside: the values that are not there without the region.
        escaping: values of the region, each with what is computed of it outside.
    """
    found: list[Rest] = []
    for whole, others in escaping.items():
        with contextlib.suppress(Unreadable, NoMatch):
            found += list(_Splitter(match, tape, set(inside), whole).rests(others))
    return found


class _Splitter:
    """Tells which columns of a value a match stands for, and which are needed elsewhere."""

    def __init__(self, match: Match, tape: Tape, inside: set[Value], whole: Value) -> None:
        self.match = match
        self.tape = tape
        self.inside = inside
        self.whole = whole
        assert match.root.op is not None
        self.reader = Reader(self._preference, match.root.op.state.grad_enabled)
        self.index = tuple(self.reader.axes.current(i) for i in match.visited[whole])
        cut = [d for d, i in enumerate(self.index) if not i.covers(whole.shape[d])]
        if len(cut) != 1 or not isinstance(whole.shape[cut[0]], int):
            raise Unreadable("no columns of it are read")
        (self.dim,) = cut
        self.between: dict[Value, Indices] = {}

    def rests(self, others: Iterable[Value]) -> Iterator[Rest]:
        """What stays of the value, a run of columns at a time. Raises Unreadable where more is needed."""
        op, scope = self.whole.op, self.match.scope
        assert op is not None and op.node is not None and self.match.root.op is not None
        if self.whole in scope.returned or op.node in scope.transformed or op.node in scope.inference:
            raise Unreadable("it is returned, or in a mode of its own")
        if op.state.grad_enabled != self.match.root.op.state.grad_enabled:
            raise Unreadable("grad mode changes")
        read = [self._range(leaf) for leaf in self._read()]
        wanted = dict(found for value in others for found in self._wanted(value, read))
        runs: list[list[Value]] = []
        end = -1
        for value in sorted(wanted, key=lambda value: self._range(wanted[value][1])):
            first, last = self._range(wanted[value][1])
            if not runs or first > end + 1:
                runs.append([])
            runs[-1].append(value)
            end = max(end, last)
        for run in runs:
            yield self._rest({value: wanted[value] for value in run})

    def _preference(self, value: Value) -> int:
        at = self.match.scope, self.whole.time
        return int(value.node_at(*at) is not None or value.attribute_at(*at) is not None)

    def _read(self) -> Iterator[Leaf]:
        """The entries of the value that the match reads."""
        for op in self.whole.users:
            for value in op.outputs:
                if value in self.match.visited:
                    yield self._entry(value, entry_axes(value))[0]

    def _entry(self, value: Value, index: Indices) -> tuple[Leaf, Indices]:
        """The entry of the whole that an entry of one of its parts is, and the index of the latter.

        Raises Unreadable where it is no rearrangement.
        """
        leaf, path = Leaf(value, index), list[Leaf]()
        while leaf.value is not self.whole:
            assert isinstance(leaf.value, Value)
            rule = self.reader.rule(leaf.value)
            terms = self.reader.definition(leaf) if rule is not None and rule.kind is Kind.MOVE else None
            match terms:
                case [Term(1, (Leaf() as inner,), ())]:
                    path.append(leaf)
                    leaf = inner
                case _:
                    raise Unreadable(f"{leaf.value} is no part of {self.whole}")
        names = {
            i.axes[0]: own
            for dim, (i, own) in enumerate(zip(leaf.index, self.index, strict=True))
            if dim != self.dim and len(i.axes) == 1 and i == Index.over(i.axes[0])
        }
        self.between |= {
            step.value: tuple(i.substitute(names) for i in step.index)
            for step in path
            if isinstance(step.value, Value)
        }
        entry = Leaf(self.whole, tuple(i.substitute(names) for i in leaf.index))
        for dim, (i, own) in enumerate(zip(entry.index, self.index, strict=True)):
            if dim != self.dim and i != own:
                raise Unreadable(f"{value} is a part of several dimensions")
        return entry, tuple(i.substitute(names) for i in index)

    def _range(self, leaf: Leaf) -> tuple[int, int]:
        """The first and the last column that an entry may be in."""
        index = leaf.index[self.dim]
        if not isinstance(index.offset, int) or not isinstance(index.last, int):
            raise Unreadable("columns at symbolic positions")
        return index.offset, index.last

    def _wanted(
        self, value: Value, read: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[Value, tuple[Indices, Leaf]]]:
        """What something outside reads of a value made of the whole. Raises Unreadable at columns of both."""
        if value not in self.tape.used:
            return
        entry, index = self._entry(value, entry_axes(value))
        first, last = self._range(entry)
        written = any(op.writes is not None and op.writes.storage is value.storage for op in value.users)
        apart = all(last < low or high < first for low, high in read)
        if apart and not written and value.handle.nodes_in(self.match.scope):
            yield value, (index, entry)
            return
        if written or value in self.match.scope.returned:
            raise Unreadable(f"{value} is needed as it is")
        for op in value.users:
            for made in op.outputs:
                yield from self._wanted(made, read)

    def _rest(self, wanted: Mapping[Value, tuple[Indices, Leaf]]) -> Rest:
        """The columns of some values next to each other, as a product of leaves."""
        ranges = [self._range(entry) for _, entry in wanted.values()]
        low, high = min(first for first, _ in ranges), max(last for _, last in ranges)
        run = Axis(high - low + 1)
        index = self._at(self.index, Index.over(run))
        terms = score(Leaf(self.whole, self._at(self.index, Index(low, ((1, run),)))), self.reader)
        for term in terms:
            if not all(isinstance(factor, Leaf) for factor in term.factors):
                raise Unreadable(f"{self.whole} is no product")
        current = self.reader.axes.current
        shape = list(self.whole.shape)
        shape[self.dim] = run.size
        columns = Columns(self.whole, tuple(shape))
        moved: dict[Value, tuple[Indices, Leaf]] = {}
        for value, (own, entry) in wanted.items():
            column = entry.index[self.dim].affine(1, -low)
            within = Leaf(columns, tuple(map(current, self._at(entry.index, column))))
            moved[value] = tuple(map(current, own)), within
        between = {value: tuple(map(current, own)) for value, own in self.between.items()}
        rest = Rest(columns, tuple(map(current, index)), tuple(terms), moved, between)
        for value in (value for leaf in rest.leaves for value in parts(leaf.value)):
            if value in self.inside or not self._preference(value):
                raise Unreadable(f"{value} is not at hand")
        return rest

    def _at(self, index: Indices, column: Index) -> Indices:
        return (*index[: self.dim], column, *index[self.dim + 1 :])
