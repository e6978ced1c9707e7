"""What a FlashMHF layer keeps for its backward, beside a SwiGLU of equal parameters; allocations are counted.

On the CPU, whose graphs Inductor partitions as a GPU's. What is kept is the same on both; the peaks differ by
what the operators need for themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from benchmarks.results import number_table
from benchmarks.settings import Settings
from mhf_compile.commands.measure import progress
from mhf_compile.models import FlashMHF, SwiGLU

MIB = 2**20


@dataclass(frozen=True)
class Kept:
    """A tensor that is kept for the backward; of several in one memory, the first."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Step:
    """A training step, in bytes.

    Attributes:
        kept: between forward and backward, beside parameters, input and output.
        peak: the most that is allocated at a time, over what there was before.
        results: of that, output and gradients.
    """

    kept: tuple[Kept, ...]
    peak: int
    results: int


def run(settings: Settings) -> dict[str, object]:
    """Count for each implementation, print the numbers, and say what ours keeps."""
    print(f"What a layer keeps: {settings}", flush=True)
    steps = {}
    for name, make in IMPLEMENTATIONS.items():
        with progress(f"  {name}"):
            steps[name] = count(make, settings)
    rows = {
        name: [sum(one.nbytes for one in step.kept) / MIB, step.peak / MIB, step.results / MIB]
        for name, step in steps.items()
    }
    print("\n" + number_table("MiB", ["kept", "peak", "results"], rows, digits=1))
    print("\nflashmhf keeps, beside parameters and input:")
    for one in steps[OURS].kept:
        print(f"  {one.nbytes / MIB:8.2f} MiB  {one.dtype} {list(one.shape)}")
    return {name: asdict(step) for name, step in steps.items()}


Layer = Callable[[Tensor], Tensor]


def _eager(layer: nn.Module) -> Layer:
    return layer


def _inductor(layer: nn.Module) -> Layer:
    return torch.compile(layer)


def _ours(layer: nn.Module) -> Layer:
    return torch.compile(layer, backend="flashmhf", options={"flashmhf.require": 1})


OURS = "FlashMHF, flashmhf"
IMPLEMENTATIONS: dict[str, tuple[type[FlashMHF | SwiGLU], Callable[[nn.Module], Layer]]] = {
    "SwiGLU, eager": (SwiGLU, _eager),
    "SwiGLU, Inductor": (SwiGLU, _inductor),
    OURS: (FlashMHF, _ours),
}


def count(make: tuple[type[FlashMHF | SwiGLU], Callable[[nn.Module], Layer]], settings: Settings) -> Step:
    """Count the allocations of a second step."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    network, compiled = make
    layer = network(settings.model).to(settings.torch_dtype)
    x = torch.randn(1, settings.tokens, settings.model.hidden, dtype=settings.torch_dtype, requires_grad=True)
    run, grad = compiled(layer), torch.randn(x.shape, dtype=x.dtype)
    trained = [x, *layer.parameters()]
    run(x).backward(grad)
    results = grad.nbytes + sum(tensor.nbytes for tensor in trained)
    for tensor in trained:
        tensor.grad = None
    with _saved(trained) as saved:
        run(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run(x).backward(grad)
    return Step(tuple(saved), _peak(recorded), results)


@contextmanager
def _saved(known: list[Tensor]) -> Iterator[list[Kept]]:
    """What autograd saves in the block, once for each memory, without what is known before."""
    memories = {tensor.untyped_storage().data_ptr() for tensor in known}
    held: list[Tensor] = []  # or a freed memory may be given to the next
    kept: list[Kept] = []

    def pack(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in memories:
            memories.add(memory.data_ptr())
            held.append(x.detach())
            kept.append(Kept(tuple(x.shape), str(x.dtype).removeprefix("torch."), memory.nbytes()))
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        yield kept
    kept.sort(key=lambda one: -one.nbytes)


def _peak(recorded: profile) -> int:
    """The highest sum of what was allocated, less what was freed."""
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events: list[Any] = recorded.profiler.kineto_results.events()
    changes = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(accumulate((int(change.nbytes()) for change in changes), initial=0))
