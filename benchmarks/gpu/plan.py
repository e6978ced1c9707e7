"""What a run measures, in its order: the most important first, since the time may not suffice for all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.gpu.contest import forward, training
from benchmarks.gpu.decode import decode
from benchmarks.gpu.errors import check
from benchmarks.gpu.protocol import Lab, Shape
from benchmarks.gpu.results import Result


@dataclass(frozen=True)
class Unit:
    """One step of a run: a shape of a stage. `run` yields results as they come."""

    stage: str
    what: str
    run: Callable[[], Iterator[Result]]

    def __str__(self) -> str:
        return f"{self.stage}: {self.what}"


def plan(lab: Lab) -> Iterator[Unit]:
    """All units.

    A check first, at one shape: what is wrong need not be timed. Then the layer and the decode of every size:
    on an H100 a unit took 11 s, so that these 16 are done in three minutes. Then the operator at the goals'
    own tokens, and what is left.
    """
    protocol = lab.protocol
    (first, *others), (fewest, *more) = protocol.tokens, protocol.decode_tokens
    checks = list(correctness(lab))
    yield from checks[:1]
    for size in protocol.sizes:
        yield from both("layer", Shape("layer", size, protocol.sizes[size], first), lab)
        yield decoded(size, fewest, lab)
    yield from operators(first, lab)
    yield from checks[1:]
    few = Shape("dense", "dense", protocol.dense, protocol.ragged[-1])
    yield checked("dense", few, protocol.dtype, lab)
    yield from both("dense", replace(few, tokens=protocol.dense_tokens[0]), lab)
    for tokens in more:
        for size in protocol.sizes:
            yield decoded(size, tokens, lab)
    for tokens in others:
        yield from operators(tokens, lab)
        for size in protocol.paper if tokens in protocol.layer_tokens else ():
            if size in protocol.sizes:
                yield from both("layer", Shape("layer", size, protocol.sizes[size], tokens), lab)
    for tokens in protocol.dense_tokens[1:]:
        yield from both("dense", Shape("dense", "dense", protocol.dense, tokens), lab)


def operators(tokens: int, lab: Lab) -> Iterator[Unit]:
    """Forward and backward of the operator, of every size."""
    for size, model in lab.protocol.sizes.items():
        shape = Shape("op", size, model, tokens)
        yield timed("forward", forward, shape, lab)
        yield timed("backward", training, shape, lab)


def correctness(lab: Lab) -> Iterator[Unit]:
    """One size in its dtype, in others and at many tokens; then every size at ragged numbers of tokens."""
    protocol = lab.protocol
    cases = []
    if protocol.checked in protocol.sizes:
        cases = [(protocol.checked, protocol.ragged[-1], protocol.dtype)]
        cases += [(protocol.checked, protocol.ragged[-1], dtype) for dtype in protocol.other_dtypes]
        cases.append((protocol.checked, protocol.long, protocol.dtype))
    cases += [(size, tokens, protocol.dtype) for size in protocol.sizes for tokens in protocol.ragged]
    for size, tokens, dtype in dict.fromkeys(cases):
        yield checked("correctness", Shape("op", size, protocol.sizes[size], tokens), dtype, lab)


def decoded(size: str, tokens: int, lab: Lab) -> Unit:
    """The unit of a size at few tokens."""
    return Unit("decode", f"{size}, {tokens} tokens", partial(decode, size, tokens, lab.at("decode")))


def checked(stage: str, shape: Shape, dtype: torch.dtype, lab: Lab) -> Unit:
    """The unit of a check against float64."""
    return Unit(stage, f"{shape}, {dtype}, errors", partial(check, shape, dtype, lab.at(stage)))


def both(stage: str, shape: Shape, lab: Lab) -> Iterator[Unit]:
    """The contests of forward and training at a shape."""
    yield timed(stage, forward, shape, lab)
    yield timed(stage, training, shape, lab)


def timed(stage: str, run: Callable[[Shape, Lab], Iterator[Result]], shape: Shape, lab: Lab) -> Unit:
    """The unit of a contest at a shape."""
    return Unit(stage, f"{shape}, {run.__name__}", partial(run, shape, lab.at(stage)))
