"""Faults to plant in the stages of the analysis, and what must then be as it was."""

from __future__ import annotations

import gc
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy
import torch
from torch import Tensor, fx
from torch._functorch.vmap import vmap_increment_nesting
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.fx.graph_module import _loader
from torch.nn import attention
from torch.nn.functional import silu
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

from mhf_compile import backend
from mhf_compile.graphs import copied_module
from mhf_compile.matching import linearity
from mhf_compile.matching import normal_form as normal
from mhf_compile.matching import search as match
from mhf_compile.reading import activations as activation
from mhf_compile.reading import reader as read
from mhf_compile.report.report import Report
from mhf_compile.rewriting import operands as build
from mhf_compile.rewriting import plan, region, replay, surgery
from mhf_compile.rewriting import proof as prove
from mhf_compile.tape import interpreter, template
from mhf_compile.tape.recorder import fake_mode_of
from mhf_compile.tape.tape import Tape

EAGER = {"flashmhf.inner": "eager"}
STRICT = {**EAGER, "flashmhf.strict": True}
N, H, F, D = 6, 2, 5, 4


def forget() -> None:
    """Empty every cache of functions of the analysis: the next one fills them."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mhf_compile.") and "kernels" not in name:
            for function in vars(module).values():
                if hasattr(function, "cache_clear") and function.__module__ == name:
                    function.cache_clear()


# -- what must be as it was ---------------------------------------------------------------------------------


def world() -> dict[str, object]:
    """The state of this thread and process that an analysis could leave changed."""
    functorch = torch._C._functorch
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "forward mode": torch._C._is_fwd_grad_enabled(),
        "dual level": torch.autograd.forward_ad._current_level,
        "saved tensors hooks": torch._C._autograd._saved_tensors_hooks_get_disabled_error_message(),
        "autocast": [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "functorch": (functorch.maybe_current_level(), len(functorch.get_interpreter_stack() or ())),
        "inplace requires grad": functorch.get_inplace_requires_grad_allowed(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "function modes": _get_current_function_mode_stack(),
        "torch function": (torch._C._is_torch_function_enabled(), torch._C._is_torch_function_all_disabled()),
        "python dispatcher": torch._C._dispatch_tls_is_dispatch_key_included(
            torch._C.DispatchKey.PythonDispatcher
        ),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "sdpa": (attention._cur_sdpa_kernel_backends(), torch._C._get_sdp_priority_order()),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "random": (
            torch.get_rng_state().tolist(),
            random.getstate(),
            [str(x) for x in numpy.random.get_state()],
        ),
        "collector": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
        "generated code": len(_loader.eval_cache),
        "cache key": torch.compiler.config.cache_key_tag,
        "tracing": torch._guards.TracingContext.try_get(),
    }


def shapes(module: fx.GraphModule) -> tuple[object, ...]:
    """The state of a graph's symbols."""
    mode = fake_mode_of(module)
    assert mode is not None
    environment = mode.shape_env
    assert environment is not None
    return (
        mode.enter_stack[:],
        [str(guard.expr) for guard in environment.guards],
        dict(environment.replacements),
        dict(environment.var_to_range),
        dict(environment.backed_var_to_val),
        {symbol: list(asserts) for symbol, asserts in environment.deferred_runtime_asserts.items()},
        list(environment.pending_fresh_unbacked_symbols),
        environment._ignore_fresh_unbacked_symbols_tls(),
        environment._suppress_guards_tls(),
    )


def lines(module: fx.GraphModule) -> list[tuple[object, ...]]:
    """A graph and its bodies, node for node."""
    own: list[tuple[object, ...]] = [
        (n.op, n.name, str(n.target), str(n.args), str(n.kwargs), list(map(str, n.users)), sorted(n.meta))
        for n in module.graph.nodes
    ]
    bodies = [part for _, part in module.named_children() if isinstance(part, fx.GraphModule)]
    return [*own, (module.code,), *(line for body in bodies for line in lines(body))]


@contextmanager
def unchanged(module: fx.GraphModule, but: Sequence[str] = ()) -> Iterator[None]:
    """Check that the block leaves the world and a graph as they were."""
    before = lines(module), shapes(module), world()
    yield
    after = lines(module), shapes(module), world()
    for name in (name for name in before[2] if name not in but):
        assert after[2][name] == before[2][name], name
    assert after[:2] == before[:2]


# -- the model ----------------------------------------------------------------------------------------------


