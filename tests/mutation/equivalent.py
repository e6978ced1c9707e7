"""Mutations that change no result, and why.

A mutation that a graph or a test does notice is reported as "not equivalent": the reason is wrong then.
"""

from __future__ import annotations

_PACKAGE = "mhf_compile."

_REASONS: dict[str, dict[str, str]] = {
    "it only decides sooner what follows decides as well": {
        "notation.terms:pinned": "return term -> pass",
        "reading.reader:_with_deltas": "return term -> pass",
        "notation.sizes:times": "a * b if isinstance(a, int) and isinstance(b, int) else"
        " size_of(sympy.expand(a * b)) -> size_of(sympy.expand(a * b))",
    },
    "it only tells the type checker what holds: before folding no leaf is of a stack": {
        "matching.normal_form:_score": "isinstance(operand.value, Value) and operand.value.op is not None and"
        " operand.value.op.random -> operand.value.op is not None and operand.value.op.random",
        "reading.elementwise:Elementwise.canonical": "isinstance(leaf.value, Value) and (rule :="
        " self.reader.rule(leaf.value)) and (rule.kind in (Kind.MOVE, Kind.JOIN)) ->"
        " (rule := self.reader.rule(leaf.value)) and rule.kind in (Kind.MOVE, Kind.JOIN)",
    },
    "it only tells the type checker what holds: a value without an operation has no rule": {
        "reading.reader:Reader.definition": "rule is None or value.op is None -> rule is None",
    },
    "the order of the two does not matter": {
        "reading.algebra:convolution": "(Leaf(source, (batch, own, *places)), Leaf(weight, (channel, inner,"
        " *(Index() for _ in places)))) -> (Leaf(weight, (channel, inner, *(Index() for _ in places))),"
        " Leaf(source, (batch, own, *places)))",
        "notation.index:Index.last": "times(stride, axis.size) -> times(axis.size, stride)",
        "reading.elementwise:Elementwise.same": "self.numbering.same(a.value, b.value) ->"
        " self.numbering.same(b.value, a.value)",
    },
    "it is only compared": {
        "notation.fold:_form.leaf": "_Kind(type(value), tuple(value.shape), dtype, device) ->"
        " _Kind(tuple(value.shape), type(value), dtype, device)",
    },
    "roots that are no numbers are no points to compare at": {
        "reading.expression:_roots": "len(monic) * bool(monic.isfinite().all()) -> len(monic)",
    },
    "what the score of an activation is made of ends there, and is looked at all the same": {
        "matching.candidates:Candidates.within": "if value.op is None or value in self.linearity.anchors ->"
        " if False",
    },
    "there is only one": {
        "reading.moves:transposed": "op.args[0].rank -> op.args[-1].rank",
    },
    "mul has two arguments": {
        "reading.algebra:product": "for operand in op.args[:2] -> for operand in op.args[:]",
    },
    "the parts of a stack have one shape": {
        "notation.fold:Stacked.shape": "self.parts[0] -> self.parts[-1]",
    },
    "there is a term at least, and coefficients are fractions": {
        "reading.entries:multiply": "math.prod((t.coefficient for t in terms), start=Fraction(1)) ->"
        " math.prod((t.coefficient for t in terms))",
    },
    "the same points: with each step its negative is there": {
        "reading.expression:_around": "centres[:, None] + torch.cat([torch.zeros(1, dtype=torch.float64,"
        " device='cpu'), steps, -steps]) -> centres[:, None] - torch.cat([torch.zeros(1, dtype=torch.float64,"
        " device='cpu'), steps, -steps])",
    },
    "a point is looked at once, however often it is found": {
        "reading.expression:_changes": "torch.zeros(1, dtype=torch.float64, device='cpu') ->"
        " torch.zeros(2, dtype=torch.float64, device='cpu')",
    },
    "all entries are met in one phase, whatever it is called": {
        "reading.reader:read.step": "(terms, 'all') -> (terms, '')",
    },
    "a mark that is no operand's name, and is not shown": {
        "matching.roles:": "'score' -> ''",
    },
    "of a stage all reasons have a size, or none": {
        "matching.reasons:Progress": "0 -> -1",
    },
}
"""For each reason the mutations: the function of each, and what becomes what."""

EQUIVALENT: dict[str, str] = {
    f"{_PACKAGE}{function}: {change}": reason
    for reason, changes in _REASONS.items()
    for function, change in changes.items()
}
"""The reason for each, by the key of the mutation."""
