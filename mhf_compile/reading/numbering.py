"""Values that are computed alike from the same values: value numbering."""

from __future__ import annotations

from typing import Any

from mhf_compile.reading.rules import RULES
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value, convert, hashable


class ValueNumbering:
    """Tells which values of a tape are computed alike, and followed alike by autograd.

    What no rule knows the meaning of, such as random numbers, is like itself only.
    """

    def __init__(self, tape: Tape) -> None:
        self.first: dict[Value, Value] = {}
        made: dict[object, Value] = {}
        for value in tape.values:
            op = value.op
            if op is None or op.random or op.name not in RULES:
                self.first[value] = value
                continue
            arguments = hashable(convert((op.args, tuple(op.kwargs.items())), self._named))
            key = op.name, value.output, arguments, value.shape, value.dtype, value.requires_grad
            self.first[value] = made.setdefault(key, value)

    def same(self, a: Value, b: Value) -> bool:
        """Whether two values are computed alike."""
        return a is b or self.first[a] is self.first[b]

    def _named(self, item: Any) -> object:
        return self.first[item] if isinstance(item, Value) else (type(item), item)
