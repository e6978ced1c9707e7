"""The reasons to leave a region alone.

A region is refused wherever leaving it out could be seen: in values, in gradients, in memory that is written,
or in modes that change inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from mhf_compile import notation
from mhf_compile.kernels.support import unsupported
from mhf_compile.matching.reasons import (
    NO_DROPOUT,
    NO_GRAD,
    NORMALISED,
    NORMS,
    NeededElsewhere,
    Refusal,
    TooDear,
)
from mhf_compile.notation.fold import parts
from mhf_compile.patterns.pattern import Purpose
from mhf_compile.reading.reader import Reader
from mhf_compile.reading.rules import Kind, kind_of
from mhf_compile.rewriting.cost import estimates, stays_in_cache
from mhf_compile.rewriting.region import Region
from mhf_compile.tape.operations import CREATIONS, GATHERS
from mhf_compile.tape.source import source_of
from mhf_compile.tape.values import Op, State, Value


def check(region: Region, dense: str, is_part: bool = False) -> None:
    """Raise Refusal where a region cannot be left out, or a fused call in its place would cost more.

    Args:
        region: of a match.
        dense: whether dense feed-forwards are replaced, as in the options.
        is_part: whether it is a part of one that was too dear: what it loses is lost again in other parts.
    """
    for refusal in _refusals(region, dense, is_part):
        if refusal is not None:
            raise refusal


def _refusals(region: Region, dense: str, is_part: bool) -> Iterator[Refusal | None]:
    """What each check says, in the order in which a user is told."""
    for leaf in region.match.leaves:
        for value in parts(leaf.value):
            yield inside_a_call(region, value)
            yield written_before_the_root(region, value)
            yield written_before_the_backward(region, value)
    yield changing_grad_mode(region)
    yield changing_autocast(region)
    yield inside_a_transform(region)
    for value in region.computed:
        yield across_a_checkpoint(region, value)
        yield written_into_what_is_not_its_own(region, value)
        if value is not region.match.root and value in region.own:
            yield returned(region, value)
            yield used_elsewhere(region, value)
    yield picked_weights(region)
    yield repeated_weights(region)
    yield unsupported_device_or_dtype(region)
    yield without_an_entry(region)
    for value in region.tape.values[region.match.root.time + 1 :]:
        yield reshaped_or_written_later(region, value)
    yield left_to_the_compiler(region, dense) if region.match.is_dense else dearer(region, is_part)


# -- operands -----------------------------------------------------------------------------------------------


def inside_a_call(region: Region, value: Value) -> Refusal | None:
    """Whether a leaf is computed inside a call of the program, and not where the root is."""
    assert value.plain  # no rule reads what a subclass is an argument of
    scope, root = region.match.scope, region.match.root
    if value.handle.nodes_in(scope) or region.tape.is_at_hand(value, scope, root.time):
        return None
    siblings = region.tape.issued.get(value.op.node, ()) if value.op and value.op.node else ()
    norm = next((op for op in siblings if op.name in NORMS), None)
    if norm is not None:
        return Refusal(NORMALISED.format("a norm" if norm.name == "pow" else norm.title), value)
    return Refusal(
        "an operand is computed inside a single call of the program and cannot be taken from it", value
    )


def written_before_the_root(region: Region, value: Value) -> Refusal | None:
    """Whether a leaf is not there any more where the root is made."""
    if region.tape.is_at_hand(value, region.match.scope, region.match.root.time):
        return None
    return Refusal(
        f"{value} is written to between its use and the result",
        value,
        advice="write to it after the feed-forward, or to a copy",
    )


def written_before_the_backward(region: Region, value: Value) -> Refusal | None:
    """Whether a leaf that the backward reads is not there any more then."""
    if value.expires == math.inf or not region.match.root.requires_grad:
        return None
    return Refusal(
        f"{value} is written to before the backward, which reads it", value, advice="write to a copy"
    )


# -- modes --------------------------------------------------------------------------------------------------


def changing_grad_mode(region: Region) -> Refusal | None:
    """Whether the region runs partly without autograd."""
    if len({state.grad_enabled for state in _states(region)}) < 2:
        return None
    return Refusal("grad mode changes inside it", region.match.root, advice=NO_GRAD)


def changing_autocast(region: Region) -> Refusal | None:
    """Whether the region runs under several modes of autocast."""
    if len({state.autocast for state in _states(region)}) < 2:
        return None
    return Refusal(
        "autocast is switched inside it", region.match.root, advice="put autocast around all of it"
    )


def inside_a_transform(region: Region) -> Refusal | None:
    """Whether a transform of torch.func is applied to the region, but for vmap.

    What vmap runs is recorded as it is run, on whole batches.
    """
    transforms = {transform for state in _states(region) for transform in state.transforms} - {"Vmap"}
    if not transforms:
        return None
    return Refusal(f"it is inside a transform of torch.func ({min(transforms).lower()})", region.match.root)


def _states(region: Region) -> Iterator[State]:
    ops = (value.op for value in region.computed)
    return (op.state for op in ops if op is not None and op.name not in CREATIONS)


# -- values of its own --------------------------------------------------------------------------------------


def across_a_checkpoint(region: Region, value: Value) -> Refusal | None:
    """Whether a value is computed in another graph than the root."""
    if value.op is not None and value.op.scope is region.match.scope:
        return None
    advice = "checkpoint the whole feed-forward, or nothing of it: rewritten, it saves nothing wide"
    return Refusal("a checkpoint boundary crosses it", value, advice=advice)


def written_into_what_is_not_its_own(region: Region, value: Value) -> Refusal | None:
    """Whether a value is written into memory that was not made inside the region."""
    if value.op is None or value.op.writes is None:
        return None
    first = value.storage.origin
    if first is not None and first.op is not None and (first.op in region.ops or first.op.name in CREATIONS):
        return None
    return Refusal(f"it is written into {value.op.writes}, which is not made inside it", value)


def returned(region: Region, value: Value) -> Refusal | None:
    """Whether a value leaves the graph."""
    if value not in region.match.scope.returned:
        return None
    return NeededElsewhere(
        f"the intermediate {value} is returned as well{_line(value.op)}",
        value,
        advice="return it only when it is needed",
    )


def used_elsewhere(region: Region, value: Value) -> Refusal | None:
    """Whether something outside of the region needs a value, and not just other columns of a product."""
    users = [user for user in value.users if not region.serves_only(user)]
    if not users or any(value is rest.columns.whole for rest in region.rests):
        return None
    user = min(users, key=lambda op: kind_of(op) is Kind.MOVE)  # a cut may be of columns that do no harm
    if user.name in NORMS and not region.leaves.isdisjoint(_computed_from(user, region.match.root)):
        return Refusal(NORMALISED.format("a norm" if user.name == "pow" else user.title), value)
    siblings = region.tape.issued.get(user.node, [user]) if user.node is not None else [user]
    dropout = next((op for op in siblings if op.random), None)
    use = dropout or _first_use(region, user)
    by = f"dropout or other randomness ({use.title})" if dropout is not None else use.title
    return NeededElsewhere(
        f"the intermediate {value} is used elsewhere as well, by {by}{_line(use)}",
        value,
        advice=NO_DROPOUT if dropout is not None else _use_elsewhere(user),
    )


def _first_use(region: Region, op: Op) -> Op:
    """What does more than to move entries of all that is done outside with an operation's results."""
    users = (user for value in op.outputs for user in value.users if user not in region.ops)
    user = next((user for user in users if not region.serves_only(user)), None)
    return _first_use(region, user) if kind_of(op) is Kind.MOVE and user is not None else op


