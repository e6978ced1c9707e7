"""The implementations that the GPU benchmark compares: ours, PyTorch's, Liger's, and any other by name.

What is compared at a shape are entrants. They are made one after the other, so that one which cannot be made
does not keep the others from running.
"""

import argparse
import importlib.util
import symtable
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import mhf_compile
from benchmarks.formula import formula
from benchmarks.gpu.protocol import Lab, Op, Peer, Protocol, Shape
from mhf_compile.models import FlashMHF, ModelConfig, SwiGLU

STAGES = ("correctness", "forward", "backward", "layer", "decode", "dense")
EAGER, INDUCTOR, OURS = "eager", "Inductor", "flashmhf"
SWIGLU_EAGER, SWIGLU_INDUCTOR, SWIGLU_LIGER = "SwiGLU cuBLAS", "SwiGLU Inductor", "SwiGLU Liger"


@dataclass(frozen=True)
class Entrant:
    """An implementation with its operands.

    Attributes:
        forward: makes the output.
        trained: the tensors that a training step makes gradients of.
        gradient: of the output, which the backward starts from.
    """

    forward: Callable[[], Tensor]
    trained: list[Tensor]
    gradient: Tensor

    def infer(self, _: object = None) -> Tensor:
        """Run a forward that nothing is kept of."""
        with torch.no_grad():
            return self.forward()

    def backward(self, out: Tensor) -> tuple[Tensor, ...]:
        """Make the gradients of a forward's output."""
        return torch.autograd.grad(out, self.trained, self.gradient)

    def step(self, _: object = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a forward and a backward; output and gradients are alive together."""
        out = self.forward()
        return out, self.backward(out)


Maker = Callable[[], Entrant]
"""Makes an entrant, and its weights where it has its own; raises where it cannot."""


class Named(NamedTuple):
    """A peer that a command names: a function of a file, and the stages that it is for."""

    file: Path
    function: str
    stages: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file.stem}:{self.function}"


def named(text: str) -> Named:
    """Read `file.py:function`, or `file.py:function@stage,stage`. The file is read, not run.

    Raises:
        argparse.ArgumentTypeError: there is no such file, function or stage.
    """
    before, _, given = text.partition("@")
    path, _, function = before.rpartition(":")
    file = Path(path)
    if not (function and file.is_file()):
        raise argparse.ArgumentTypeError(f"must be file.py:function, of a file that exists, not {before!r}")
    stages = tuple(given.split(",")) if given else STAGES
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: stages are {', '.join(STAGES)}")
    try:
        bound = symtable.symtable(file.read_text(), path, "exec").get_identifiers()
    except (SyntaxError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} is not Python: {error}") from error
    if function not in bound:
        raise argparse.ArgumentTypeError(f"{path} has no function {function}")
    return Named(file, function, stages)


def load(named: Named) -> Peer:
    """Run the file of a peer, and take its function.

    Raises:
        Exception: whatever the file raises.
    """
    spec = importlib.util.spec_from_file_location(f"peer_{named.file.stem}", named.file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{named.file} is not Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Peer(getattr(module, named.function), named.stages)


def operands(model: ModelConfig, tokens: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Draw q [1, N, H, D], k, u, v [H, E, F, D] and r [1, N, H, E] so that variances are near 1."""
    weight = (model.ffn_heads, model.subnetworks, model.subnetwork_width, model.head_dim)
    shapes = (
        ((1, tokens, model.ffn_heads, model.head_dim), 1),
        (weight, model.head_dim),
        (weight, model.head_dim),
        (weight, model.subnetwork_width),
        ((1, tokens, model.ffn_heads, model.subnetworks), model.subnetworks),
    )
    return [
        (torch.randn(shape, dtype=dtype, device=device) * fan_in**-0.5).requires_grad_()
        for shape, fan_in in shapes
    ]


def ops(lab: Lab) -> dict[str, Op]:
    """The implementations of the operator: its formula, eager and compiled, other peers, and ours, last."""
    fast = compiled(formula, lab.protocol.compiler)
    peers = {name: peer.function for name, peer in lab.peers.items()}
    return {EAGER: formula, INDUCTOR: fast, **peers, OURS: mhf_compile.flash_mhf}


def compiled(function: Op, compiler: str) -> Op:
    """Compile for the very shapes of the first call."""
    return torch.compile(function, backend=compiler, dynamic=False, fullgraph=True)


def makers(shape: Shape, lab: Lab) -> dict[str, Maker]:
    """Who takes part at a shape, ours last."""
    match shape.level:
        case "op":
            return _op_makers(shape, lab.protocol, ops(lab))
        case "dense":
            return _dense_makers(shape, lab.protocol)
        case _:
            return _layer_makers(shape, lab.protocol)


def _op_makers(shape: Shape, protocol: Protocol, functions: Mapping[str, Op]) -> dict[str, Maker]:
    """All share their operands."""
    xs = operands(shape.model, shape.tokens, protocol.dtype, protocol.device)
    gradient = torch.randn_like(xs[0])

    def maker(function: Op) -> Maker:
        return lambda: Entrant(lambda: function(*xs), xs, gradient)

    return {name: maker(function) for name, function in functions.items()}


def _dense_makers(shape: Shape, protocol: Protocol) -> dict[str, Maker]:
    """The operator with one head and no router, and the same feed-forward as three linear layers."""
    q, k, u, v, _ = operands(shape.model, shape.tokens, protocol.dtype, protocol.device)
    gradient = torch.randn_like(q)
    x, weights = q.detach().squeeze(2).requires_grad_(), [w.detach()[0, 0] for w in (k, u, v.mT.contiguous())]
    weights = [weight.requires_grad_() for weight in weights]
    fast = compiled(swiglu, protocol.compiler)

    def plain(function: Op) -> Maker:
        return lambda: Entrant(lambda: function(x, *weights), [x, *weights], gradient.squeeze(2))

    return {
        SWIGLU_EAGER: plain(swiglu),
        SWIGLU_INDUCTOR: plain(fast),
        **_liger_makers(x, shape.model.ffn_width),
        OURS: lambda: Entrant(lambda: mhf_compile.flash_mhf(q, k, u, v), [q, k, u, v], gradient),
    }


def _layer_makers(shape: Shape, protocol: Protocol) -> dict[str, Maker]:
    """Layers of equal parameters, each with weights of its own; ours has two more projections."""
    dtype, device = protocol.dtype, protocol.device
    x = torch.randn(1, shape.tokens, shape.model.hidden, dtype=dtype, device=device, requires_grad=True)
    backend = mhf_compile.flashmhf  # not its name: where nothing is installed the name is not known
    options: dict[str, Any] = {"flashmhf.require": 1, "flashmhf.inner": protocol.compiler}

    def swiglu_layer() -> Entrant:
        with torch.device(device):
            layer = SwiGLU(shape.model).to(dtype)
        return _layer(layer, torch.compile(layer, backend=protocol.compiler, dynamic=False), x)

    def ours() -> Entrant:
        with torch.device(device):
            layer = FlashMHF(shape.model).to(dtype)
        return _layer(layer, torch.compile(layer, backend=backend, dynamic=False, options=options), x)

    return {SWIGLU_INDUCTOR: swiglu_layer, **_liger_makers(x, shape.model.swiglu_width), OURS: ours}


def _layer(layer: nn.Module, function: Op, x: Tensor) -> Entrant:
    """An entrant of a layer's weights and an input, which takes a gradient as it does inside a model."""
    return Entrant(lambda: function(x), [x, *layer.parameters()], torch.randn_like(x))


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The dense feed-forward; weights as those of `nn.Linear`."""
    hidden = functional.silu(functional.linear(x, gate)) * functional.linear(x, up)
    return functional.linear(hidden, down)


def has_liger() -> bool:
    """Whether Liger-Kernel is installed."""
    return importlib.util.find_spec("liger_kernel") is not None


def _liger_makers(x: Tensor, width: int) -> dict[str, Maker]:
    """Liger's layer of that width, where it is installed."""

    def maker() -> Entrant:
        from liger_kernel.transformers import LigerSwiGLUMLP

        sizes = SimpleNamespace(hidden_size=x.shape[-1], intermediate_size=width, hidden_act="silu")
        layer = LigerSwiGLUMLP(sizes).to(x.device, x.dtype)
        return _layer(layer, layer, x)

    return {SWIGLU_LIGER: maker} if has_liger() else {}