def feed_forward(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    hidden = silu(torch.einsum("nhd,hfd->nhf", x, k)) * torch.einsum("nhd,hfd->nhf", x, u)
    return torch.einsum("nhf,hfo->nho", hidden, v)


def program(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Two feed-forwards, one of them in a checkpoint, among modes that are switched."""
    with torch.autocast("cpu", torch.bfloat16):
        low = (x[:, 0] @ k[0].t()).mean()
    with torch.no_grad():
        scale = 1 + x.abs().mean()
    moved = torch.vmap(lambda row: row * row)(x)
    between = feed_forward(moved * scale, k, u, v) + low
    result: Tensor = checkpoint(feed_forward, between, k, u, v, use_reentrant=False)
    return result


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(N, H, D), (H, F, D), (H, F, D), (H, F, D)]
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


def outcome(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    """The result of a function, and the gradients of what it is given."""
    result = function(*inputs)
    result = result[0] if isinstance(result, (tuple, list)) else result
    given = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [result.detach(), *torch.autograd.grad(result.square().sum(), given)]


def captured(function: Callable[..., Any], given: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Any]]:
    """Dynamo's graph of a function, and its inputs."""
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def keep(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
        found.append((copied_module(module), list(inputs)))
        return module

    torch._dynamo.reset()
    torch.compile(function, backend=keep, fullgraph=True)(*given)
    return found[0]


def check_right(report: Report) -> None:
    """Check that both feed-forwards were rewritten."""
    assert [rewrite.proof.startswith("exact") for rewrite in report.rewrites] == [True, True]
    assert (report.misses, report.notes) == ((), ())


# -- stages -------------------------------------------------------------------------------------------------

STAGES: dict[str, tuple[object, str]] = {
    "record": (backend, "record"),
    "a node is run": (interpreter.Interpreter, "node"),
    "an operation is recorded": (Tape, "record"),
    "a node is repeated": (template.Template, "apply"),
    "activations": (activation.Activations, "__init__"),
    "an activation is named": (activation, "identify"),
    "candidates": (linearity.Linearity, "__init__"),
    "a rule is applied": (read.Reader, "definition"),
    "an operand is read": (read.Reader, "operand"),
    "the formula": (match, "normal_pattern"),
    "normal form": (match, "normal_form"),
    "fold": (normal, "fold"),
    "unify": (match, "unify"),
    "region": (region.Region, "__init__"),
    "region's check": (plan, "check"),
    "proof": (prove, "prove"),
    "a table of the proof": (replay, "table"),
    "an operation of the proof": (replay.Replay, "_run"),
    "an operand is built": (build.Builder, "operand"),
    "replace": (surgery.Surgeon, "replace"),
    "a node is added": (surgery._Emitter, "call"),
    "redirect": (surgery.Surgeon, "_redirect"),
    "erase": (surgery.Surgeon, "_erase"),
    "describe": (backend, "rewrite_of"),
    "finish": (surgery.Surgeon, "finish"),
    "log": (backend.log, "info"),
    "json": (Report, "to_json"),
    "trace": (backend, "trace_structured_artifact"),
}
OPERATED = ("replace", "redirect", "erase", "describe", "finish", "log", "json", "trace", "a node is added")
"""Stages at which graphs were changed; to put them back, torch.fx generates their code again."""

FILLING = ("an activation is named", "the formula", "normal form", "a table of the proof")
"""Stages in which caches are filled."""

ERRORS = (RuntimeError, RecursionError, AssertionError, MemoryError, ZeroDivisionError)


def fails(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("planted")


@contextmanager
def watched(stage: str, act: Callable[[int], object]) -> Iterator[None]:
    """Act before each call of a stage, given the number of the call."""
    owner, name = STAGES[stage]
    original, calls = getattr(owner, name), itertools.count(1)

    def function(*args: Any, **kwargs: Any) -> Any:
        act(next(calls))
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, function):
        yield


@contextmanager
def broken(stage: str, at: int, error: type[BaseException]) -> Iterator[None]:
    """Let one call of a stage fail. That it comes is checked."""
    raised: list[int] = []

    def act(number: int) -> None:
        if number == at:
            raised.append(number)
            raise error("planted")

    with watched(stage, act):
        yield
    assert raised == [at]


# -- where it happens ----------------------------------------------------------------------------------------


def seen(tensor: Tensor) -> Tensor:
    raise AssertionError("an analysis is seen")


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("an analysis is seen")


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("an analysis is seen")


AROUND: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another dtype": lambda: default_dtype(torch.float64),
    "another device": lambda: torch.device("meta"),
}

UNSEEN: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "hooks on saved tensors": lambda: saved_tensors_hooks(seen, seen),
    "no hooks on saved tensors": lambda: disable_saved_tensors_hooks("not here"),
    "a function mode": _Functions,
    "a dispatch mode": _Dispatched,
    "a fake mode": FakeTensorMode,
    "vmap": lambda: vmap_increment_nesting(3, "error"),
}
"""What looks on, and raises where it sees something."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
