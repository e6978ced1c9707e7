"""Copies of what a fused call keeps are not kept as well: seen in what autograd saves, and in the graph."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from mhf_compile.backend import rewrite_graph
from mhf_compile.options import Options
from mhf_compile.rewriting import plan
from mhf_compile.rewriting.recomputing import RECOMPUTE, recompute_copies

TOKENS, HEADS, WIDTH = 24, 2, 32


class Routed(nn.Module):
    """A feed-forward of two sub-networks, the router of which is computed of a copy of its input."""

    def __init__(self, copy) -> None:
        super().__init__()
        self.copy = copy
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.u, self.v = (nn.Parameter(torch.randn(HEADS, 2, 20, WIDTH // HEADS)) for _ in range(3))
        self.router = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, 2))

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (HEADS, -1))
        copy = self.copy(q)
        r = torch.einsum("nhd,hde->nhe", copy, self.router.to(copy.dtype)).softmax(-1).to(q.dtype)
        gate, up = (torch.einsum("nhd,hefd->nhef", q, w) for w in (self.k, self.u))
        return torch.einsum("nhef,hefo->nho", silu(gate) * up * r[..., None], self.v).flatten(1)


COPIES = {
    "cast": lambda q: q.float(),
    "cast of a view": lambda q: q.flatten(1).to(torch.float32).view(q.shape),
    "copy and cast": lambda q: q.transpose(0, 1).contiguous().float().transpose(0, 1),
}


def saved(run, *xs):
    """The shapes and dtypes of what is saved."""
    found = []

    def pack(x):
        found.append((x.numel(), x.dtype))
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        run(*xs)
    return found


def compiled(model, inner):
    torch._dynamo.reset()
    options = {"flashmhf.require": 1, "flashmhf.inner": inner}
    return torch.compile(model, backend="flashmhf", options=options)


@pytest.fixture
def layer():
    """Makes a layer with a copy of some kind, and an input that needs a gradient."""

    def make(copy):
        torch.manual_seed(0)
        x = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        return Routed(copy).bfloat16(), x

    return make


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_an_operand_is_not_kept(copy, inner, layer):
    model, x = layer(copy)
    sizes = saved(compiled(model, inner), x)
    assert (TOKENS * WIDTH, torch.float32) not in sizes
    assert (TOKENS * WIDTH, torch.bfloat16) in sizes  # the operand


@pytest.mark.parametrize("whole", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_gradients_are_bit_by_bit_those_of_what_is_kept(copy, whole, layer, monkeypatch):
    model, x = layer(copy)
    kept = []
    for recompute in (recompute_copies, lambda *_: None):
        monkeypatch.setattr(plan, "recompute_copies", recompute)
        run = compiled((lambda x: checkpoint(model, x, use_reentrant=False)) if whole else model, "aot_eager")
        kept.append(torch.autograd.grad(run(x).sum(), [x, *model.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def marked(model, *xs):
    """The nodes that are to be recomputed, in the graph and its bodies; and the report."""
    found = []

    def keep(module, inputs):
        report = rewrite_graph(module, Options(strict=True))
        graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
        found.append(([n for graph in graphs for n in graph.nodes if RECOMPUTE in n.meta], report))
        return module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=keep, fullgraph=True)(*xs)
    (once,) = found
    return once


def test_only_copies_of_operands_are_marked(layer):
    model, x = layer(lambda q: q.float() + (2 * q).float())
    nodes, report = marked(model, x)
    assert len(report.rewrites) == 1
    assert [node.target for node in nodes] == ["unflatten", "float"]  # views cost nothing
    assert all(node.meta[RECOMPUTE] is CheckpointPolicy.PREFER_RECOMPUTE for node in nodes)


def test_what_is_written_to_is_not_marked(layer):
    model, x = layer(lambda q: q.float().mul_(2))
    nodes, report = marked(model, x)
    assert len(report.rewrites) == 1
    assert [node.target for node in nodes] == ["unflatten", "float"]


def test_a_graph_without_a_rewrite_is_not_marked():
    nodes, report = marked(lambda x: silu(x.float()) @ x.float().T, torch.randn(4, 4, dtype=torch.bfloat16))
    assert not report.rewrites and not nodes


def test_the_body_of_a_checkpoint_has_its_own_policies(layer):
    model, x = layer(COPIES["cast"])
    nodes, report = marked(lambda x: checkpoint(model, x, use_reentrant=False), x)
    assert len(report.rewrites) == 1 and not nodes