def _computed_from(op: Op, last: Value) -> set[Value]:
    """What is computed from an operation's results, up to a value."""
    found: set[Value] = set()
    pending = list(op.outputs)
    while pending:
        value = pending.pop()
        if value not in found and value.time <= last.time:
            found.add(value)
            pending += (output for user in value.users for output in user.outputs)
    return found


def _use_elsewhere(user: Op) -> str:
    """What to change where a hidden value is used elsewhere by an operation."""
    pending, is_piece = [user], False
    while pending:
        op = pending.pop()
        if kind_of(op) is Kind.CONTRACT:
            if is_piece:
                return "take the pieces of the input instead, so that each has an activation of its own"
            return "multiply it once, with the weights side by side; those of LoRA may be merged in inference"
        if kind_of(op) is Kind.MOVE:
            is_piece |= notation.product(op.outputs[0].shape) != notation.product(op.inputs[0].shape)
            pending += (further for value in op.outputs for further in value.users)
    return "compute that in a call of its own, where it is needed, such as when logging"


def _line(op: Op | None) -> str:
    place = source_of(op.node) if op is not None else ""
    return f" ({place})" if place else ""


# -- the call -----------------------------------------------------------------------------------------------


def repeated_weights(region: Region) -> Refusal | None:
    """Whether a weight would be repeated to more than the activation that is saved."""
    match = region.match
    pattern, operands = match.pattern, match.unification.operands
    for name in pattern.of(Purpose.WEIGHT):
        axes, own = {axis for dim in operands[name].dims for axis in dim}, set(operands[name].axes)
        size, least = (math.prod(notation.known(a.size, match.hints) for a in some) for some in (axes, own))
        if size - least > match.hidden:
            others = operands.keys() - pattern.of(Purpose.INPUT)
            has = [x for x in others if axes - own <= set(operands[x].axes)]
            each = " or ".join(pattern.counted(pattern.broadcast))
            return Refusal(
                f"{pattern.words(has)} have entries for each {each}, "
                f"{size // least} times, for which {pattern.words([name])} would be repeated"
            )
    return None


