"""Why something is no match, in the words that a user reads, and what to change."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from enum import IntEnum, auto
from typing import NamedTuple

from mhf_compile import notation
from mhf_compile.matching.unification import Operand
from mhf_compile.notation import Axis, Func, Index, Leaf, Term
from mhf_compile.patterns.pattern import RESULT, Pattern, Purpose
from mhf_compile.reading.reader import FLOATS
from mhf_compile.reading.rules import RULES
from mhf_compile.tape.operations import GATHERS
from mhf_compile.tape.values import Op, Value


class Stage(IntEnum):
    """How far a candidate came before it was no match; of several reasons the latest stage's is told."""

    FACTORS = auto()
    """It has another number of factors; the size is minus their number."""
    FORM = auto()
    """It is not read, or has not the form of a pattern."""
    OPERANDS = auto()
    """Each factor has its place, but what is there is not one operand."""
    ROLES = auto()
    """Not every axis has a role; the size is the number of those that have one."""
    SIZES = auto()
    """Every axis has a role, but one that is needed is missing or empty."""
    OBSTACLE = auto()
    """Some operation keeps it from being a feed-forward, whatever the rest is."""
    MATCH = auto()
    """All of it is the pattern, but cannot be replaced; the size is the number of hidden values."""


class Progress(NamedTuple):
    """A stage, and how far in it."""

    stage: Stage
    size: int = 0


FORM = Progress(Stage.FORM)
SIZES = Progress(Stage.SIZES)
OBSTACLE = Progress(Stage.OBSTACLE)


