"""Law 6: what is left alone, each with the reason that a user is told, and unchanged results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout, layer_norm, silu
from torch.utils.checkpoint import checkpoint

import mhf_compile
from tests.comparison import compare, counted_calls
from tests.programs import B, D, F, H, T

Program = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,hfd->bthf", q, k)


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", hidden, v)


def right(q: Tensor, k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return down(silu(scores(q, k)) * scores(q, u), v)


def activation_returned(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden, v).sum() + hidden, hidden


def activation_used_elsewhere(q, k, u, v):
    gate = silu(scores(q, k))
    return down(gate * scores(q, u), v) + gate.mean()


def operand_written_after(q, k, u, v):
    q = q.sin()
    gate = silu(scores(q, k))
    up = scores(q, u)
    q.add_(1)
    return down(gate * up, v) + q


def operand_written_between(q, k, u, v):
    q = q.sin()
    gate = silu(scores(q, k))
    q.mul_(2)
    return down(gate * scores(q, u), v)


def accumulated_into_an_argument(q, k, u, v):
    silu_out = down(silu(scores(q.detach(), k.detach())) * scores(q.detach(), u.detach()), v.detach())
    BUFFER.zero_()
    BUFFER.add_(silu_out)
    BUFFER.add_(silu_out)
    return BUFFER * q


BUFFER = torch.zeros(B, T, H, D)


def dropped_out(q, k, u, v):
    return down(dropout(silu(scores(q, k)) * scores(q, u), 0.5, training=True), v)


def gate_detached(q, k, u, v):
    return down(silu(scores(q, k)).detach() * scores(q, u), v)


def query_detached_for_the_gate(q, k, u, v):
    return down(silu(scores(q.detach(), k)) * scores(q, u), v)


def grad_switched_off_inside(q, k, u, v):
    with torch.no_grad():
        gate = silu(scores(q, k))
    return down(gate * scores(q, u), v)


def autocast_inside(q, k, u, v):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gate = silu(scores(q, k))
    return down(gate.float() * scores(q, u), v)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def custom_function_inside(q, k, u, v):
    return down(Doubled.apply(silu(scores(q, k)) * scores(q, u)), v)


def hook_inside(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    hidden.register_hook(lambda grad: 2 * grad)
    return down(hidden, v)


def differentiated_inside(q, k, u, v):
    return torch.func.grad(lambda q: right(q, k, u, v).square().sum())(q)


def differentiated_forward(q, k, u, v):
    return torch.func.jvp(lambda q: right(q, k, u, v), (q,), (q,))[1]


def differentiated_for_each(q, k, u, v):
    return torch.vmap(torch.func.grad(lambda q: right(q[None], k, u, v).square().sum()))(q)


def checkpoint_across(q, k, u, v):
    hidden = checkpoint(lambda q, k, u: silu(scores(q, k)) * scores(q, u), q, k, u, use_reentrant=False)
    return down(hidden, v)


def earlier_view_used_after(q, k, u, v):
    out = torch.zeros_like(q)
    view = out[:, 0]
    for h in range(H):
        out += right(q, k, u, v) if h else right(q, u, k, v)
    return out * view[:, None]


def different_inputs(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q.flip(1), u), v)


def normalised_inside(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(layer_norm(hidden, [F]), v)


def gate_rolled(q, k, u, v):
    return down(silu(scores(q, k).roll(1, -1)) * scores(q, u), v)


def scaled_per_channel_and_token(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u) * (q.mean(-1, keepdim=True) + k[0, :, 0]).cos(), v)


def heads_rolled_before_v(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.roll(1, 2), v)


def two_activations_multiplied(q, k, u, v):
    return down(silu(scores(q, k)) * silu(scores(q.flip(1), u)), v)


def operand_written_before_the_backward(q, k, u, v):
    w = k.sin()
    out = right(q, w, u, v)
    with torch.no_grad():
        w.mul_(0.9)
    return out


def used_through_a_mask(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden, v), hidden[hidden > 0]


def unknown_activation(q, k, u, v):
    gate = scores(q, k)
    return down(torch.clamp(gate, min=0.1 * gate) * scores(q, u), v)


def unknown_activation_without_a_gate(q, k, u, v):
    gate = scores(q, k)
    return down(torch.sinc(gate), v)


REFUSALS = [
    (used_through_a_mask, "the intermediate hidden is"),
    (activation_returned, "is returned as well"),
    (activation_used_elsewhere, "is used elsewhere as well, by mean"),
    (operand_written_after, "is written to between its use and the result"),
    (operand_written_between, "is written to between them"),
    (dropped_out, "randomness is inside"),
    (gate_detached, "detach is applied to it"),
    (query_detached_for_the_gate, "gate and up do not read the same input"),
    (grad_switched_off_inside, "grad mode changes inside it"),
    (autocast_inside, "autocast is switched inside it"),
    (custom_function_inside, "a custom autograd function is applied to it"),
    (hook_inside, "is applied to it"),
    (differentiated_inside, "it is inside a transform of torch.func (grad)"),
    (differentiated_forward, "it is inside a transform of torch.func (jvp)"),
    (differentiated_for_each, "it is inside a transform of torch.func (grad)"),
    (checkpoint_across, "checkpoint"),
    (different_inputs, "gate and up do not read the same input"),
    (normalised_inside, "it is normalised, by a layer norm, before the product with the values"),
    (gate_rolled, "the argument of silu is the result of roll"),
    (scaled_per_channel_and_token, "it is scaled by cos, a factor for each token and channel"),
    (heads_rolled_before_v, "roll"),
    (two_activations_multiplied, "the up projection is the result of silu, not one product"),
    (unknown_activation, "the activation is clamp, none that the op knows"),
    (unknown_activation_without_a_gate, "the activation is sinc, none that the op knows"),
]


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, H, D), (H, F, D), (H, F, D), (H, F, D)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
@pytest.mark.parametrize(("program", "reason"), REFUSALS, ids=lambda p: getattr(p, "__name__", ""))
def test_is_left_alone_and_said_why(program: Program, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    expected = program(*tensors())
    torch.manual_seed(0)
    options = {"flashmhf.strict": True, "flashmhf.inner": "eager"}
    with counted_calls() as calls:
        found = torch.compile(program, backend="flashmhf", options=options)(*tensors())
    assert calls == [0]
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    reports = mhf_compile.last_reports()
    assert [report.rewrites for report in reports] == [()] * len(reports)
    misses = [miss for report in reports for miss in report.misses]
    assert misses
    assert any(reason in miss.reason for miss in misses), misses
    assert all(miss.source.startswith("tests/rewriting/test_refusals.py:") for miss in misses)


def shape_changed_in_place(q, k, u, v):
    out = right(q, k, u, v)
    out.transpose_(1, 2)
    return torch.as_strided(out, (out.numel(),), (1,))


def strides_changed_in_place(q, k, u, v):
    out = right(q, k, u, v)
    out.as_strided_((out.numel(),), (1,))
    return out * 2


def used_before_its_shape_is_changed(q, k, u, v):
    out = right(q, k, u, v)
    other = out + 1
    out.transpose_(1, 2)
    return out * other.transpose(1, 2)


def shape_changed_in_place_inside(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    hidden.unsqueeze_(0).transpose_(0, 1)
    return down(hidden.squeeze_(1), v)


def vmapped_part(q, k, u, v):
    return down(torch.vmap(lambda gate, up: silu(gate) * up)(scores(q, k), scores(q, u)), v)


def vmapped_over_batches(q, k, u, v):
    return torch.vmap(lambda q: right(q[None], k, u, v)[0])(q)


def vmapped_over_heads(q, k, u, v):
    def head(q, k, u, v):
        return (silu(q @ k.mT) * (q @ u.mT)) @ v

    return torch.vmap(head, in_dims=(2, 0, 0, 0), out_dims=2)(q, k, u, v)


def vmapped_over_tokens_and_heads(q, k, u, v):
    def entry(q, k, u, v):
        return (silu(k @ q) * (u @ q)) @ v

    heads = torch.vmap(entry)
    return torch.vmap(torch.vmap(heads, (0, None, None, None)), (0, None, None, None))(q, k, u, v)


def multiple_used_elsewhere(q, k, u, v):
    """The multiple has to be there, which does not hinder that what it is a multiple of is the operand."""
    q = 2 * q
    return q + right(q, k, u, v)


NO_OBSTACLES = [
    shape_changed_in_place,
    shape_changed_in_place_inside,
    vmapped_part,
    vmapped_over_batches,
    vmapped_over_heads,
    vmapped_over_tokens_and_heads,
    multiple_used_elsewhere,
]


@pytest.mark.parametrize("program", NO_OBSTACLES, ids=lambda p: p.__name__)
def test_is_no_obstacle(program: Program) -> None:
    found = compare(program, tensors(), options={"flashmhf.inner": "eager"})
    assert (found.rewrites, found.calls) == (1, 1), found.reports
    assert found.reports[0].misses == ()
    found.check_error()


@pytest.mark.parametrize("program", [strides_changed_in_place, used_before_its_shape_is_changed])
def test_a_result_whose_memory_is_looked_at_in_another_way_is_right_whatever_is_done(
    program: Program,
) -> None:
    found = compare(program, tensors(), options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert len(report.rewrites) == found.calls and len(report.rewrites) + len(report.misses) == 1
    found.check_error()


def test_an_operand_that_is_written_before_the_backward_is_left_to_eager() -> None:
    """Eager saves what its products read and raises in the backward; so does the compiled program."""
    torch._dynamo.reset()
    options = {"flashmhf.strict": True, "flashmhf.inner": "eager"}
    compiled = torch.compile(operand_written_before_the_backward, backend="flashmhf", options=options)
    for program in (operand_written_before_the_backward, compiled):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            program(*tensors()).sum().backward()
    (miss,) = mhf_compile.last_reports()[0].misses
    assert "is written to before the backward" in miss.reason


def test_eval_dropout_is_nothing() -> None:
    def program(q, k, u, v):
        return down(dropout(silu(scores(q, k)) * scores(q, u), 0.5, training=False), v)

    torch._dynamo.reset()
    torch.compile(program, backend="flashmhf", options={"flashmhf.inner": "eager"})(*tensors())
    assert len(mhf_compile.last_reports()[0].rewrites) == 1


def test_a_view_of_an_operand_used_elsewhere_is_no_obstacle() -> None:
    def program(q, k, u, v):
        folded = q.transpose(1, 2)
        gate = torch.einsum("bhtd,hfd->bhtf", folded, k)
        up = torch.einsum("bhtd,hfd->bhtf", folded, u)
        return torch.einsum("bhtf,hfo->btho", silu(gate) * up, v) + folded.mean()

    torch._dynamo.reset()
    expected = program(*tensors())
    found = torch.compile(program, backend="flashmhf", options={"flashmhf.inner": "eager"})(*tensors())
    assert len(mhf_compile.last_reports()[0].rewrites) == 1
    torch.testing.assert_close(found, expected)


def test_a_part_of_a_program_is_rewritten_beside_a_refused_one() -> None:
    torch._dynamo.reset()
    options = {"flashmhf.strict": True, "flashmhf.inner": "eager"}
    compiled = torch.compile(lambda *a: right(*a) + dropped_out(*a), backend="flashmhf", options=options)
    compiled(*tensors())
    (report,) = mhf_compile.last_reports()
    assert (len(report.rewrites), len(report.misses)) == (1, 1)


@pytest.mark.parametrize("program", [accumulated_into_an_argument, earlier_view_used_after])
def test_a_smaller_region_is_rewritten_where_the_largest_is_refused(program: Program) -> None:
    torch._dynamo.reset()
    expected = program(*tensors()).detach().clone()
    options = {"flashmhf.strict": True, "flashmhf.inner": "eager"}
    found = torch.compile(program, backend="flashmhf", options=options)(*tensors())
    assert mhf_compile.last_reports()[0].rewrites
    torch.testing.assert_close(found.detach(), expected)
