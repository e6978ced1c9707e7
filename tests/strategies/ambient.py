"""The states of PyTorch that a program may be compiled and run in, and the programs that are run in them.

A state is around the call of a compiled function, a way to call it, or a change to the function itself.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.nn.functional import dropout, silu
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

Program = Callable[..., Any]
Compile = Callable[[Program], Program]

T, H, F, D = 6, 2, 5, 4

# -- programs -----------------------------------------------------------------------------------------------


def feed_forward(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    hidden = silu(torch.einsum("nhd,hfd->nhf", x, k)) * torch.einsum("nhd,hfd->nhf", x, u)
    return torch.einsum("nhf,hfo->nho", hidden, v)


def layered(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Computes q, and goes on with the result."""
    return (x + feed_forward(x.relu() * 2, k, u, v)) / 2


def noisy(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return feed_forward(x + torch.rand(x.shape[-1]), k, u, v) * dropout(x, 0.5)


def in_rows(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Matrix products, and a buffer made in it that is written to."""
    out = torch.zeros_like(x)
    for h in range(H):
        out[:, h] += (silu(x[:, h] @ k[h].t()) * (x[:, h] @ u[h].t())) @ v[h]
    return out


def near(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """No match: the gate is of the next token."""
    gate = silu(torch.einsum("nhd,hfd->nhf", x, k)).roll(1, 0)
    return torch.einsum("nhf,hfo->nho", gate * torch.einsum("nhd,hfd->nhf", x, u), v)


def attention(x: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Nothing like one."""
    return (torch.einsum("nhd,hfd->nhf", x, k) + u.sum()).softmax(-1) @ v


PROGRAMS: dict[str, Program] = {
    p.__name__: p for p in (feed_forward, layered, noisy, in_rows, near, attention)
}


def arguments(grad: bool, tokens: int = T) -> list[Tensor]:
    """Arguments of each program."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(tokens, H, D), (H, F, D), (H, F, D), (H, F, D)]
    made = [torch.randn(size, generator=generator, dtype=torch.float32, device="cpu") for size in sizes]
    return [tensor.requires_grad_(grad) for tensor in made]


# -- around the call ----------------------------------------------------------------------------------------


class Seen:
    """What a state is shown of what is run in it."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def see(self, tensor: Tensor) -> Tensor:
        self.kinds.append(type(tensor).__name__)
        return tensor


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def uncollected() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


AROUND: dict[str, Callable[[Compile, Seen], AbstractContextManager[Any]]] = {
    "no_grad": lambda _, __: torch.no_grad(),
    "inference_mode": lambda _, __: torch.inference_mode(),
    "autocast": lambda _, __: autocast(),
    "hooks": lambda _, seen: saved_tensors_hooks(seen.see, lambda tensor: tensor),
    "save_on_cpu": lambda _, __: save_on_cpu(),
    "no_hooks": lambda _, __: disable_saved_tensors_hooks("not here"),
    "deterministic": lambda _, __: deterministic(),
    "double": lambda _, __: double(),
    "device": lambda _, __: torch.device("cpu"),
    "function_mode": lambda _, __: Functions(),
    "dispatch_mode": lambda _, __: Dispatched(),
    "flop_counter": lambda _, __: FlopCounterMode(display=False),
    "fake_mode": lambda _, __: FakeTensorMode(allow_non_fake_inputs=True),
    "compiled_autograd": lambda compiled, _: compiled_autograd._enable(compiled),
    "dual_level": lambda _, __: forward_ad.dual_level(),
    "anomaly": lambda _, __: torch.autograd.detect_anomaly(check_nan=False),
    "uncollected": lambda _, __: uncollected(),
}

# -- ways to call -------------------------------------------------------------------------------------------


def in_threads(program: Program, *args: Tensor) -> Any:
    """Called in three threads at once."""
    start = Barrier(3)

    def run() -> Any:
        start.wait(timeout=60)
        return program(*args)

    with ThreadPoolExecutor(3) as pool:
        results = [future.result(timeout=120) for future in [pool.submit(run) for _ in range(3)]]
    return torch.stack(results)


def in_forward_mode(program: Program, x: Tensor, *args: Tensor) -> Any:
    """The derivative in the direction of x."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(program(forward_ad.make_dual(x, x.detach()), *args)).tangent


CALLS: dict[str, Program] = {
    "plainly": lambda f, *args: f(*args),
    "checkpoint": lambda f, *args: checkpoint(f, *args, use_reentrant=False),
    "reentrant_checkpoint": lambda f, *args: checkpoint(f, *args, use_reentrant=True),
    "threads": in_threads,
    "vmap": lambda f, x, *args: torch.vmap(lambda row: f(row, *args))(torch.stack([x, 2 * x])),
    "func_grad": lambda f, x, *args: torch.func.grad(lambda y: f(y, *args).sum())(x),
    "func_jvp": lambda f, x, *args: torch.func.jvp(lambda y: f(y, *args), (x,), (x,))[1],
    "forward_mode": in_forward_mode,
    "no_tokens": lambda f, x, *args: f(x[:0], *args),
}

# -- inside the compiled function ---------------------------------------------------------------------------


def under(context: Callable[[], AbstractContextManager[Any]], program: Program) -> Program:
    def run(*args: Tensor) -> Any:
        with context():
            return program(*args)

    return run


def by(way: str, program: Program) -> Program:
    return partial(CALLS[way], program)


def regional(program: Program) -> Program:
    """Run twice."""
    region = torch.compiler.nested_compile_region(program)
    return lambda x, *args: region(region(x, *args), *args)


def of_data(program: Program) -> Program:
    """Of as many tokens as the data tell."""
    return lambda x, *args: program(x[x[:, 0, 0] > 0], *args)


WITHIN: dict[str, Callable[[Program], Program]] = {
    "no_grad": partial(under, torch.no_grad),
    "enable_grad": partial(under, torch.enable_grad),
    "inference_mode": partial(under, torch.inference_mode),
    "autocast": partial(under, autocast),
    "no_hooks": partial(under, lambda: disable_saved_tensors_hooks("not here")),
    "checkpoint": partial(by, "checkpoint"),
    "reentrant_checkpoint": partial(by, "reentrant_checkpoint"),
    "vmap": partial(by, "vmap"),
    "func_grad": partial(by, "func_grad"),
    "func_jvp": partial(by, "func_jvp"),
    "no_tokens": partial(by, "no_tokens"),
    "nested_region": regional,
    "of_data": of_data,
}
