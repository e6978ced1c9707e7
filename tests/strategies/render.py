"""A program as the text of a module, ``make()`` of which gives a model and its inputs."""

from __future__ import annotations

from tests.strategies.choices import FLOWS, Spec, Writing
from tests.strategies.layer import Changes, Lines, Renderer
from tests.strategies.revealed import revealed

HEAD = """\
import einops
import torch
from torch import nn
from torch.nn.functional import conv1d, gelu, glu, layer_norm, linear, relu, silu
from torch.utils.checkpoint import checkpoint

dtype = torch.{dtype}
wide = torch.promote_types(dtype, torch.float32)
"""

BROKEN = '''\
def broken(x):
    """A value behind a graph break."""
    torch._dynamo.graph_break()
    return x
'''

SCALED = '''\
class Scaled(torch.autograd.Function):
    """A factor that its backward knows as well."""

    @staticmethod
    def forward(ctx, x):
        return 0.5 * x

    @staticmethod
    def backward(ctx, grad):
        return 0.5 * grad
'''

MAKE = """\
def make():
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, (torch.randn({shape}).to(dtype).requires_grad_(),)
"""


def render(
    spec: Spec, writing: Writing, changes: Changes = (), reveal: bool = False
) -> tuple[str, set[tuple[str, str]]]:
    """The text of a program, and which of the changes found their place.

    With ``reveal``, a feed-forward has a method that gives the operands of the formula.
    """
    renderer = Renderer(spec, writing, changes)
    layer = renderer.render()
    if reveal:
        layer = "\n".join([layer, *revealed(renderer)])
    channels, results = spec.channels, spec.results
    made, lines = Lines(2), Lines(2)
    flow, _ = FLOWS[writing.flow]
    made("self.a = FeedForward()")
    if "{b" in flow:
        made("self.b = FeedForward()")
    if "w_out" in flow:
        made(f"self.w_out = nn.Parameter(torch.randn(4, {results}))")
    if "bias_out" in flow:
        made(f"self.bias_out = nn.Parameter(torch.randn({results}))")

    def call(ffn: str, x: str) -> str:
        if writing.mode == "checkpoint":
            return f"checkpoint(self.{ffn}, {x}, use_reentrant=False)"
        if writing.mode == "function":
            return f"Scaled.apply(self.{ffn}(Scaled.apply({x})))"
        return f"self.{ffn}({x})"

    if writing.mode in ("autocast", "no_grad"):
        context = {"autocast": 'torch.autocast("cpu", torch.bfloat16)', "no_grad": "torch.no_grad()"}
        lines(f"with {context[writing.mode]}:")
        lines.depth += 1
    a = call("a", "x")
    norm = call("a", f"layer_norm(x, ({channels},))")
    chained = {"b_of_a": call("b", a), "b_of_broken_a": call("b", f"broken({a})"), "a_of_a": call("a", a)}
    result = flow.format(a=a, b=call("b", "x"), a_of_norm=norm, **chained)
    lines(f"return {result}")
    model = [
        "class Model(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *made.text,
        "",
        "    def forward(self, x):",
        *lines.text,
        "",
    ]
    parts = [HEAD.format(dtype=spec.dtype), layer + "\n", "\n".join(model)]
    if writing.mode == "function":
        parts.insert(1, SCALED)
    if "broken" in flow:
        parts.insert(1, BROKEN)
    parts.append(MAKE.format(shape=f"{spec.batch}, {spec.length}, {channels}"))
    return "\n\n".join(parts), renderer.applied
