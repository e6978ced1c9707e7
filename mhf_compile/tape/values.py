"""What a tape is made of: operations, values, and the tensors and memory that hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from mhf_compile.notation import Size, size_of
from mhf_compile.tape.source import is_named, path_of

T = TypeVar("T")


@dataclass(eq=False)
class Scope:
    """A graph that nodes can be put into: the Dynamo graph itself, or a body of a higher-order operation."""

    module: fx.GraphModule
    order: dict[fx.Node, float] = field(default_factory=dict)
    inside: str = ""
    """What runs the graph, where nothing of it can be replaced, such as a custom autograd function."""
    breaks: str = ""
    """Of the Dynamo graph, why the program goes on in another one: the words of the graph break behind it."""
    returned: set[Value] = field(default_factory=set)
    transformed: set[fx.Node] = field(default_factory=set)
    """The nodes after which a transform of torch.func is on."""
    inference: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Of the nodes after which inference mode is on, the one that entered it."""
    callers: list[Scope] = field(default_factory=list)
    """For a body, the graph of each node that runs it."""

    @property
    def is_part(self) -> bool:
        """Whether the program makes what it is given, or uses what it returns, unseen by the tape."""
        return bool(self.inside or self.breaks)

    @property
    def uses(self) -> int:
        """How often the program runs it."""
        return sum(caller.uses for caller in self.callers) if self.callers else 1


@dataclass(frozen=True)
class State:
    """The modes that an operation ran in, and the node that issued it."""

    node: fx.Node | None = None
    scope: Scope | None = None
    grad_enabled: bool = True
    autocast: tuple[torch.dtype | None, ...] = ()
    """The dtype of autocast on each device type that has it on."""
    transforms: tuple[str, ...] = ()
    """The transforms of torch.func that it ran in, the innermost last, such as ``Vmap``."""


TITLES = {
    "autograd_function_apply": "a custom autograd function",
    "scatter_view": "a write into a part",
    "native_layer_norm": "a layer norm",
    "native_group_norm": "a group norm",
    "_fused_rms_norm": "an RMS norm",
    "linalg_vector_norm": "a vector norm",
    "native_batch_norm": "a batch norm",
    "aten::_native_batch_norm_legit": "a batch norm",
    "_native_batch_norm_legit_no_training": "a batch norm",
    "aten::_batch_norm_with_update": "a batch norm",
    "_prelu_kernel": "prelu",
    "log_sigmoid_forward": "logsigmoid",
    "aten::rrelu_with_noise": "rrelu",
}
"""Names for people, of operations that have others in ATen."""


