"""Operations of a node, to be written down again for nodes that do the same to other tensors.

A model repeats its layers: most nodes do what an earlier one did, and need not be run on fake tensors again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Handle, Op, State, Storage, Value, convert


@dataclass(frozen=True)
class _Slot:
    """A value of a template: one of the node's arguments, or one of the values made before it."""

    number: int


@dataclass(frozen=True)
class _Made:
    """How a template makes a value: by which operation, in the storage of which slot, as a view of which."""

    operation: int
    output: int
    meta: tuple[Any, ...]
    storage: int | None
    view: int | None


@dataclass(frozen=True)
class Template:
    """The operations of a node, for nodes that do the same to other tensors."""

    operations: tuple[tuple[str, tuple[Any, ...], dict[str, Any], Any], ...]
    made: tuple[_Made, ...]
    results: Any

    @staticmethod
    def of(given: Sequence[Handle], made: Sequence[Value], result: object, tape: Tape) -> Template | None:
        """The template of a node that has just been run; None if it wrote to memory or used other tensors."""
        handles = [*given, *(value.handle for value in made)]
        slots = {handle: number for number, handle in reversed(list(enumerate(handles)))}
        storages = {handle.storage: number for number, handle in reversed(list(enumerate(handles)))}
        operations = list(dict.fromkeys(value.op for value in made))
        values = {value for handle in given if (value := handle.value) is not None} | set(made)
        for op in operations:
            if (
                op is None
                or op.writes is not None
                or op.replayed
                or op.random
                or not values.issuperset(op.inputs)
            ):
                return None
        tensors_returned = result if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors_returned):
            return None
        if any(tape.handle(tensor) not in slots for tensor in tensors_returned):
            return None

        def slot(item: Any) -> Any:
            return _Slot(slots[item.handle]) if isinstance(item, Value) else item

        numbers = {op: number for number, op in enumerate(operations)}
        entries = []
        for number, value in enumerate(made, start=len(given)):
            storage = storages[value.storage]
            view = value.handle.view
            entries.append(
                _Made(
                    numbers[value.op],
                    value.output,
                    (value.shape, value.dtype, value.device, value.plain),
                    storage if storage < number else None,
                    None if view is None else slots[view[0]],
                )
            )
        recipes = tuple(
            (op.name, convert(op.args, slot), op.kwargs, op.func) for op in operations if op is not None
        )
        returned = convert(result, lambda tensor: _Slot(slots[tape.handle(tensor)]))
        return Template(recipes, tuple(entries), returned)

    def apply(self, given: Sequence[Handle], example: object, tape: Tape, state: State) -> object:
        """Write the operations down for other arguments.

        Args:
            given: the handles of the arguments.
            example: a result like the one that running would give, its tensors unknown to the tape.
            tape: where to.
            state: the node and the modes.

        Returns:
            The example, or where an argument itself was returned, that one.
        """
        handles = list(given)
        values = [tape.read(handle) for handle in handles]
        operations: list[Op] = []

        def fill(item: Any) -> Any:
            return values[item.number] if isinstance(item, _Slot) else item

        for made in self.made:
            if made.operation == len(operations):
                name, args, kwargs, func = self.operations[made.operation]
                operations.append(Op(name, convert(args, fill), kwargs, state, func=func))
            op = operations[made.operation]
            storage = Storage() if made.storage is None else handles[made.storage].storage
            handle = Handle(
                storage, view=None if made.view is None else (handles[made.view], op, made.output)
            )
            handles.append(handle)
            values.append(tape.new(handle, op, made.output, *made.meta))

        def returned(slot: Any, tensor: Any) -> Any:
            if isinstance(slot, tuple):
                return tuple(returned(s, t) for s, t in zip(slot, tensor, strict=True))
            handle = handles[slot.number]
            if handle.tensor is None:
                tape.adopt(tensor, handle)
            return handle.tensor

        return returned(self.results, example)
