"""A write gives a tensor a new value: the tape itself is functional."""

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from mhf_compile.reading.reader import Reader
from mhf_compile.tape.recorder import record, record_function
from tests.evaluate import Unknown, replay
from tests.tape.recording import Graph, value_named

# -- writes ------------------------------------------------------------------------------------------------


def test_an_operator_in_place_gives_the_same_tensor_a_new_value():
    def function(x, y):
        out = x * 2
        before = out * 1
        out += y
        return before, out * 1

    x, y = torch.randn(3), torch.randn(3)
    graph = Graph(function, x, y)
    old, new = value_named(graph, "mul"), value_named(graph, "add")
    assert new.op.writes is old and new.op.args[0] is old and new.handle is old.handle
    assert old.time < old.expires <= new.time and new.expires == math.inf
    found = graph.replayed(x, y)
    assert torch.equal(found[value_named(graph, "mul", 2)], graph.result[1])


def test_the_node_of_a_value_is_its_node_until_it_expires():
    def function(x):
        out = x * 2
        out += 1
        return out

    graph = Graph(function, torch.randn(3))
    old, new = value_named(graph, "mul"), value_named(graph, "add")
    (scope,) = graph.tape.scopes
    node = next(n for n in graph.module.graph.nodes if n.op == "call_function")
    assert old.node_at(scope, old.time) is node
    assert old.node_at(scope, new.time) is None
    assert new.node_at(scope, new.time) is node, "the tensor holds what was written into it"


def test_a_method_in_place_without_rebinding_is_not_lost():
    def function(x):
        out = x * 2
        out.add_(1)
        return out * 3

    x = torch.randn(3)
    graph = Graph(function, x)
    assert value_named(graph, "mul", 1).op.args[0] is value_named(graph, "add")


def test_setitem_writes_into_the_base():
    def function(x):
        out = torch.zeros(3, 2)
        out[1] = x
        return out + 1

    graph = Graph(function, torch.randn(2))
    scatter = value_named(graph, "add").op.args[0]
    before, written, view, output = scatter.op.args
    assert scatter.op.name == "scatter_view" and before.op.name in ("zeros", "detach")
    assert (written.op.name, view.name, output) == ("copy", "select", 0)


def test_a_write_through_a_view_is_read_through_another_view_and_the_base():
    def function(x):
        out = x * 2
        view, other = out.view(6), out[0]
        view.add_(1)
        return other * 1, out * 1, view * 1

    x = torch.randn(2, 3)
    graph = Graph(function, x)
    found = graph.replayed(x)
    results = [value_named(graph, "mul", i) for i in (1, 2, 3)]
    assert results[0].op.args[0].op.replayed and results[0].op.args[0].op.name == "select"
    for value, expected in zip(results, graph.result, strict=True):
        assert torch.equal(found[value], expected)


def test_a_view_read_again_stands_in_the_state_it_was_taken_in():
    def function(x):
        with torch.no_grad():
            out = x * 2
            other = out[0]
            out.add_(1)
            return other * 1

    graph = Graph(function, torch.randn(2, 3))
    replayed = value_named(graph, "select", 1)
    assert replayed.op.replayed and not replayed.op.state.grad_enabled


def test_a_written_input_expires_and_an_input_that_aliases_it_becomes_unknown():
    def function(x, row):
        x.add_(1)
        return x * 2, row * 2

    x = torch.randn(2, 3)
    graph = Graph(function, x, x[0])
    first = next(v for v in graph.tape.values if v.op is None)
    assert first.expires < math.inf
    unknown = value_named(graph, "mul", 1).op.args[0]
    assert value_named(graph, "mul").op.args[0] is value_named(graph, "add")
    # Either Dynamo made the row a view of the other input, which is read again, or its content is not known.
    assert unknown.time > first.expires - 1 and (unknown.op is None or unknown.op.replayed)


def test_a_view_that_shows_an_element_twice_is_read_again_after_a_write():
    def function(x):
        wide = x.clone().expand(2, 3)
        wide[0].add_(1)
        return wide * 1

    _, _, result = record_function(function, (3,))
    wide = result.op.args[0]
    assert wide.op.replayed and wide.op.name == "expand" and wide.op.args[0].op.name == "unknown"


