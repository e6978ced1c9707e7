"""Record a Dynamo graph as a tape of ATen values.

The graph is run node by node on its own fake tensors under a dispatch mode, and every ATen operation is
written down with the node that issued it. A node that does what an earlier one did, on tensors of the same
shapes, strides and dtypes, is not run again: the operations of the earlier one are written down for it.

Nothing of the graph's world changes by recording: grad mode, autocast and functorch levels are put back, no
guard is added, no symbol is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import attention

from mhf_compile.notation import Size
from mhf_compile.tape.interpreter import Interpreter, Recorder
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value


@contextlib.contextmanager
def _unchanged(interpreter: Interpreter) -> Iterator[None]:
    """Put back the state that the nodes of a graph may change, also after an exception."""
    environment = interpreter.mode.shape_env
    mode = interpreter.mode
    inference = torch.is_inference_mode_enabled()
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    with contextlib.ExitStack() as stack:
        if environment is not None:
            stack.enter_context(environment.suppress_guards())
            stack.enter_context(environment.ignore_fresh_unbacked_symbols())
        for put_back in _flags():
            stack.callback(put_back)
        # Of constants that a graph holds, the mode makes fake ones.
        stack.callback(setattr, mode, "allow_non_fake_inputs", mode.allow_non_fake_inputs)
        mode.allow_non_fake_inputs = True
        # A weight's cast that autocast cached before would be a value without a history.
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            for context, leave in reversed(interpreter.contexts):
                leave(context)
            while torch._C._functorch.get_dynamic_layer_stack_depth() > depth:
                torch._C._functorch.pop_dynamic_layer_stack()
            assert torch.is_inference_mode_enabled() == inference


def _flags() -> Iterator[Callable[[], object]]:
    """What sets the flags that nodes of a graph may set to what they are now."""
    functorch, autograd = torch._C._functorch, torch._C._autograd
    yield partial(torch.set_grad_enabled, torch.is_grad_enabled())
    yield partial(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
    # torch.func.grad and jvp
    inplace = functorch.get_inplace_requires_grad_allowed()
    yield partial(functorch.set_inplace_requires_grad_allowed, inplace)
    yield partial(torch._C._set_fwd_grad_enabled, torch._C._is_fwd_grad_enabled())
    refusal = autograd._saved_tensors_hooks_get_disabled_error_message()
    if refusal is None:
        yield autograd._saved_tensors_hooks_enable
    else:
        yield partial(autograd._saved_tensors_hooks_disable, refusal)
    # torch.nn.attention.sdpa_kernel, torch.use_deterministic_algorithms
    yield partial(attention._sdpa_kernel, attention._cur_sdpa_kernel_backends())
    yield partial(torch._C._set_sdp_priority_order, torch._C._get_sdp_priority_order())
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield partial(torch._C._set_deterministic_algorithms, deterministic, warn_only=warns)


def fake_mode_of(module: fx.GraphModule) -> FakeTensorMode | None:
    """The mode that Dynamo traced a graph in; ``detect_fake_mode`` in a backend would give another one."""
    for node in module.graph.nodes:
        example = node.meta.get("example_value")
        if isinstance(example, FakeTensor):
            return example.fake_mode
    return None


def record(module: fx.GraphModule) -> Tape:
    """Record a Dynamo graph.

    Args:
        module: the graph as a backend gets it, each node with its ``example_value``.

    Returns:
        The tape; empty for a graph without tensors.
    """
    tape = Tape()
    mode = fake_mode_of(module)
    if mode is None:
        return tape
    interpreter = Interpreter(tape, mode)
    if mode.shape_env is not None:
        hints = mode.shape_env.backed_var_to_val.items()  # the sizes of nested tensors have none
        tape.hints = {symbol: int(hint) for symbol, hint in hints if hint.is_Integer}
    with _unchanged(interpreter):
        inputs = [
            interpreter.fake(n.meta.get("example_value")) for n in module.graph.nodes if n.op == "placeholder"
        ]
        interpreter.run(module, inputs)
    tape.scopes[0].breaks = why_it_is_a_part(module)
    return tape


PIECE = "DistributedDataParallel's gradient buckets"
"""Where Dynamo's DDPOptimizer split the graph: then it compiles each piece."""


def why_it_is_a_part(module: fx.GraphModule) -> str:
    """Why a program goes on in another graph than the one that is being compiled; "" where it does not."""
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.ddp_optimizer_ctx is not None:
        return PIECE
    reason = getattr(module, "compile_subgraph_reason", None)  # Dynamo's, of why it ended the graph
    if reason is None or not reason.graph_break:
        return ""
    return str(reason.reason).partition("\n")[0]  # what follows is for Dynamo's developers


def record_function(
    function: Callable[..., object], *shapes: tuple[Size, ...] | None, dtype: torch.dtype = torch.float64
) -> tuple[Tape, list[Value | None], Value]:
    """Record a plain function of tensors of some shapes (None: no tensor): (tape, inputs, result).

    It is run on meta tensors, whose shapes PyTorch computes several times as fast as those of fake ones.
    """
    tape = Tape()
    inputs = [
        None if shape is None else torch.empty([int(s) for s in shape], dtype=dtype, device="meta")
        for shape in shapes
    ]
    values = [None if tensor is None else tape.value(tensor) for tensor in inputs]
    with torch.device("meta"), Recorder(tape):
        result = function(*inputs)
    assert isinstance(result, torch.Tensor)
    return tape, values, tape.value(result)