class NoMatch(Exception):
    """Why a candidate is not the pattern.

    ``at`` is the value that shows it; ``advice`` is what the user may change, "" where there is nothing; of
    several reasons, the one with the most ``progress`` is told.
    """

    def __init__(
        self, reason: str, at: Value | None = None, progress: Progress = FORM, advice: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at
        self.progress = progress
        self.advice = advice


class Refusal(NoMatch):
    """Why a match is left alone: it is the pattern, but leaving it out could be seen."""


class NeededElsewhere(Refusal):
    """A match is left alone because the program needs the value ``at`` for something else.

    That is no reason of a smaller match, of which the value is the result.
    """


class TooDear(Refusal):
    """A match is left alone because a fused call would take longer than the program does."""


NO_GRAD = "put no_grad around all of it"
NO_DROPOUT = "set the probability to 0, or move the dropout behind the product with the values"
NO_ZEROS = "leave out what is multiplied by 0"
MERGE = "merge the update of low rank into the weight, as for inference, or set its dropout to 0"
"""Advice for reasons that are told in several places."""

SCATTER = "weight the results of all sub-networks: by zeros, into which scatter puts the chosen weights"
"""Advice where the results of chosen sub-networks are picked from those of all."""

NORMALISED = (
    "it is normalised, by {}, before the product with the values: a fused call never has all of its channels"
)
"""That of a norm, which is a reason wherever it is found."""

NORMS = frozenset(
    [
        *("pow", "linalg_vector_norm", "var_mean"),
        *("native_layer_norm", "native_group_norm", "_fused_rms_norm", "native_batch_norm"),
        *("aten::_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        "aten::_batch_norm_with_update",
    ]
)
"""Operations that norms are made of: no rule reads them, and a user knows them by this word."""

NEAR = 32
"""So many operations before a value are looked at for a reason."""

_PICKS = GATHERS | {"index_put", "index_add", "scatter_add", "nonzero", "_grouped_mm"}
"""Operations that pick rows by data."""


def nearest(
    anchor: Value, failed: Sequence[NoMatch], stopped: NoMatch | None, leaves: bool, behind: bool
) -> NoMatch:
    """Of the reasons why an activation is in no match the one that is nearest to a match.

    Args:
        anchor: the value that completes the activation.
        failed: why each candidate that it is in is no match, of the largest one first.
        stopped: what keeps it from being in more candidates, if anything does.
        leaves: whether something linear in it is a result of the graph.
        behind: whether there is a product with values behind it, whatever it goes through before.
    """
    assert anchor.op is not None
    transforms = [t.lower() for t in anchor.op.state.transforms if t != "Vmap"]
    if transforms:
        return NoMatch(f"it is inside a transform of torch.func ({transforms[0]})")
    if anchor.op.scope is not None and anchor.op.scope.inside:
        return NoMatch(f"it is inside {anchor.op.scope.inside}")
    if not anchor.plain:
        return NoMatch(f"it is computed on {_subclass(anchor)}", anchor)
    if failed:  # a refusal before others; of equal ones the largest candidate's, of others the smallest's
        told: list[NoMatch] = [error for error in failed if isinstance(error, Refusal)]
        told += failed[::-1] if stopped is None else [*failed[::-1], stopped]
        return max(told, key=lambda error: (isinstance(error, Refusal), error.progress))
    if stopped is not None and behind:
        return stopped
    if stopped is not None:
        reason = f"it reaches no product with values: {stopped.reason}"
        return NoMatch(reason, stopped.at, stopped.progress, stopped.advice)
    if leaves and anchor.op.scope is not None and anchor.op.scope.breaks:
        reason = "the graph ends before a product with values"
        return NoMatch(f"{reason}: {anchor.op.scope.breaks}", anchor, advice="remove the graph break")
    if leaves:
        return NoMatch("it is returned before a product with values", anchor)
    return NoMatch("it reaches no product with values", anchor)


def not_linear(op: Op, value: Value) -> NoMatch:
    """Why an operation that is applied to an activation ends the search: it is not read as linear in it.

    The names decide which words a user reads, and nothing else.
    """
    for other in (v for v in (value, *op.inputs) if not v.plain):
        return NoMatch(f"it is combined ({op.title}) with {_subclass(other)}", value, OBSTACLE)
    if op.name == "pow":
        return NoMatch("it is squared as well, as a norm or a penalty does", value, OBSTACLE)
    if op.name in NORMS:
        return NoMatch(NORMALISED.format(op.title), value, OBSTACLE)
    if op.random or "dropout" in op.name:
        return randomness(op, value)
    if op.name == "_to_copy":
        return NoMatch(f"it is cast to {str(value.dtype).removeprefix('torch.')}", value)
    others = [v.dtype for v in op.inputs if v.dtype not in FLOATS]
    if op.name in RULES and others:
        dtype = str(others[0]).removeprefix("torch.")
        return NoMatch(f"it is combined ({op.name}) with a tensor of {dtype}", value)
    if op.name in _PICKS:
        reason = f"its rows are picked by data ({op.name}), as in sparse routing"
        return NoMatch(reason, value, OBSTACLE, SCATTER if op.name == "gather" else "")
    return NoMatch(f"{op.title} is applied to it", value)


def _subclass(value: Value) -> str:
    """What a tensor is, in words, that is no plain one."""
    return f"a {type(value.handle.tensor).__name__}, a tensor subclass that has its own operations"


def randomness(op: Op, value: Value) -> NoMatch:
    """That a random operation is inside."""
    advice = NO_DROPOUT if "dropout" in op.name else ""
    return NoMatch(f"dropout or other randomness is inside ({op.name})", value, OBSTACLE, advice)


def other_factors(goal: Term, term: Term) -> NoMatch:
    """Why a term has not even the factors of a pattern."""
    functions = [f for f in term.factors if isinstance(f, Func) and f.sums]
    if any(isinstance(f, notation.Delta) for f in term.factors):
        return NoMatch("it is only a part of a concatenation or of a buffer")
    for function, score in itertools.product(functions, functions):
        inside, outside = ({leaf.value for leaf in notation.leaves((f,))} for f in (function, score))
        if function.name and not score.name and outside < inside:  # such as a swish whose slope is learned
            tensors = ", ".join(sorted(map(str, inside - outside)))
            return Refusal(f"the activation is x*{function.name}({tensors}*x), none that the op knows")
    scores = [terms for function in functions for terms in function.sums]
    if len(scores) > 2 and set.intersection(*map(_inputs, scores)):
        return Refusal(f"hidden values are a function of {len(scores)} scores, of which the op takes two")
    ups, wanted = (sum(isinstance(f, Func) and not f.name for f in t.factors) for t in (term, goal))
    if ups != wanted:  # of one with too few, a pattern that wants none says more
        reason = (
            f"the activation is multiplied with {ups} tensors of its own shape, for each token and channel"
        )
        return NoMatch(reason, progress=Progress(Stage.FACTORS, -max(1, ups)))
    for function in functions:
        products = [t for t in function.terms if t.bound]
        what = f"argument of {function.name}" if function.name else "up projection"
        if len(products) > 1:
            return several_inputs(what, products, term.bound)
        if len(products) != 1:
            made = next((value_of(leaf) for leaf in notation.leaves((function,))), None)
            read = f"the result of {made.op.title}" if made is not None and made.op else "an input"
            return NoMatch(f"the {what} is {read}, not one product of an input and a weight", made)
        extra = len(products[0].factors) - 2
        if extra > 0:
            scales = [f for f in products[0].factors if set(f.axes).isdisjoint(products[0].bound)]
            each = f", for each token and channel: {scales[0]}" if scales else ""
            return NoMatch(f"the {what} has {extra} more factor(s) than an input and a weight{each}")
    if not term.bound:
        return NoMatch("the activation is not contracted with values")
    if len(functions) > ups + 1:
        return NoMatch("activations are multiplied with each other")
    return NoMatch("it is not one sum over the width of activation, up projection, weight and values")


def _inputs(score: Sequence[Term]) -> set[object]:
    """The tensors in the products of a score."""
    return {leaf.value for term in score if term.bound for leaf in notation.leaves(term.factors)}


def several_inputs(what: str, products: Sequence[Term], summed: Collection[Axis]) -> NoMatch:
    """Why a score is not one product, but several of different inputs; ``summed`` is the width, at least."""
    inputs: dict[Value, None] = {}
    for term in products:
        for leaf in notation.leaves(term.factors):
            value = value_of(leaf)
            if value is not None and not {*leaf.axes} <= {*term.bound, *summed}:
                inputs[value] = None
    for value in inputs:
        if (dropped := _random_between(value, inputs)) is not None and dropped.op is not None:
            why = randomness(dropped.op, dropped)
            reason = f"in one of {len(products)} products of the {what} {why.reason}"
            return NoMatch(reason, dropped, OBSTACLE, MERGE)
    names = " and ".join(map(str, inputs))
    reason = f"the {what} is a sum of {len(products)} products of different inputs, {names}"
    return NoMatch(f"{reason}: not one product of an input and a weight", next(iter(inputs), None))


def _random_between(value: Value, others: Collection[Value]) -> Value | None:
    """What is random of all that a value is computed from, up to some others and a few operations."""
    pending, seen = [value], set[Value]()
    while pending and len(seen) < NEAR:
        one = pending.pop()
        if one.op is not None and (one.op.random or "dropout" in one.op.name):
            return one
        if one.op is not None and one not in seen and (one is value or one not in others):
            seen.add(one)
            pending += one.op.inputs
    return None


def scaled_apart(first: Sequence[Leaf], second: Sequence[Leaf]) -> NoMatch:
    """Why an input that gate and up read is not the same: one of them is scaled, for each token."""
    longer, shorter = sorted((first, second), key=len, reverse=True)
    known = {leaf.value for leaf in shorter}
    other = next((leaf for leaf in longer if leaf.value not in known), longer[0])
    reason = f"gate and up do not read the same input: only one is scaled by {other.value}, for each token"
    return NoMatch(reason, value_of(other), Progress(Stage.OPERANDS))


def uncontracted(factor: Operand | None, source: Operand, index: Sequence[Index], gated: bool) -> NoMatch:
    """Why nothing is summed over a width.

    ``factor`` is what the hidden values are multiplied with, ``source`` the input. Without a gate a factor
    of all tokens may be an up projection that is none, of which there is more to say.
    """
    free = {axis for i in index for axis in i.axes}
    if factor is None or free.issuperset(factor.axes):
        return NoMatch("the activation is not contracted with values", progress=Progress(Stage.ROLES))
    (leaf, *_) = factor.entries
    may_be_up = not gated and set(factor.axes) >= free.intersection(source.axes)
    progress = Progress(Stage.FACTORS) if may_be_up else SIZES
    return NoMatch(f"it is scaled by {leaf.value}, a factor for each token and channel", progress=progress)


def misplaced(pattern: Pattern, axis: Axis, present: Collection[str], placed: int) -> NoMatch:
    """Why an axis that just some operands have is none of a pattern; ``placed`` others are."""
    inputs, weights = pattern.of(Purpose.INPUT), pattern.of(Purpose.WEIGHT)
    has, lacks = pattern.words(present), pattern.words(set(weights) - set(present))
    is_in_input = not set(inputs).isdisjoint(present)
    if is_in_input and RESULT not in present:
        what = " or ".join(f"{name}s" for name in pattern.counted(pattern.broadcast))
        reason = f"it is summed over an axis of size {axis.size} of {has}: {what}"
    elif {*weights, *pattern.of(Purpose.BIAS)}.issuperset(present):
        reason = f"{axis.size} activations are added up that share {lacks}"
    elif RESULT in present and not is_in_input:
        reason = f"of {has} there is an axis of size {axis.size} that the input of gate and up lacks"
    else:
        reason = f"an axis of size {axis.size} of {has} is not in {lacks or 'its place'}"
    return NoMatch(reason, progress=Progress(Stage.ROLES, placed))


def differing(first: Leaf, second: Leaf) -> NoMatch:
    """Why two leaves in the place of one operand are not the same."""
    a, b = value_of(first), value_of(second)
    reason = f"gate and up do not read the same input: {first.value} and {second.value}"
    if a is not None and b is not None and a is b:
        reason = f"gate and up do not read the same part of {a}"
    elif a is not None and b is not None and a.handle is b.handle:
        reason = f"gate and up do not read the same input: {a} is written to between them"
    later = max((first, second), key=lambda leaf: getattr(value_of(leaf), "time", -1))
    return NoMatch(reason, value_of(later), Progress(Stage.OPERANDS))


def value_of(leaf: Leaf) -> Value | None:
    """The value of a leaf, where it is one and no stack of several."""
    return leaf.value if isinstance(leaf.value, Value) else None
