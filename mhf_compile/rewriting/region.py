"""The region of a match: the operations it stands for, and the reasons to leave them alone.

A region is refused wherever leaving it out could be seen: in values, in gradients, in memory that is written,
or in modes that change inside it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch

from mhf_compile import notation
from mhf_compile.kernels.support import unsupported
from mhf_compile.matching.reasons import NO_GRAD, NORMS, WORDS, Refusal
from mhf_compile.matching.search import Match
from mhf_compile.notation.fold import parts
from mhf_compile.reading.rules import RULES
from mhf_compile.tape.source import source_of
from mhf_compile.tape.tape import Op, Storage, Tape, Value, convert


class Region:
    """The operations that a match stands for, and the reasons to leave them alone.

    Attributes:
        leaves: the values that the operands are made of.
        values: the values that are read through, in the order of the tape.
        computed: those that are no rearrangements of leaves.
        own: those that come of a product, which nothing else may need.
    """

    def __init__(self, tape: Tape, match: Match) -> None:
        self.tape = tape
        self.match = match
        self.leaves = {value for leaf in match.leaves for value in parts(leaf.value)}
        self.values = [v for v in sorted(match.visited, key=lambda v: v.time) if v not in self.leaves]
        self.ops = {value.op for value in self.values if value.op is not None}
        self.computed: list[Value] = []
        computed: set[Value] = set()
        for value in self.values:
            assert value.op is not None
            if RULES[value.op.name].kind != "move" or not computed.isdisjoint(value.op.inputs):
                computed.add(value)
                self.computed.append(value)
        self.own: set[Value] = set()
        for value in self.values:
            assert value.op is not None
            narrow = RULES[value.op.name].kind in ("move", "join", "linear", "constant")
            if not narrow or not self.own.isdisjoint(value.op.inputs):
                self.own.add(value)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the op: the widest that the region contracts in."""
        dtypes = [
            v.dtype
            for op in self.ops
            if RULES[op.name].kind == "product"
            for v in op.inputs
            if v.dtype.is_floating_point
        ]
        dtypes = dtypes or [v.dtype for v in self.computed]
        widest = dtypes[0]
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return widest

    @property
    def saved(self) -> notation.Size:
        """The bytes of the region's own values that autograd keeps for the backward."""
        computed = set(self.computed)
        sizes: dict[Storage, notation.Size] = {}
        for op in self.ops:
            if not any(value.requires_grad for value in op.outputs):
                continue
            kept: Sequence[Value] = ()
            kind = RULES[op.name].kind
            if op.name in _KEEPS_RESULT:
                kept = op.outputs
            elif kind in ("product", "function") or op.name in ("addcmul", "pow"):
                kept = op.inputs
            elif op.name in ("mul", "div") and all(isinstance(factor, Value) for factor in op.args):
                kept = op.inputs  # by a number, the number is enough
            for value in kept:
                if value in computed:
                    sizes[value.storage] = notation.times(notation.product(value.shape), value.dtype.itemsize)
        total: notation.Size = 0
        for size in sizes.values():
            total = notation.size_of(total + size)
        return total

    def structure(self) -> object:
        """What equal regions have in common: operations, shapes, dtypes, and which tensors are the same."""
        names: dict[object, int] = {}

        def name(item: object) -> object:
            if isinstance(item, Value):
                return names.setdefault(item, len(names)), item.shape, item.dtype, item in self.leaves
            if isinstance(item, Op):  # the view that is written through
                return item.name, convert(item.args[1:], name)
            return type(item), item

        return tuple(
            (
                value.op.name,
                value.output,
                convert((value.op.args, tuple(value.op.kwargs.items())), name),
                name(value),
            )
            for value in sorted({*self.values, *joined(self.leaves)}, key=lambda value: value.time)
            if value.op is not None
        )

    def check(self) -> None:
        """Raise Refusal where the region cannot be left out."""
        root = self.match.root
        assert root.op is not None
        for leaf in self.match.leaves:
            for value in parts(leaf.value):
                self._check_leaf(value, root)
        states = {
            (op.state.grad_enabled, op.state.autocast, op.state.transforms)
            for v in self.computed
            if (op := v.op) is not None and op.name not in _CREATION
        }
        if len({grad for grad, _, _ in states}) > 1:
            raise Refusal("grad mode changes inside it", root, advice=NO_GRAD)
        if len({autocast for _, autocast, _ in states}) > 1:
            raise Refusal("autocast is switched inside it", root, advice="put autocast around all of it")
        for transform in (t for _, _, transforms in states for t in transforms):
            if transform != "Vmap":  # what vmap runs is recorded as it is run, on whole batches
                raise Refusal(f"it is inside a transform of torch.func ({transform.lower()})", root)
        for value in self.computed:
            assert value.op is not None
            if value.op.scope is not self.match.scope:
                advice = (
                    "checkpoint the whole feed-forward, or nothing of it: rewritten, it saves nothing wide"
                )
                raise Refusal("a checkpoint boundary crosses it", value, advice=advice)
            if value.op.writes is not None and not self._owns(value):
                raise Refusal(f"it is written into {value.op.writes}, which is not made inside it", value)
            if value is root or value not in self.own:
                continue
            if value in self.match.scope.returned:
                raise Refusal(
                    f"the intermediate {value} is returned as well{_line(value.op)}",
                    value,
                    advice="return it only when it is needed",
                )
            for user in value.users:
                if not self._serves_only_it(user):
                    if user.name in NORMS and user.name != "pow":
                        raise Refusal(
                            f"it is normalised ({user.name}) before the product with the values", value
                        )
                    raise Refusal(
                        f"the intermediate {value} is used elsewhere as well, by {user.name}{_line(user)}",
                        value,
                        advice="compute that in a call of its own, where it is needed, such as when logging",
                    )
        self._check_repeats()
        if reason := unsupported(root.device, self.dtype):
            raise Refusal(reason, root)
        for value in self.tape.values[root.time + 1 :]:
            if value.handle is root.handle and value.op is not None and value.op.reshapes:
                raise Refusal(f"the shape of the result {root} is changed in place later", value)
            alias = value.storage is root.storage and value.handle is not root.handle
            if alias and value.handle.born < root.time and value in self.tape.used:
                raise Refusal(
                    f"{value} shares memory with the result {root}, which is written to later", value
                )

    def _check_repeats(self) -> None:
        """Raise Refusal where a weight would be repeated to more than the activation that is saved."""
        unification, hints = self.match.unification, self.match.hints
        for name in ("k", "u", "v"):
            operand = unification.operands.get(name)
            if operand is None:
                continue
            size = math.prod(notation.known(axis.size, hints) for dim in operand.dims for axis in dim)
            own = math.prod(notation.known(axis.size, hints) for axis in set(operand.leaves[0].axes))
            if size - own > self.match.hidden:
                lacks = {axis for dim in operand.dims for axis in dim} - set(operand.leaves[0].axes)
                others = ((n, o) for n, o in unification.operands.items() if n != "q")
                has = [n for n, o in others if lacks <= set(o.leaves[0].axes)]
                raise Refusal(
                    f"{' and '.join(WORDS[n] for n in has)} have entries for each token or head, "
                    f"{size // own} times, for which {WORDS[name]} would be repeated"
                )

    def _serves_only_it(self, op: Op) -> bool:
        """Whether nothing outside of the region needs an operation, once the region is left out."""
        if self.tape.used.isdisjoint(op.outputs):
            return True
        if op.writes is not None and op not in self.ops:
            return False
        for value in op.outputs:
            if value in self.match.visited and value not in self.leaves:
                continue  # it is looked at on its own
            returned = value in self.leaves or value in self.match.scope.returned
            if returned or not all(map(self._serves_only_it, value.users)):
                return False
        return True

    def _check_leaf(self, value: Value, root: Value) -> None:
        assert value.plain  # no rule reads what a subclass is an argument of
        scope = self.match.scope
        if not value.handle.nodes_in(scope) and not self.tape.is_at_hand(value, scope, root.time):
            siblings = self.tape.issued.get(value.op.node, ()) if value.op and value.op.node else ()
            if any(op.name in NORMS for op in siblings):
                raise Refusal("it is normalised before the product with the values", value)
            raise Refusal(
                "an operand is computed inside a single call of the program and cannot be taken from it",
                value,
            )
        if not self.tape.is_at_hand(value, scope, root.time):
            raise Refusal(
                f"{value} is written to between its use and the result",
                value,
                advice="write to it after the feed-forward, or to a copy",
            )
        if value.expires < math.inf and root.requires_grad:
            raise Refusal(
                f"{value} is written to before the backward, which reads it", value, advice="write to a copy"
            )

    def _owns(self, value: Value) -> bool:
        """Whether the storage that a value was written into was made inside the region."""
        first = value.storage.origin
        return (
            first is not None
            and first.op is not None
            and (first.op in self.ops or first.op.name in _CREATION)
        )


def joined(leaves: Collection[Value]) -> set[Value]:
    """Leaves that are put together of others, as a stack whose parts are leaves too, and what is between."""
    pending = [leaf for leaf in leaves if _kind(leaf) == "join"]
    below: set[Value] = set()
    while pending:
        value = pending.pop()
        if value.op is not None and value not in below and _kind(value) in ("move", "join"):
            below.add(value)
            pending += value.op.inputs
    found: set[Value] = set()
    for value in sorted(below, key=lambda value: value.time):
        if value.op is not None and any(part in leaves or part in found for part in value.op.inputs):
            found.add(value)
    return found


def _kind(value: Value) -> str:
    """What the rule of the op that computes a value does; nothing where there is none."""
    rule = RULES.get(value.op.name) if value.op is not None else None
    return rule.kind if rule is not None else ""


_KEEPS_RESULT = ("sigmoid", "exp", "reciprocal", "tanh", "relu")
"""Functions whose derivative autograd computes from their result."""

_CREATION = ("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty", "ones", "full")


def _line(op: Op) -> str:
    place = source_of(op.node)
    return f" ({place})" if place else ""
