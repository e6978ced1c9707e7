"""Copies of what a fused call keeps are not kept as well: seen in what autograd saves, and in the graph."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from mhf_compile.options import Options
from mhf_compile.rewriting.recomputing import RECOMPUTE
from mhf_compile.rewriting.surgery import copied

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


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_an_operand_is_not_kept(copy, inner):
    torch.manual_seed(0)
    model = Routed(copy).bfloat16()
    x = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    run = compiled(model, inner)
    sizes = saved(run, x)
    assert (TOKENS * WIDTH, torch.float32) not in sizes
    assert (TOKENS * WIDTH, torch.bfloat16) in sizes  # the operand
    ours = torch.autograd.grad(run(x).sum(), [x, *model.parameters()])
    exact = torch.autograd.grad(model(x).sum(), [x, *model.parameters()])
    for a, b in zip(ours, exact, strict=True):
        assert float((a - b).float().norm()) <= 0.03 * float(b.float().norm())  # a few roundings of 2^-8


def marked(model, *xs):
    """The targets of the nodes that are to be recomputed, and what had a policy before."""
    graphs = []

    def keep(module, inputs):
        before = copied(module.graph)
        from mhf_compile.backend import rewrite_graph

        report = rewrite_graph(module, Options(strict=True))
        graphs.append((before, module.graph, report))
        return module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=keep, fullgraph=True)(*xs)
    ((_, graph, report),) = graphs
    return [node for node in graph.nodes if RECOMPUTE in node.meta], report


def test_only_copies_of_operands_are_marked():
    x = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16)

    def copy(q):
        return q.float() + (2 * q).float()

    nodes, report = marked(Routed(copy).bfloat16(), x)
    assert len(report.rewrites) == 1
    assert [node.target for node in nodes] == ["unflatten", "float"]  # views cost nothing
    assert all(node.meta[RECOMPUTE] is CheckpointPolicy.PREFER_RECOMPUTE for node in nodes)


def test_what_is_written_to_is_not_marked():
    x = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16)
    nodes, report = marked(Routed(lambda q: q.float().mul_(2)).bfloat16(), x)
    assert len(report.rewrites) == 1
    assert all(node.target != "mul_" for node in nodes)


def test_a_graph_without_a_rewrite_is_not_marked():
    nodes, report = marked(lambda x: silu(x.float()) @ x.float().T, torch.randn(4, 4, dtype=torch.bfloat16))
    assert not report.rewrites and not nodes


def test_the_body_of_a_checkpoint_has_its_own_policies():
    torch.manual_seed(0)
    model = Routed(COPIES["cast"]).bfloat16()
    x = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    run = compiled(lambda x: checkpoint(model, x, use_reentrant=False), "aot_eager")
    ours = torch.autograd.grad(run(x).sum(), [x, *model.parameters()])
    exact = torch.autograd.grad(model(x).sum(), [x, *model.parameters()])
    for a, b in zip(ours, exact, strict=True):
        assert float((a - b).float().norm()) <= 0.03 * float(b.float().norm())