def test_out_arguments_lists_and_second_outputs_are_written():
    def out(x):
        y = x.clone()
        torch.mm(x[0], x[0], out=y[0])
        return y * 1

    def many(x):
        y, z = x.clone(), x.clone()
        torch._foreach_add_([y, z], 1.0)
        return y * z

    def norm(x):
        mean, variance = torch.zeros(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype)
        return F.batch_norm(x, mean, variance, training=True) * mean

    for function, name in ((out, "scatter_view"), (many, "_foreach_add")):
        _, _, result = record_function(function, (2, 2, 2))
        assert result.op.args[0].op.name == name
    _, _, result = record_function(norm, (3, 2))
    assert result.op.args[0].op is not None and "native_batch_norm" in result.op.args[0].op.name


def test_a_user_kernel_may_write_whatever_it_is_given():
    from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_mutation

    graph, mode = fx.Graph(), FakeTensorMode()
    with mode:
        example = torch.randn(4)
    x = graph.placeholder("x")
    out = graph.call_function(torch.zeros_like, (x,))
    kernel = graph.call_function(triton_kernel_wrapper_mutation, (), {"kwargs": {"source": x, "target": out}})
    product = graph.call_function(torch.mul, (out, 2))
    for node in (x, out, product):
        node.meta["example_value"] = example.clone()
    kernel.meta["example_value"] = None
    graph.output((product,))
    tape = record(fx.GraphModule({}, graph))
    (product,) = [v for v in tape.values if v.op is not None and v.op.name == "mul"]
    assert Reader().rule(product.op.args[0]) is None


# -- the tape is functional --------------------------------------------------------------------------------

VIEWS = (
    "t[0]",
    "t[-1:]",
    "t[1:]",
    "t.unsqueeze(0)",
    "t.transpose(0, -1)",
    "t.unbind(-1)[0]",
    "t.flatten() if t.is_contiguous() else t",
    "t.split(1)[0]",
    "t.view(-1) if t.is_contiguous() else t",
    "t.permute(*reversed(range(t.dim())))",
    "t[..., ::2]",
    "t.diagonal() if t.dim() > 1 else t",
    "t.squeeze()",
    "t.detach()",
    "t.expand(2, *t.shape)[0]",
    "t.chunk(2, -1)[0]",
)

WRITES = (
    "t += 3",
    "t.mul_(2)",
    "t.sub_(u.sum())",
    "t.copy_(u.sum() + t.clone())",
    "t.fill_(5)",
    "t.zero_()",
    "t[..., 0] = 7",
    "t[..., :1] -= 2",
    "t.neg_()",
    "torch.add(t.clone(), 1, out=t)",
    "torch._foreach_mul_([t], 2.0)",
    "t.squeeze_()",
    "t.addcmul_(t.clone(), t.clone())",
    "t.relu_()",
)


@st.composite
def writing(draw):
    """A program of views and writes through them; it gives all its tensors, and products of some."""
    lines, count = ["v0 = x * 1", "v1 = x[0] * 1"], 2
    for _ in range(draw(st.integers(2, 8))):
        t, u = (f"v{draw(st.integers(0, count - 1))}" for _ in range(2))
        kind = draw(st.sampled_from(["view", "view", "write", "write", "read"]))
        if kind == "write":
            text = draw(st.sampled_from(WRITES))
            lines.append(f"t, u = {t}, {u}\n{text}")
            continue
        text = draw(st.sampled_from(VIEWS)) if kind == "view" else "t * 2"
        lines.append(f"t = {t}\nv{count} = {text}")
        count += 1
    return "\n".join(lines), count


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(writing())
def test_a_tape_without_writes_computes_what_a_program_with_them_does(drawn):
    source, count = drawn

    def run(x):
        scope = {"torch": torch, "x": x}
        exec(source, scope)
        return [scope[f"v{i}"] for i in range(count)]

    def total(x):
        held = run(x)
        results.clear()
        results.extend(tensor * 1 for tensor in held)
        return results[0]

    results: list[torch.Tensor] = []
    x = torch.arange(1.0, 13.0, dtype=torch.float64).view(2, 2, 3)
    try:
        expected = run(x.clone())
    except (RuntimeError, IndexError):
        return  # no program
    tape, (given,), _ = record_function(total, tuple(x.shape))
    values = [tape.value(tensor) for tensor in results]
    try:
        found = replay(tape, {given: x})
    except (Unknown, KeyError):
        return  # the tape claims nothing
    for value, tensor in zip(values, expected, strict=True):
        assert torch.equal(found[value], tensor), source