@dataclass(eq=False)
class Op:
    """An ATen operation; tensors among its arguments are Values, symbolic sizes sympy expressions."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: State
    writes: Value | None = None
    """For an operation in place, the value it replaces."""
    random: bool = False
    func: OpOverload | None = None
    """What computes it of its arguments as they are written here, in functional form also where the program
    writes in place; None where nothing does."""
    reshapes: bool = False
    """Whether it changes the shape of a tensor in place."""
    replayed: bool = False
    """Whether it stands for reading a view after a write through another one."""
    outputs: list[Value] = field(default_factory=list)
    inputs: tuple[Value, ...] = ()
    """Every Value among the arguments."""

    def __post_init__(self) -> None:
        self.inputs = tuple(every(Value, (self.args, self.kwargs)))
        for value in self.inputs:
            value.users.append(self)

    @property
    def node(self) -> fx.Node | None:
        """The node that issued it."""
        return self.state.node

    @property
    def scope(self) -> Scope | None:
        """The graph of its node."""
        return self.state.scope

    @property
    def title(self) -> str:
        """Its name for people."""
        return TITLES.get(self.name, self.name.removeprefix("_"))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})"


@dataclass(eq=False)
class Storage:
    """Memory that tensors share."""

    version: int = 0
    live: list[Value] = field(default_factory=list)
    origin: Value | None = None
    """The first value in it."""


@dataclass(eq=False)
class Handle:
    """A tensor object of the program, and what it holds.

    ``tensor`` is its fake tensor; ``view`` the handle, operation and output that it is a view by.
    """

    storage: Storage
    tensor: torch.Tensor | None = None
    view: tuple[Handle, Op, int] | None = None
    value: Value | None = None
    version: int = 0
    born: int = 0
    """The time of its first value."""
    nodes: list[tuple[Scope, fx.Node]] = field(default_factory=list)
    attributes: dict[Scope, str] = field(default_factory=dict)
    """Where it is in the module of a graph, though no node may get it: a parameter of a module called."""

    def nodes_in(self, scope: Scope) -> list[fx.Node]:
        """The nodes of a graph that are this very tensor object."""
        return [node for where, node in self.nodes if where is scope]


@dataclass(eq=False)
class Value:
    """What a tensor holds at a time. ``op`` is None for what comes from outside."""

    op: Op | None
    output: int
    shape: tuple[Size, ...]
    dtype: torch.dtype
    device: torch.device
    handle: Handle
    time: int
    requires_grad: bool = False
    plain: bool = True
    """False for a tensor subclass, which may mean anything by its operations."""
    expires: float = math.inf
    users: list[Op] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def storage(self) -> Storage:
        """The memory of its tensor."""
        return self.handle.storage

    def node_at(self, scope: Scope | None, time: float) -> fx.Node | None:
        """The node of a graph whose tensor holds this value at a time."""
        nodes = self.handle.nodes_in(scope) if scope is not None and time < self.expires else []
        return nodes[0] if nodes else None

    def attribute_at(self, scope: Scope | None, time: float) -> str | None:
        """The attribute of a graph's module that holds this value at a time."""
        return self.handle.attributes.get(scope) if scope is not None and time < self.expires else None

    @property
    def path(self) -> tuple[str, ...]:
        """The user's name of it, as a path; inside a call of the program, that of its operation."""
        nodes = [node for _, node in self.handle.nodes]
        if nodes:  # the first is that of the outermost graph
            return path_of(next(filter(is_named, nodes), nodes[0]))
        return (self.op.name.removeprefix("_") if self.op is not None else "input",)

    def __repr__(self) -> str:
        return ".".join(self.path)


def every(kind: type[T], structure: object) -> Iterator[T]:
    """All objects of a kind in a structure of tuples, lists and dicts."""
    if isinstance(structure, kind):
        yield structure
    elif isinstance(structure, (tuple, list)):
        for item in structure:
            yield from every(kind, item)
    elif isinstance(structure, dict):
        yield from every(kind, tuple(structure.values()))


def convert(structure: Any, leaf: Callable[[Any], Any]) -> Any:
    """A structure of tuples, lists, dicts and slices with every leaf converted; lists become tuples."""
    if isinstance(structure, (tuple, list)):
        return tuple([convert(item, leaf) for item in structure])
    if isinstance(structure, dict):
        return {key: convert(item, leaf) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(*(convert(item, leaf) for item in (structure.start, structure.stop, structure.step)))
    return leaf(structure)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is no subclass with a meaning of its own, nor wrapped by a functorch transform."""
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and type(tensor) in (
        FakeTensor,
        torch.nn.Parameter,
        torch.Tensor,
    )


def describe(tensor: torch.Tensor) -> tuple[tuple[Size, ...], torch.dtype, torch.device, bool]:
    """Shape, dtype, device, and whether it is no subclass."""
    return tuple(map(size_of, tensor.shape)), tensor.dtype, tensor.device, is_plain(tensor)


def describe_value(value: Value) -> tuple[tuple[Size, ...], torch.dtype, torch.device, bool]:
    """The same of a value."""
    return value.shape, value.dtype, value.device, value.plain


def hashable(structure: Any) -> Any:
    """A structure that can be hashed; slices cannot before Python 3.12."""
    if isinstance(structure, tuple):
        return tuple(hashable(item) for item in structure)
    return (
        ("slice", structure.start, structure.stop, structure.step)
        if isinstance(structure, slice)
        else structure
    )
