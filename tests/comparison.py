"""Compare a compiled program with eager, both against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

import mhf_compile
from mhf_compile.kernels.flash_mhf import blocked
from mhf_compile.report.report import Report

LONGEST_SUM = 1000

Program = Callable[..., Tensor]


@dataclass(frozen=True)
class Comparison:
    """What came of a program: root-mean-square errors of its result and gradients, and the report."""

    eager: list[float]
    compiled: list[float]
    calls: int
    reports: list[Report]

    def check_error(self) -> None:
        """The law: the error against float64 is at most twice eager's own.

        Both errors are root mean squares over a tensor; its rounding errors are independent enough that this
        does not hang on a single entry, as a maximum would. The float64 reference itself is rounded: its sums
        have fewer than LONGEST_SUM products, each off by half a unit in the last place at most.
        """
        reference = LONGEST_SUM * torch.finfo(torch.float64).eps / 2
        for before, after in zip(self.eager, self.compiled, strict=True):
            assert after <= 2 * before + reference, (self.eager, self.compiled)

    @property
    def rewrites(self) -> int:
        return sum(len(report.rewrites) for report in self.reports)


def outcome(
    program: Program, tensors: Sequence[Tensor], context: AbstractContextManager[object]
) -> list[Tensor]:
    """The result of a program and, where it has them, the gradients of all its tensors."""
    with context:
        result = program(*tensors)
    needed = [tensor for tensor in tensors if tensor.requires_grad]
    if not result.requires_grad:
        return [result]
    return [result.detach(), *torch.autograd.grad(result.square().mean(), needed)]


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Count the calls of the fused op on the CPU."""
    calls = [0]
    forward = blocked.forward

    def counting(*args: object, **kwargs: object) -> Tensor:
        calls[0] += 1
        return forward(*args, **kwargs)  # type: ignore[arg-type]

    with mock.patch.object(blocked, "forward", counting):
        yield calls


def compare(
    program: Program,
    tensors: Sequence[Tensor],
    *,
    options: dict[str, object] | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Comparison:
    """Run a program eager, compiled, and eager in float64."""
    torch._dynamo.reset()
    exact = outcome(
        program, [t.detach().double().requires_grad_(t.requires_grad) for t in tensors], nullcontext()
    )
    before = outcome(program, tensors, context())
    compiled = torch.compile(
        program, backend="flashmhf", options={"flashmhf.strict": True, **(options or {})}
    )
    with counted_calls() as calls:
        after = outcome(compiled, tensors, context())
    return Comparison(_errors(before, exact), _errors(after, exact), calls[0], mhf_compile.last_reports())


def _errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=False)]
