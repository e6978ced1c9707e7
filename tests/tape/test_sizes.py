"""Sizes stay symbols, and a recording adds nothing to what is known of them."""

import pytest
import torch
from torch.nn import functional as F

from mhf_compile.tape.recorder import fake_mode_of, record
from tests.tape.recording import Graph, names, value_named


def environment(graph: Graph):
    return fake_mode_of(graph.module).shape_env


def ffn(x, weight):
    b, t, d = x.shape
    y = x.reshape(b * t, d) @ weight
    y = F.silu(y).view(b, t, 2, -1).transpose(1, 2)
    out = torch.zeros_like(y)
    out[:, 0] += y[:, 1]
    return out.sum(-1)[:, :, : t // 2] * t


def test_sizes_stay_symbolic():
    graph = Graph(ffn, torch.randn(3, 4, 5), torch.randn(5, 6), dynamic=True)
    sizes = {size for value in graph.tape.values for size in value.shape}
    assert any(not isinstance(size, int) for size in sizes)
    assert value_named(graph, "silu").rank == 2


def snapshot(shape_env):
    return (
        len(shape_env.guards),
        dict(shape_env.replacements),
        dict(shape_env.var_to_val if hasattr(shape_env, "var_to_val") else shape_env.backed_var_to_val),
        dict(shape_env.divisible),
        {symbol: list(asserts) for symbol, asserts in shape_env.deferred_runtime_asserts.items()},
        shape_env.num_deferred_runtime_asserts,
        list(shape_env.pending_fresh_unbacked_symbols),
        dict(shape_env.var_to_range),
    )


@pytest.mark.parametrize("unbacked", [False, True])
def test_recording_adds_no_guard_no_symbol_and_no_replacement(unbacked):
    def data_dependent(x, weight):
        n = (x > 0).sum().item()
        torch._check(n >= 2)
        torch._check(n <= 60)
        rows = torch.nonzero(x.flatten() > 0)
        return x.flatten()[:n].sum() + rows.sum() + ffn(x, weight).sum()

    def backend(module, inputs):
        shape_env = fake_mode_of(module).shape_env
        before = snapshot(shape_env)
        tape = record(module)
        assert "silu" in names(tape)
        assert snapshot(shape_env) == before
        return module

    options = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    x, weight = torch.randn(3, 4, 5), torch.randn(5, 6)
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    with torch._dynamo.config.patch(options if unbacked else {}):
        compiled = torch.compile(data_dependent if unbacked else ffn, backend=backend, fullgraph=True)
        compiled(x, weight)


def test_one_compilation_serves_all_marked_sizes():
    count = []

    def backend(module, inputs):
        count.append(record(module))
        return module

    compiled = torch.compile(ffn, backend=backend, fullgraph=True)
    for b, t in ((3, 4), (5, 8), (2, 6)):
        x = torch.randn(b, t, 5)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
        compiled(x, torch.ones(5, 6))
    assert len(count) == 1


def test_a_write_through_a_view_of_unbacked_size_is_not_lost():
    def function(x, length):
        out = torch.zeros(8)
        n = length.item()
        torch._check(n >= 0)
        torch._check(n <= 8)
        out[:n].add_(x)
        return out * 1

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        graph = Graph(function, torch.randn(()), torch.tensor(3))
    (product,) = [v for v in graph.tape.values if v.op is not None and v.op.name == "mul"]
    assert product.op.args[0].op is None or product.op.args[0].op.name != "zeros"