def picked_weights(region: Region) -> Refusal | None:
    """Whether a weight is taken by index from something smaller: the same entries are there several times."""
    match = region.match
    pattern, operands = match.pattern, match.unification.operands
    for name in pattern.of(Purpose.WEIGHT):
        for value in (value for leaf in operands[name].entries for value in parts(leaf.value)):
            op = _gathering(value)
            source = op.args[0] if op is not None else None
            if op is None or not isinstance(source, Value):
                continue
            picked, there = (
                math.prod(notation.known(size, match.hints) for size in v.shape)
                for v in (op.outputs[0], source)
            )
            if picked > there:
                return Refusal(
                    f"{pattern.words([name])} is picked by index ({op.title}): "
                    f"{picked} numbers of the {there} in {source}",
                    value,
                    advice="sort the tokens by their weights and multiply each group once, as the experts "
                    'implementation "grouped_mm" of transformers does',
                )
    return None


def _gathering(value: Value) -> Op | None:
    """The operation by index of which a value is a rearrangement."""
    reader = Reader()
    while value.op is not None and value.op.name not in GATHERS:
        rule = reader.rule(value)
        if rule is None or rule.kind is not Kind.MOVE:
            return None
        value = value.op.inputs[0]
    return value.op


def unsupported_device_or_dtype(region: Region) -> Refusal | None:
    """Whether the op cannot run there."""
    reason = unsupported(region.match.root.device, region.dtype)
    return Refusal(reason, region.match.root) if reason is not None else None


def without_an_entry(region: Region) -> Refusal | None:
    """Whether an axis that the op cannot do without has no entry: any but those of tokens."""
    pattern, unification = region.match.pattern, region.match.unification
    for letter, role in pattern.roles.items():
        if not role.is_token and unification.size(letter) == 0:
            return Refusal(f"it has an axis of size 0, the {role.name}", region.match.root)
    return None


def reshaped_or_written_later(region: Region, value: Value) -> Refusal | None:
    """Whether a later value is the result, reshaped in place, or an older view of its memory."""
    root = region.match.root
    if value.handle is root.handle and value.op is not None and value.op.reshapes:
        return Refusal(f"the shape of the result {root} is changed in place later", value)
    alias = value.storage is root.storage and value.handle is not root.handle
    if alias and value.handle.born < root.time and value in region.tape.used:
        return Refusal(f"{value} shares memory with the result {root}, which is written to later", value)
    return None


# -- what it costs ------------------------------------------------------------------------------------------

GAIN = 0.7
"""A dense feed-forward is replaced where the model of costs says that a fused call takes less of its time."""

LOSS, LOSS_IN_CACHE, NOTICEABLE = 1.25, 1.1, 4e-3
"""Others are not where it takes more than so many times as long, and longer by so many seconds at least.

The model is not so exact: what a program does beside its products goes through memory, and is not counted.
Where it all stays in a cache, that costs nothing, and the second number holds. These are chosen so that of
the programs of ``benchmarks/cpu/programs.py`` it refuses those that were slower by a third, and none that was
faster.
"""


def left_to_the_compiler(region: Region, dense: str) -> Refusal | None:
    """Whether a dense feed-forward is not to be replaced, or would gain nothing."""
    fused, program = estimates(region)
    if dense == "always" or (dense == "auto" and fused < GAIN * program):
        return None
    why = f", which takes about {_time(program)}, a fused call {_time(fused)}" if dense == "auto" else ""
    return Refusal(
        f"a dense feed-forward is left to the inner compiler{why}: flashmhf.dense is {dense!r}",
        region.match.root,
        advice='set "flashmhf.dense" to "always" to rewrite it all the same',
    )


def dearer(region: Region, is_part: bool) -> Refusal | None:
    """Whether a fused call would take much longer than the program does; a part, longer at all."""
    fused, program = estimates(region)
    loss = LOSS_IN_CACHE if stays_in_cache(region) else LOSS
    if fused <= program or (not is_part and (fused <= loss * program or fused - program <= NOTICEABLE)):
        return None
    operands = region.match.unification.operands.values()
    merges = any(term.bound for operand in operands for term in operand.terms)
    return TooDear(
        f"a fused call would take about {_time(fused)} where the program takes {_time(program)}",
        region.match.root,
        advice="merge the update of low rank into the weight"
        if merges
        else "give each head more tokens at a time",
    )


def _time(seconds: float) -> str:
    """A time, to two digits: "0.13 ms", "240 ms"."""
    value = float(f"{1e3 * seconds:.2g}")
    return f"{value:g} ms"
