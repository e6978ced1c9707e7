"""Near misses: right programs changed in one place.

Each is a function of tensors; the shapes of its arguments are in SHAPES under their names. ``@refused`` is
left alone for the reason it says; ``@right`` is still the formula, of other operands, and is rewritten.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu
from torch.utils.checkpoint import checkpoint

B, T, H, E, F, D, O = 2, 5, 3, 4, 7, 6, 8  # noqa: E741
MANY = 256  # heads, each of which costs some calls on a CPU

SHAPES: dict[str, tuple[int, ...]] = {
    "x": (B, T, D),
    "y": (B, T, D),
    "q": (B, T, H, D),
    "k": (H, F, D),
    "u": (H, F, D),
    "v": (H, F, O),
    "v_square": (H, F, F),
    "v_back": (H, F, D),
    "gate_up": (H, 2 * F, D),
    "keys": (H, E, F, D),
    "ups": (H, E, F, D),
    "values": (H, E, F, O),
    "r": (B, T, H, E),
    "w_gate": (F, D),
    "w_up": (F, D),
    "w_down": (O, F),
    "w_gate_2": (E, F),
    "w_up_2": (E, F),
    "w_down_2": (O, E),
}


@dataclass(frozen=True)
class NearMiss:
    """A right program changed in one place.

    Attributes:
        program: a function of tensors.
        kind: what was changed.
        shapes: the shapes of its arguments.
        reason: what is said of each activation that is left alone, as a regular expression; "" where each is
            rewritten.
        rewrites: how many fused calls there are beside what is left alone.
        raises: what the backward raises, in eager too.
        dynamic: whether every size of an argument is a symbol.
        options: of the backend, beside those of every program.
        without: a dtype that the op does not take, as some devices' does not.
        rounds: the dtype that the program rounds to in places where the fused call does not.
        lines: the lines of its activations.
        other: whether it is no feed-forward any more, which is told apart.
    """

    program: Callable[..., Any]
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    reason: str
    rewrites: int
    raises: str
    rounds: torch.dtype
    dynamic: bool
    options: Mapping[str, object]
    without: torch.dtype | None
    lines: frozenset[int]
    other: bool

    def tensors(self, seed: int) -> list[Tensor]:
        """Random arguments of order one that require grad."""
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in self.shapes
        ]

    def __str__(self) -> str:
        return self.program.__name__


_ACTIVATION = re.compile(r"\b(silu|gelu|relu|sigmoid)\(")

SILENT = "(silent)"
"""Said of a function that is no activation for sure, and that nothing known stands beside."""

NEAR_MISSES: list[NearMiss] = []

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def refused(
    kind: str,
    reason: str,
    *,
    rewrites: int = 0,
    raises: str = "",
    rounds: torch.dtype = torch.float64,
    dynamic: bool = False,
    options: Mapping[str, object] | None = None,
    without: torch.dtype | None = None,
    at: Callable[..., Any] | None = None,
    other: bool = False,
    **shapes: tuple[int, ...],
) -> Decorator:
    """Decorate a program that is left alone; ``at`` is the function with its activation, where another."""

    def decorate(program: Callable[..., Any]) -> Callable[..., Any]:
        own = tuple({**SHAPES, **shapes}[name] for name in inspect.signature(program).parameters)
        lines = lines_of_activations(at or program)
        how = rewrites, raises, rounds, dynamic, options or {}, without
        NEAR_MISSES.append(NearMiss(program, kind, own, reason, *how, lines, other))
        return program

    return decorate


def right(kind: str, *, rounds: torch.dtype = torch.float64, **shapes: tuple[int, ...]) -> Decorator:
    """Decorate a program that is still the formula."""
    return refused(kind, "", rounds=rounds, **shapes)


def lines_of_activations(function: Callable[..., Any]) -> frozenset[int]:
    """The lines marked with a comment, else those that call an activation; of a lambda, its line."""
    text, first = inspect.getsourcelines(function)
    if function.__name__ == "<lambda>":
        return frozenset([function.__code__.co_firstlineno])
    marked = frozenset(first + i for i, line in enumerate(text) if "# here" in line)
    return marked or frozenset(first + i for i, line in enumerate(text) if _ACTIVATION.search(line))


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthd,hfd->bthf", q, k)


def down(hidden: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bthf,hfo->btho", hidden, v)


# -- the axes that are summed -------------------------------------------------------------------------------


@refused("axis", "summed over an axis of size 5")
def summed_over_tokens_with_the_values(q, k, u, v):
    return torch.einsum("bthf,hfo->bho", silu(scores(q, k)) * scores(q, u), v)


@right("axis")
def summed_over_heads_with_the_values(q, k, u, v):
    return torch.einsum("bthf,hfo->bto", silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "before a product with values", other=True)
def not_summed_over_its_width(q, k, u, v):
    return torch.einsum("bthf,hfo->bthf", silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "share the values", other=True)
def summed_apart_from_the_values(q, k, u, v):
    return torch.einsum("bthf,hgo->btho", silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "gate and up do not read the same part of q", other=True)
def query_and_key_summed_apart(q, k, u, v):
    gate = torch.einsum("bthd,hfe->bthf", q, k)
    return down(silu(gate) * scores(q, u), v)


@refused("axis", "gate and up|summed over heads", other=True)
def gate_summed_over_heads(q, k, u, v):
    gate = torch.einsum("bthd,hfd->btf", q, k)
    return down(silu(gate)[:, :, None] * scores(q, u), v)


@refused("axis", "gate and up|summed over tokens", other=True)
def gate_summed_over_tokens(q, k, u, v):
    gate = torch.einsum("bthd,hfd->bhf", q, k)
    return down(silu(gate)[:, None] * scores(q, u), v)


@refused("axis", "a factor for each token and channel")
def up_summed_over_tokens(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u).sum(1, keepdim=True), v)


@refused("axis", "not one sum over the width", other=True)
def gate_summed_over_its_width(q, k, u, v):
    gate = scores(q, k).sum(-1, keepdim=True)
    return down(silu(gate) * scores(q, u), v)


@refused("axis", "summed over an axis of size 2")
def batch_summed(q, k, u, v):
    return torch.einsum("bthf,hfo->tho", silu(scores(q, k)) * scores(q, u), v)


@right("axis")
def result_summed_over_tokens(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v).sum(1)


@refused("axis", "summed over an axis of size 5")
def sub_networks_not_summed_but_weighted_over_tokens(q, keys, ups, values, r):
    gate, up = (torch.einsum("bthd,hefd->bthef", q, w) for w in (keys, ups))
    return torch.einsum("bthe,bthef,hefo->beo", r, silu(gate) * up, values)


@right("axis")
def sub_networks_not_summed(q, keys, ups, values, r):
    gate, up = (torch.einsum("bthd,hefd->bthef", q, w) for w in (keys, ups))
    return torch.einsum("bthe,bthef,hefo->btheo", r, silu(gate) * up, values)


@right("axis", v=(F, F, O))
def a_diagonal_of_the_values(x, w_gate, w_up, v):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    return torch.einsum("btf,ffo->bto", hidden, v) * 1


@refused("axis", "the activation is not contracted with values", w_gate=(1, D), w_up=(1, D), w_down=(O, 1))
def a_width_of_one(x, w_gate, w_up, w_down):
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


@refused("axis", "the activation is not contracted with values", other=True)
def summed_over_an_axis_of_one(q, k, u):
    hidden = silu(scores(q, k)) * scores(q, u)
    return hidden.unsqueeze(-1).sum(-1)


@refused("axis", "it has an axis of size 0, the hidden channel", k=(H, 0, D), u=(H, 0, D), v=(H, 0, O))
def a_width_of_none(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "it has an axis of size 0, the input channel", q=(B, T, H, 0), k=(H, F, 0), u=(H, F, 0))
def heads_of_no_width(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "a diagonal of", keys=(H, H, F, D))
def keys_on_a_diagonal(q, keys, u, v):
    k = torch.stack([keys[h, h] for h in range(H)])
    return down(silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "a diagonal of", values=(H, H, F, O))
def values_on_a_diagonal(q, k, u, values):
    v = torch.stack([values[h, h] for h in range(H)])
    return down(silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "an operand is no strided view", w=(F + E - 1, D))
def keys_that_overlap_in_one_product(x, w, ups, values):
    k = torch.stack([w[e : e + F] for e in range(E)])
    gate, up = (torch.einsum("btd,efd->btef", x, weight) for weight in (k, ups[0]))
    return torch.einsum("btef,efo->bto", silu(gate) * up, values[0])


@refused("axis", "an operand is no strided view", x=(B, T, D + H - 1))
def heads_that_overlap_in_one_product(x, k, u, v):
    q = torch.stack([x[..., h : h + D] for h in range(H)], 2)
    return down(silu(scores(q, k)) * scores(q, u), v)


@refused("axis", "added up .* times, a symbolic number", dynamic=True)
def hidden_added_up_for_each_token(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden[None].expand(q.shape[1], *hidden.shape).sum(0), v)


@refused("axis", "added up .* times, a symbolic number", dynamic=True)
def up_added_up_for_each_token(q, k, u, v):
    up = scores(q, u)
    return down(silu(scores(q, k)) * up[None].expand(q.shape[1], *up.shape).sum(0), v)


@refused("axis", "no operand has the symbolic size", dynamic=True, rows=(B * T, D))
def tokens_counted_by_another_tensor(rows, y, w_gate, w_up, w_down):
    x = (rows.new_zeros(y.shape[0] * y.shape[1], D) + rows).view(*y.shape[:2], D)
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


@refused("axis", "no operand has the symbolic size", dynamic=True)
def tokens_in_the_shape_that_they_had(y, w_gate, w_up, w_down):
    x = y.flatten(0, 1).sin().view(*y.shape[:2], D)
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


@refused("axis", "an operand is read at symbolic positions", dynamic=True, rows=(B * T, D))
def batches_of_rows(rows, y, w_gate, w_up, w_down):
    x = rows.view(y.shape[0], y.shape[1], -1)
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


@refused("axis", "an operand is read at symbolic positions", dynamic=True, rows=(2 * B * T, D))
def twice_as_many_batches_of_rows(rows, y, w_gate, w_up, w_down):
    x = rows.view(2 * y.shape[0], y.shape[1], -1)
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


# -- heads and channels, permuted ---------------------------------------------------------------------------


@refused("permutation", "roll is applied to it")
def heads_rolled_before_the_values(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.roll(1, 2), v)


@refused("permutation", "flip is applied to it")
def heads_flipped_before_the_values(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.flip(2), v)


@refused("permutation", "flip is applied to it")
def channels_flipped_before_the_values(q, k, u, v):
    return down((silu(scores(q, k)) * scores(q, u)).flip(-1), v)


@refused("permutation", "index")
def heads_permuted_by_a_list(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden[:, :, [2, 0, 1]], v)


@refused("permutation", "up projection is the result of flip")
def heads_flipped_between_gate_and_up(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u).flip(2), v)


@refused("permutation", "up projection is the result of roll")
def channels_rolled_between_gate_and_up(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u).roll(1, -1), v)


@refused("permutation", "values .* for each token", q=(B, H, H, D))
def heads_taken_for_tokens(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return torch.einsum("bhtf,hfo->btho", hidden, v)


@refused("permutation", "for each token or head.*the values would be repeated", q=(B, 6, H, D))
def viewed_where_it_should_be_transposed(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return hidden.reshape(B, H, 6, F) @ v


@refused("permutation", "do not read the same part", q=(B, 6, H, D))
def up_viewed_where_it_should_be_transposed(q, k, u, v):
    gate, up = q.transpose(1, 2) @ k.mT, q.reshape(B, H, 6, D) @ u.mT
    return (silu(gate) * up) @ v


@right("permutation", q=(B, 6, H, D))
def queries_viewed_where_they_should_be_transposed(q, k, u, v):
    q = q.reshape(B, H, 6, D)
    return (silu(q @ k.mT) * (q @ u.mT)) @ v


@right("permutation")
def values_of_rolled_heads(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v.roll(1, 0))


@right("permutation")
def up_weights_flipped(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u.flip(0, 1)), v)


@right("permutation")
def result_flipped(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v).flip(2)


@right("permutation")
def head_weights_permuted_in_a_loop(q, k, u, v):
    parts = []
    for h in range(H):
        a, b = (h + 1) % H, (h + 2) % H
        parts.append((silu(q[:, :, h] @ k[a].mT) * (q[:, :, h] @ u[b].mT)) @ v[h])
    return torch.stack(parts, 2)


@refused("permutation", "do not read the same part")
def gate_of_the_next_head_in_a_loop(q, k, u, v):
    parts = []
    for h in range(H):
        n = (h + 1) % H
        parts.append((silu(q[:, :, n] @ k[h].mT) * (q[:, :, h] @ u[h].mT)) @ v[h])
    return torch.stack(parts, 2)


@right("permutation")
def heads_written_in_another_order(q, k, u, v):
    out = q.new_zeros(B, T, H, O)
    for h in range(H):
        out[:, :, (h + 1) % H] = (silu(q[:, :, h] @ k[h].mT) * (q[:, :, h] @ u[h].mT)) @ v[h]
    return out


@right("permutation")
def one_head_written_twice(q, k, u, v):
    out = q.new_zeros(B, T, H, O)
    for h in range(H):
        out[:, :, min(h, 1)] = (silu(q[:, :, h] @ k[h].mT) * (q[:, :, h] @ u[h].mT)) @ v[h]
    return out


# -- vectors, one by one ------------------------------------------------------------------------------------


@right("vectors")
def tokens_one_by_one(x, w_gate, w_up, w_down):
    tokens = x.flatten(0, 1)
    return torch.stack([w_down @ (silu(w_gate @ t) * (w_up @ t)) for t in tokens]).view(B, T, O)


@right("vectors")
def batch_entries_as_matrices_and_the_values_as_vectors(x, w_gate, w_up, w_down):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    return torch.stack([torch.stack([torch.mv(h, row) for row in w_down], -1) for h in hidden])


@right("vectors", y=(T, D))
def results_one_by_one(y, w_gate, w_up, w_down):
    hidden = silu(linear(y, w_gate)) * linear(y, w_up)
    return torch.stack([torch.stack([torch.dot(h, row) for row in w_down]) for h in hidden])


@right("vectors", y=(T, D))
def results_one_by_one_by_another_name(y, w_gate, w_up, w_down):
    hidden = silu(linear(y, w_gate)) * linear(y, w_up)
    return torch.stack([torch.stack([row.dot(h) for row in w_down]) for h in hidden.unbind()])


# -- the inputs of gate and up ------------------------------------------------------------------------------


@refused("input", "gate and up do not read the same input")
def gate_of_another_tensor(x, y, w_gate, w_up, w_down):
    return linear(silu(linear(y, w_gate)) * linear(x, w_up), w_down)


@refused("input", "gate and up do not read the same input")
def gate_of_the_normalised_input(x, w_gate, w_up, w_down):
    return linear(silu(linear(nnf.layer_norm(x, [D]), w_gate)) * linear(x, w_up), w_down)


@refused("input", "gate and up do not read the same input")
def gate_of_the_token_before(x, w_gate, w_up, w_down):
    before = nnf.pad(x, (0, 0, 1, -1))
    return linear(silu(linear(before, w_gate)) * linear(x, w_up), w_down)


@refused("input", "gate and up do not read the same input")
def gate_of_the_rolled_tokens(q, k, u, v):
    return down(silu(scores(q.roll(1, 1), k)) * scores(q, u), v)


@refused("input", "do not read the same part")
def gate_of_the_next_token_by_slices(q, k, u, v):
    return down(silu(scores(q[:, 1:], k)) * scores(q[:, :-1], u), v)


@refused("input", "do not read the same part")
def gate_and_up_of_two_halves(x, w_gate, w_up, w_down):
    first, second = x.unflatten(-1, (2, D // 2)).unbind(-2)
    return linear(silu(linear(first, w_gate[:, : D // 2])) * linear(second, w_up[:, : D // 2]), w_down)


@refused("input", "gate and up do not read the same input")
def gate_of_another_batch_entry(q, k, u, v):
    return down(silu(scores(q.flip(0), k)) * scores(q, u), v)


@refused("input", "gate and up do not read the same input")
def up_of_the_input_plus_one(x, w_gate, w_up, w_down):
    return linear(silu(linear(x, w_gate)) * linear(x + 1, w_up), w_down)


@right("input")
def up_of_the_input_times_two(x, w_gate, w_up, w_down):
    return linear(silu(linear(x, w_gate)) * linear(2 * x, w_up), w_down)


@refused("input", "that the input of gate and up lacks", other=True)
def gate_of_the_mean_token(x, w_gate, w_up, w_down):
    return linear(silu(linear(x.mean(1, keepdim=True), w_gate)) * linear(x, w_up), w_down)


@refused("input", "gate and up do not read the same input")
def gate_and_up_dropped_out_apart(x, w_gate, w_up, w_down):
    a, b = nnf.dropout(x, 0.5), nnf.dropout(x, 0.5)
    return linear(silu(linear(a, w_gate)) * linear(b, w_up), w_down)


@right("input")
def dropped_out_input(x, w_gate, w_up, w_down):
    x = nnf.dropout(x, 0.5)
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


# -- functions of the gate, and what is none -----------------------------------------------------------------


def gated(act: Callable[[Tensor], Tensor], reason: str, name: str) -> None:
    """A dense feed-forward with an activation, refused for a reason, or found where that is empty."""

    def program(x, w_gate, w_up, w_down):
        return linear(act(linear(x, w_gate)) * linear(x, w_up), w_down)  # here

    program.__name__ = name
    own = act if getattr(act, "__name__", "") == "<lambda>" else program
    refused("activation", reason, at=own)(program)


gated(lambda g: g.clamp(min=torch.zeros_like(g)), "the activation is clamp", "clamp_by_a_tensor_gate")
gated(lambda g: torch.where(g.long() > 0, g, 0.0), "the activation is .*where", "rounded_where_gate")
gated(lambda g: torch.where(g > 0.5, 1.0, 0.1), SILENT, "step_gate")
gated(lambda g: torch.where(g > 0.5, g, 0.1), "", "where_gate")
gated(lambda g: torch.maximum(g, 0.2 * g), "", "maximum_gate")
gated(lambda g: torch.rrelu(g, training=True), "the activation is rrelu", "rrelu_gate")
gated(lambda g: silu(g + torch.randn_like(g)), "randomness is inside", "noisy_gate")
gated(torch.tanh, "", "tanh_gate")
gated(nnf.selu, "", "selu_gate")
gated(nnf.relu6, "", "relu6_gate")
gated(lambda g: torch.clamp(g, min=0), "", "clamp_gate")
gated(lambda g: silu(g) + 1, "", "silu_plus_one_gate")
gated(lambda g: g * torch.sigmoid(g + 1), "", "shifted_silu_gate")
gated(lambda g: g / (1 + 0.999 * torch.exp(-g)), "", "silu_constant_off_gate")
gated(lambda g: 0.5 * g * (1 + torch.tanh(0.79788456 * (g + 0.044715 * g**3))), "", "gelu_constant_off_gate")
gated(lambda g: 0.5 * g * (1 + torch.erf(g / 1.414)), "", "gelu_erf_constant_off_gate")


@right("activation")
def quick_gelu(x, w_gate, w_up, w_down):
    gate = linear(x, w_gate)
    return linear(gate * torch.sigmoid(1.702 * gate) * linear(x, w_up), w_down)


@refused("activation", r"the activation is x\*sigmoid\(beta\*x\)", beta=())
def swish_with_a_learned_beta(x, w_gate, w_up, w_down, beta):
    gate = linear(x, w_gate)
    return linear(gate * torch.sigmoid(beta * gate) * linear(x, w_up), w_down)


@right("activation", beta=())
def ungated_swish_with_a_learned_beta(q, k, v, beta):
    gate = scores(q, k)
    return down(gate * torch.sigmoid(beta * gate), v)


@refused("activation", "the activation is .*prelu", slope=(1,))
def prelu_gate(x, w_gate, w_up, w_down, slope):
    return linear(nnf.prelu(linear(x, w_gate), slope) * linear(x, w_up), w_down)  # here


@right("activation")
def another_activation_in_one_sub_network(q, keys, ups, values, r):
    out = 0
    for e in range(E):
        gate, up = scores(q, keys[:, e]), scores(q, ups[:, e])
        hidden = (relu if e == 2 else silu)(gate) * up  # here
        out = out + r[..., e : e + 1] * down(hidden, values[:, e])
    return out


@right("activation")
def another_activation_in_one_head(q, k, u, v):
    parts = []
    for h in range(H):
        gate, up = q[:, :, h] @ k[h].mT, q[:, :, h] @ u[h].mT
        parts.append(((gelu if h == 1 else silu)(gate) * up) @ v[h])  # here
    return torch.stack(parts, 2)


@refused("activation", "hidden values are a function of 3 scores", w_other=(F, D))
def sigmoid_of_another_product(x, w_gate, w_other, w_up, w_down):
    gate = linear(x, w_gate) * torch.sigmoid(linear(x, w_other))
    return linear(gate * linear(x, w_up), w_down)


@refused("activation", "multiplied by 0", w_other=(F, D))
def another_product_times_zero(x, w_gate, w_up, w_down, w_other):
    """The gradient of `w_other` is zeros, not none."""
    return linear(silu(linear(x, w_gate)) * (linear(x, w_up) + 0 * linear(x, w_other)), w_down)


@refused("activation", "is multiplied by zeros", w_other=(F, D))
def another_product_times_zeros(x, w_gate, w_up, w_down, w_other):
    up = linear(x, w_up)
    return linear(silu(linear(x, w_gate)) * (up + torch.zeros_like(up) * linear(x, w_other)), w_down)


@refused("activation", "is multiplied by zeros", w_other=(F, D))
def another_product_of_zeros(x, w_gate, w_up, w_down, w_other):
    up = linear(x, w_up) + linear(torch.zeros_like(x), w_other)
    return linear(silu(linear(x, w_gate)) * up, w_down)


@refused("activation", "multiplied by 0", raises="modified by an inplace operation")
def query_doubled_after_it_is_read(x, w_gate, w_up, w_down):
    q = x * 1
    gate, up = linear(q, w_gate), linear(q, w_up)
    return linear(silu(gate) * (up + 0 * q.mul_(2).sum()), w_down)


@right("activation", w_other=(F, D))
def two_activations_multiplied(x, w_gate, w_other, w_down):
    return linear(silu(linear(x, w_gate)) * silu(linear(x, w_other)), w_down)


@refused("activation", "hidden values are a function of 3 scores", w_other=(F, D))
def three_activations_multiplied(x, w_gate, w_up, w_other, w_down):
    hidden = silu(linear(x, w_gate)) * torch.tanh(linear(x, w_up)) * gelu(linear(x, w_other))
    return linear(hidden, w_down)


@refused("activation", "the up projection is the result of silu", w_other=(F, D))
def activations_of_two_inputs_multiplied(x, w_gate, w_other, w_down):
    return linear(silu(linear(x, w_gate)) * silu(linear(x.flip(1), w_other)), w_down)


@right("activation", w_other=(F, D))
def one_where_the_other_is_positive(x, w_gate, w_other, w_down):
    gate, up = linear(x, w_gate), linear(x, w_other)
    return linear(torch.where(gate > 0, gate * up, up), w_down)  # here


@refused("activation", "the activation is where", w_other=(F, D))
def up_where_the_gate_is_positive(x, w_gate, w_other, w_down):
    """No gradient reaches `w_gate`, where the op would give zeros."""
    return linear(torch.where(linear(x, w_gate) > 0, linear(x, w_other), 0.0), w_down)  # here


@refused("activation", "two activations|another activation|activations are added", w_other=(F, D))
def two_activations_added(x, w_gate, w_other, w_up, w_down):
    hidden = silu(linear(x, w_gate)) + silu(linear(x, w_other))
    return linear(hidden * linear(x, w_up), w_down)


@refused("activation", "2 different activations are added up", w_other=(F, D))
def two_kinds_of_activations_added(x, w_gate, w_other, w_up, w_down):
    hidden = silu(linear(x, w_gate)) + gelu(linear(x, w_other))
    return linear(hidden * linear(x, w_up), w_down)


@right("activation")
def two_activations_of_one_gate_added(x, w_gate, w_up, w_down):
    gate = linear(x, w_gate)
    return linear((silu(gate) + gelu(gate)) * linear(x, w_up), w_down)


@right("activation", gate_up=(2 * F, D))
def both_halves_activated(x, gate_up, w_down):
    first, second = silu(linear(x, gate_up)).chunk(2, -1)
    return linear(first * second, w_down)  # here


@right("activation", gate_up=(H, 2 * F, D))
def every_second_channel_activated_too(q, gate_up, v):
    hidden = gelu(torch.einsum("bthd,hfd->bthf", q, gate_up))
    return down(hidden[..., ::2] * hidden[..., 1::2], v)  # here


@refused("activation", "activations are multiplied with each other|is used elsewhere as well", w=(F, F))
def activation_of_the_hidden_multiplied_in(x, w_gate, w_up, w, w_down):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    other = silu(linear(hidden, w))
    return linear(torch.cat([hidden * other, hidden], 1)[:, :T], w_down)


@refused("activation", "activations are multiplied with each other|is used elsewhere as well", w=(F, F))
def activation_of_the_hidden_multiplied_in_and_stacked(x, w_gate, w_up, w, w_down):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    other = gelu(linear(hidden, w))
    return linear(torch.stack([hidden, hidden * other])[1], w_down)


@refused("activation", "hidden values are a function of 3 scores", w_other=(F, D))
def two_up_projections(x, w_gate, w_other, w_up, w_down):
    return linear(silu(linear(x, w_gate)) * linear(x, w_other) * linear(x, w_up), w_down)


@refused("activation", "2 tensors of its own shape", w_other=(F, D))
def an_up_projection_of_another_token(x, w_gate, w_other, w_up, w_down):
    return linear(silu(linear(x, w_gate)) * linear(x, w_up) * linear(x.flip(1), w_other), w_down)


@refused("activation", "it is multiplied with", other=True, gate_up=(2 * E, D), v=(O, E, E))
def outer_product_of_activations(x, gate_up, v):
    first, second = silu(linear(x, gate_up)).chunk(2, -1)
    return torch.einsum("bti,btj,oij->bto", first, second, v)


@right("activation")
def up_is_the_gate_cubed(x, w_gate, w_down):
    gate = linear(x, w_gate)
    return linear(silu(gate) * gate**3, w_down)  # here


@right("activation")
def activation_of_an_activation(x, w_gate, w_up, w_down):
    return linear(silu(silu(linear(x, w_gate))) * linear(x, w_up), w_down)


@right("activation")
def gate_squared(x, w_gate, w_up, w_down):
    return linear(silu(linear(x, w_gate).square()) * linear(x, w_up), w_down)


@right("activation")
def up_is_the_gate(x, w_gate, w_down):
    gate = linear(x, w_gate)
    return linear(relu(gate) * gate, w_down)  # here


# -- the weights of the sub-networks ------------------------------------------------------------------------


def networks(q, keys, ups):
    """The scores of all sub-networks."""
    return (torch.einsum("bthd,hefd->bthef", q, w) for w in (keys, ups))


@right("r")
def r_of_the_next_token(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthe,bthef,hefo->btho", r.roll(-1, 1), silu(gate) * up, values)


@right("r")
def r_on_the_gate_behind_the_activation(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthef,hefo->btho", r[..., None] * silu(gate) * up, values)


@right("r")
def r_on_the_up_projection(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthef,hefo->btho", silu(gate) * (up * r[..., None]), values)


@refused("r", "the argument of silu")
def r_inside_the_activation(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthef,hefo->btho", silu(r[..., None] * gate) * up, values)


@refused("r", "a factor for each token and channel", r=(B, T, H, F))
def r_for_each_channel(q, k, u, v, r):
    return down(silu(scores(q, k)) * scores(q, u) * r, v)


@right("r", mask=(F,))
def channels_masked(q, k, u, v, mask):
    return down(silu(scores(q, k)) * scores(q, u) * mask, v)


@right("r", r=(B, T, H, O))
def r_for_each_output(q, k, u, v, r):
    return down(silu(scores(q, k)) * scores(q, u), v) * r


@right("r")
def r_of_the_best_two(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    best = r.topk(2, -1)
    r = torch.zeros_like(r).scatter(-1, best.indices, best.values.softmax(-1))
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, values)


@refused("r", "is used elsewhere as well, by mean")
def r_of_the_activation_itself(q, keys, ups, values):
    gate, up = networks(q, keys, ups)
    hidden = silu(gate) * up
    return torch.einsum("bthe,bthef,hefo->btho", hidden.mean(-1).softmax(-1), hidden, values)


@refused("r", "softmax is applied to it")
def softmax_over_the_channels(q, k, u, v):
    return down((silu(scores(q, k)) * scores(q, u)).softmax(-1), v)


@refused("r", "that the input of gate and up lacks", r=(T, T))
def r_of_pairs_of_tokens(q, k, u, v, r):
    return torch.einsum("ts,bshf,hfo->btho", r, silu(scores(q, k)) * scores(q, u), v)


@refused("r", "an operand of another feed-forward, that of", rewrites=1, other=True)
def r_through_relu(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthe,bthef,hefo->btho", relu(r), silu(gate) * up, values)  # here


@refused("r", "an operand of another feed-forward, that of", rewrites=1, other=True)
def r_through_gelu(q, keys, ups, values, r):
    hidden = gelu(torch.einsum("bthd,hefd->bthef", q, keys))
    return torch.einsum("bthe,bthef,hefo->btho", gelu(r), hidden, values)


@right("r")
def r_detached(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthe,bthef,hefo->btho", r.detach(), silu(gate) * up, values)


# -- what autograd does -------------------------------------------------------------------------------------


@refused("gradient", "detach is applied to it")
def activation_detached(q, k, u, v):
    return down(silu(scores(q, k)).detach() * scores(q, u), v)


@refused("gradient", "up projection is the result of detach")
def up_detached(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u).detach(), v)


@refused("gradient", "argument of silu is the result of detach")
def gate_detached(q, k, u, v):
    return down(silu(scores(q, k).detach()) * scores(q, u), v)


@refused("gradient", "detach is applied to it")
def hidden_detached(q, k, u, v):
    return down((silu(scores(q, k)) * scores(q, u)).detach(), v)


@refused("gradient", "gate and up do not read the same input")
def gate_of_the_detached_query(q, k, u, v):
    return down(silu(scores(q.detach(), k)) * scores(q, u), v)


@right("gradient")
def query_and_values_detached(q, k, u, v):
    q = q.detach()
    return down(silu(scores(q, k)) * scores(q, u), v.detach())


@refused("gradient", SILENT)
def sigmoid_of_the_detached_gate(x, w_gate, w_up, w_down):
    gate = linear(x, w_gate)
    return linear(gate * torch.sigmoid(gate.detach()) * linear(x, w_up), w_down)


@refused("gradient", "a gradient is stopped inside the activation")
def sigmoid_without_grad(x, w_gate, w_up, w_down):
    gate = linear(x, w_gate)
    with torch.no_grad():
        weight = torch.sigmoid(gate)
    return linear(gate * weight * linear(x, w_up), w_down)  # here


@refused("gradient", "a gradient is stopped inside the activation")
def sigmoid_without_grad_between_heads(q, k, u, v):
    gate = scores(q, k)
    with torch.no_grad():
        weight = torch.sigmoid(1.702 * gate)
    return down(gate * weight * scores(q, u), v)  # here


@refused("gradient", "detach is applied to it", rewrites=3)
def one_sub_network_detached(q, keys, ups, values, r):
    out = 0
    for e in range(E):
        hidden = silu(scores(q, keys[:, e])) * scores(q, ups[:, e])
        out = out + r[..., e : e + 1] * down(hidden.detach() if e == 1 else hidden, values[:, e])
    return out


@right("gradient")
def result_detached(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v).detach() * q.sum()


@refused("gradient", "grad mode changes inside it")
def up_without_grad(q, k, u, v):
    with torch.no_grad():
        up = scores(q, u)
    return down(silu(scores(q, k)) * up, v)


@refused("gradient", "grad mode changes inside it")
def gate_product_without_grad(q, k, u, v):
    with torch.no_grad():
        gate = scores(q, k)
    return down(silu(gate) * scores(q, u), v)


@refused("gradient", "grad mode changes inside it")
def activation_without_grad(q, k, u, v):
    with torch.no_grad():
        gate = silu(scores(q, k))
    return down(gate * scores(q, u), v)


@refused("gradient", "grad mode changes inside it")
def values_product_with_grad_only(q, k, u, v):
    with torch.no_grad():
        hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden, v)


@refused("gradient", "grad mode changes inside it")
def up_without_grad_of_what_needs_none(q, k, u, v):
    q, u = q.detach(), u.detach()
    with torch.no_grad():
        up = scores(q, u)
    return down(silu(scores(q, k)) * up, v)


@refused("gradient", "grad mode changes inside it")
def gate_without_grad_of_what_needs_none(q, k, u, v):
    q, k = q.detach(), k.detach()
    with torch.no_grad():
        gate = scores(q, k)
    return down(silu(gate) * scores(q, u), v)


@right("gradient")
def all_of_it_without_grad(q, k, u, v):
    with torch.no_grad():
        out = down(silu(scores(q, k)) * scores(q, u), v)
    return out * q.sum()


@refused("gradient", "(round|detach) is applied to it")
def rounded_straight_through(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden + (hidden.round() - hidden).detach(), v)


@refused("gradient", "detach is applied to it")
def half_of_the_gradient(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(0.5 * hidden + 0.5 * hidden.detach(), v)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


@refused("gradient", "custom autograd function")
def gradient_reversed_inside(q, k, u, v):
    return down(Reversed.apply(silu(scores(q, k)) * scores(q, u)), v)


@refused("gradient", "argument of silu is the result of a custom autograd function")
def gradient_of_the_gate_reversed(q, k, u, v):
    return down(silu(Reversed.apply(scores(q, k))) * scores(q, u), v)


@right("gradient")
def gradient_of_the_query_reversed(q, k, u, v):
    q = Reversed.apply(q)
    return down(silu(scores(q, k)) * scores(q, u), v)


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return silu(gate) * up  # here

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        return grad * up * gate.sigmoid(), grad * silu(gate)


@refused("gradient", "inside a custom autograd function", at=Hidden.forward)
def activation_in_a_custom_function(q, k, u, v):
    return down(Hidden.apply(scores(q, k), scores(q, u)), v)


@refused("gradient", "register_hook")
def hook_on_the_activation(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    hidden.register_hook(lambda grad: grad * 2)
    return down(hidden, v)


@refused("gradient", "torch.func")
def a_transform_of_a_part(q, k, u, v):
    slope = torch.func.grad(lambda g: silu(g).sum())(scores(q, k))
    return down(slope * scores(q, u), v)


@refused("gradient", "torch.func")
def the_whole_inside_a_transform(q, k, u, v):
    return torch.func.grad(lambda q: down(silu(scores(q, k)) * scores(q, u), v).square().sum())(q)


@refused("gradient", "torch.func")
def the_rest_inside_a_transform(q, k, u, v):
    gate = silu(scores(q, k))
    return torch.func.jvp(lambda v: down(gate * scores(q, u), v), (v,), (v,))[0]


@refused("gradient", "torch.func")
def the_values_inside_a_transform(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return torch.func.vjp(lambda v: down(hidden, v), v)[0]


@refused("gradient", "used inside the transform of torch.func", y=(4, O))
def result_used_inside_a_map(q, k, u, v, y):
    return torch.vmap(lambda y: y + down(silu(scores(q, k)) * scores(q, u), v).cos())(y)


@refused("gradient", "used inside the transform of torch.func", y=(4, O))
def result_multiplied_inside_a_map(q, k, u, v, y):
    return torch.vmap(lambda y: y * down(silu(scores(q, k)) * scores(q, u), v))(y)


# -- writes -------------------------------------------------------------------------------------------------


@refused("write", "is written to between them", raises="modified by an inplace operation")
def input_written_between_gate_and_up(q, k, u, v):
    q = q.cos()
    gate = silu(scores(q, k))
    q.mul_(2)
    return down(gate * scores(q, u), v)


@refused("write", "gate and up do not read the same input")
def input_written_after_a_copy_for_the_gate(q, k, u, v):
    q = q * 1
    gate = silu(scores(q.clone(), k))
    q.mul_(2)
    return down(gate * scores(q, u), v)


@refused("write", "is written to between its use and the result", raises="modified by an inplace operation")
def weight_written_before_the_result(q, k, u, v):
    w = k.cos()
    hidden = silu(scores(q, w)) * scores(q, u)
    w.mul_(2)
    return down(hidden, v) + w.sum()


@refused("write", "is written to before the backward", raises="modified by an inplace operation")
def values_written_before_the_backward(q, k, u, v):
    w = v.cos()
    out = down(silu(scores(q, k)) * scores(q, u), w)
    w.mul_(2)
    return out


@right("write")
def weight_written_before_its_use(q, k, u, v):
    k = k * 1
    k[1] = 0
    return down(silu(scores(q, k)) * scores(q, u), v)


@refused("write", "written|single call")
def activation_written_into_a_part(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    hidden[..., 0] = 1
    return down(hidden, v)


@refused("write", "single call")
def last_channel_overwritten(q, k, u, v):
    hidden = relu(scores(q, k)) * scores(q, u)
    hidden[..., -1] = 2
    return down(hidden, v)


@refused("write", "a write into a part")
def activation_added_to_in_place(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    hidden[:, 1:] += 1
    return down(hidden, v)


@refused("write", "used elsewhere as well, by sum")
def activation_of_a_view_used_later(q, gate_up, v):
    scored = torch.einsum("bthd,hfd->bthf", q, gate_up) * 1
    gate, up = scored[..., :F], scored[..., F:]
    hidden = nnf.silu(gate, inplace=True) * up
    return down(hidden, v) + scored.sum()


@right("write")
def activation_in_place(q, gate_up, v):
    scored = torch.einsum("bthd,hfd->bthf", q, gate_up) * 1
    gate, up = scored[..., :F], scored[..., F:]
    return down(nnf.silu(gate, inplace=True) * up, v)


@refused("write", "is used elsewhere as well", raises="modified by an inplace operation")
def hidden_written_twice(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)  # here
    first = down(hidden, v)
    hidden = hidden.mul_(hidden)  # here
    return first.detach() + down(hidden, v)


BUFFER = torch.zeros(B, T, H, F, dtype=torch.float64)


@refused("write", "is not made inside it")
def hidden_kept_in_a_buffer(q, k, u, v):
    BUFFER.copy_(silu(scores(q.detach(), k.detach())) * scores(q.detach(), u.detach()))
    return down(BUFFER, v)


@refused("write", "part of a concatenation or of a buffer|summed over heads")
def heads_added_up_in_a_part_of_a_buffer(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    sums = torch.zeros_like(hidden)
    sums[:, :, :1] += hidden.sum(2, keepdim=True)
    return down(sums, v)


@refused("write", "something else is added to it, or only a part of it is written", wide=(B, T, H, F))
def more_tokens_beside_the_hidden(q, k, u, v, wide):
    return down(torch.cat([silu(scores(q, k)) * scores(q, u), wide], 1), v)


@refused("write", "something else is added to it, or only a part of it is written", v=(2 * H, F, O))
def more_heads_beside_the_hidden(q, k, u, v):
    gate = scores(q, k)
    return down(torch.cat([silu(gate) * scores(q, u), gate], 2), v)


@refused("write", "the shape of the result .* is changed in place later")
def result_added_to_and_transposed_in_place(q, k, u, v):
    out = down(silu(scores(q, k)) * scores(q, u), v)
    out.add_(1)
    out.transpose_(1, 2)
    return out * 1


@refused("write", "the shape of the result .* is changed in place later")
def result_added_to_and_unsqueezed_in_place(x, w_gate, w_up, w_down):
    out = linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)
    out.add_(1)
    out.unsqueeze_(0)
    return out * 1


@refused("write", "shares memory with the result .*, which is written to later")
def result_added_to_a_buffer_that_is_viewed(x, w_gate, w_up, w_down):
    x = x.flatten(0, 1)
    out = x.new_zeros(B * T, O)
    first = out[0]
    out.addmm_(silu(linear(x, w_gate)) * linear(x, w_up), w_down.t())
    return out * first


@refused("write", "shares memory with the result .*, which is written to later")
def heads_added_to_a_buffer_that_is_viewed(q, k, u, v):
    q = q.flatten(0, 1).transpose(0, 1)
    out = q.new_zeros(H, B * T, O)
    first = out[:1]
    out.baddbmm_(silu(q @ k.mT) * (q @ u.mT), v)
    return out * first


@right("write")
def input_read_back_from_a_buffer(x, w_gate, w_up, w_down):
    kept = torch.zeros_like(x)
    kept.copy_(x)
    return linear(silu(linear(kept, w_gate)) * linear(kept, w_up), w_down), kept * 1


@right("write")
def input_read_back_from_a_part_of_a_buffer(x, w_gate, w_up, w_down):
    kept = x.new_zeros(B, 2, T, D)
    kept[:, 0] = x
    x = kept[:, 0]
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down), kept


@right("write")
def input_read_back_from_a_part_of_a_buffer_beside_another(x, y, w_gate, w_up, w_down):
    kept = x.new_zeros(B, 2, T, D)
    kept[:, 0] = x
    kept[:, 1] = y
    x = kept[:, 0]
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down), kept * 1


@refused("write", "part of a concatenation or of a buffer")
def hidden_before_tokens_of_zeros(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(torch.cat([hidden, torch.zeros_like(hidden)], 1), v)


@refused("write", "is written to between its use and the result", raises="modified by an inplace operation")
def values_written_before_a_second_product(q, k, u, v):
    w = u.cos()
    hidden = silu(scores(q, k)) * scores(q, w)
    w.zero_()
    return down(hidden, v) + w.sum()


@refused("write", "is written to before the backward", raises="modified by an inplace operation")
def up_weight_written_before_the_backward(q, k, u, v):
    w = u.cos()
    out = down(silu(scores(q, k)) * scores(q, w), v)
    w.zero_()
    return out


@refused("write", "is not made inside it")
def hidden_multiplied_into_a_buffer(q, k, u, v):
    BUFFER.copy_(relu(scores(q.detach(), k.detach())))
    return down(BUFFER, v)


@right("write")
def result_transposed_in_place(q, k, u, v):
    out = down(silu(scores(q, k)) * scores(q, u), v)
    out.transpose_(1, 2)
    return out.reshape(-1)


@right("write")
def keys_written_without_gradients(q, k, u, v):
    with torch.no_grad():
        k.copy_(u)
    return down(silu(scores(q, k)) * scores(q, u), v)


@right("write", w=(H, F, D))
def computed_keys_written_without_gradients(q, k, u, v, w):
    k = k * 1
    with torch.no_grad():
        k.copy_(w)
    return down(silu(scores(q, k)) * scores(q, u), v)


@right("write", w=())
def a_scale_written_without_gradients(q, k, u, v, w):
    with torch.no_grad():
        w.fill_(2.0)
    return down(silu(scores(q, k)) * scores(q, u) * w, v)


@right("write")
def keys_written_over_in_part(q, k, u, v):
    k = k.clone()
    k[:, :3] = torch.cumsum(u[:, :3], 0)
    return down(silu(scores(q, k)) * scores(q, u), v)


@right("write")
def a_number_of_lower_precision(q, k, u, v):
    tenth = torch.full((), 0.1, dtype=torch.bfloat16)
    return (
        down(silu(scores(q, k) * tenth) * scores(q, u), v)
        * torch.full((O,), 0.3, dtype=torch.float16).double()
    )


@right("write")
def an_infinity_of_lower_precision(q, k, u, v):
    many = torch.full((), 1e6, dtype=torch.float16)
    return down(silu(scores(q, k)) * scores(q, u), v) / many


# -- the activation is seen from outside --------------------------------------------------------------------


@refused("escape", "is returned as well")
def hidden_returned(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden, v), hidden


@refused("escape", "is returned as well")
def up_returned_in_a_list(q, k, u, v):
    up = scores(q, u)
    seen = [up]
    return down(silu(scores(q, k)) * up, v), seen


@refused("escape", "used elsewhere as well, by pow")
def penalty_on_the_activation(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden, v), hidden.square().mean()


@refused("escape", "is used elsewhere as well, by gt")
def sparsity_measured(q, k, u, v):
    gate = relu(scores(q, k))
    return down(gate * scores(q, u), v), (gate > 0).sum()


@refused("escape", "is used elsewhere as well")
def gate_used_by_another_branch(q, k, u, v, v_back):
    gate = scores(q, k)
    return down(silu(gate) * scores(q, u), v), down(gate, v_back)


@refused("escape", "is used elsewhere as well")
def two_values_of_one_activation(q, k, u, v, v_back):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden, v), down(hidden, v_back)


@refused("escape", "is used elsewhere as well, by abs")
def output_scaled_by_the_largest_activation(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden, v) / hidden.abs().amax()


@refused("escape", "it reaches no product with values", other=True)
def hidden_kept_only(q, k, u):
    with torch.no_grad():
        BUFFER.copy_(silu(scores(q, k)) * scores(q, u))
    return q * 1


@refused("escape", "it reaches no product with values", other=True)
def hidden_added_to_what_is_kept(q, k, u):
    with torch.no_grad():
        BUFFER.add_(silu(scores(q, k)) * scores(q, u))
    return q * 1


@refused("escape", "it reaches no product with values", other=True)
def ungated_hidden_kept_only(q, k):
    with torch.no_grad():
        BUFFER.copy_(gelu(scores(q, k)))
    return q * 1


@refused("escape", "an operand is inside another match", rewrites=1)
def up_projection_is_another_s_input(x, w_gate, w_up, w_down, w_gate_2, w_up_2, w_down_2):
    first = linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)
    x = linear(x, w_up)
    return first + linear(silu(linear(x, w_gate_2)) * linear(x, w_up_2), w_down_2)


@refused("escape", "an operand is inside another match", rewrites=1)
def multiple_of_an_input_that_is_written_later(x, w_gate, w_up, w_down):
    x = x.detach() * 1
    twice = 2 * x
    first = linear(silu(linear(twice, w_gate)) * linear(twice, w_up), w_down)
    w_gate, w_up, w_down = w_gate.detach(), w_up.detach(), w_down.detach()
    second = linear(silu(linear(twice, w_gate)) * linear(twice, w_up), w_down)
    x.mul_(3)
    return first, second, x


# -- rounding, quantisation, clamps -------------------------------------------------------------------------


@refused("rounding", "round is applied to it")
def hidden_fake_quantised(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down((hidden / 0.1).round() * 0.1, v)


@refused("rounding", "fake_quant")
def hidden_quantised_by_the_library(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(torch.fake_quantize_per_tensor_affine(hidden.float(), 0.1, 0, -128, 127).double(), v)


@refused("rounding", "int32")
def hidden_cast_to_integers(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.to(torch.int32).double(), v) * q.sum()


@refused("rounding", "float8")
def hidden_cast_to_float8(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.to(torch.float8_e4m3fn).double(), v)


@right("rounding", rounds=torch.bfloat16)
def hidden_cast_to_bfloat16(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.bfloat16().double(), v)


@refused("rounding", "bool")
def hidden_cast_to_booleans(q, k, u, v):
    hidden = relu(scores(q, k)) * scores(q, u)
    return down(hidden.bool().double(), v) * q.sum()


@right("rounding")
def gate_clamped(q, k, u, v):
    return down(silu(scores(q, k).clamp(max=1)) * scores(q, u), v)


@right("rounding")
def up_clamped(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u).clamp(-1, 1), v)


@right("rounding")
def gate_and_up_clamped_as_gpt_oss_does(q, gate_up, v):
    gate, up = torch.einsum("bthd,hfd->bthf", q, gate_up).chunk(2, -1)
    gate, up = gate.clamp(max=1), up.clamp(-1, 1)
    return down((up + 1) * (gate * torch.sigmoid(1.702 * gate)), v)


@right("rounding")
def gate_plus_one(q, k, u, v):
    return down(silu(scores(q, k) + 1) * scores(q, u), v)


@right("rounding")
def up_plus_one(q, gate_up, v):
    gate, up = torch.einsum("bthd,hfd->bthf", q, gate_up).chunk(2, -1)
    return down((up + 1) * silu(gate), v)


@right("rounding")
def hidden_clamped(q, k, u, v):
    return down((silu(scores(q, k)) * scores(q, u)).clamp(-1, 1), v)


@right("rounding")
def scores_soft_capped(q, k, u, v):
    return down(silu(5 * torch.tanh(scores(q, k) / 5)) * scores(q, u), v)


@right("rounding")
def hidden_through_a_silu(q, k, u, v):
    return down(silu(silu(scores(q, k)) * scores(q, u)), v)


@refused("rounding", "silu is applied to it|the argument of silu")
def weighted_hidden_through_a_silu(q, k, u, v, r):
    return down(silu(silu(scores(q, k)) * scores(q, u) * r[..., :1]), v)


@refused("rounding", "nan_to_num is applied to it")
def hidden_made_finite(q, k, u, v):
    return down((silu(scores(q, k)) * scores(q, u)).nan_to_num(), v)


# -- norms inside -------------------------------------------------------------------------------------------


@refused("norm", "normalised|used elsewhere as well, by (square|pow)")
def hidden_rms_normed_by_hand(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6), v)


@refused("norm", "normalised|squared as well")
def hidden_rms_normed(q, k, u, v):
    return down(nnf.rms_norm(silu(scores(q, k)) * scores(q, u), [F]), v)


@refused("norm", "normalised|squared as well")
def hidden_layer_normed(q, k, u, v):
    return down(nnf.layer_norm(silu(scores(q, k)) * scores(q, u), [F]), v)


@refused("norm", "used elsewhere as well, by std")
def hidden_layer_normed_by_hand(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    hidden = hidden - hidden.mean(-1, keepdim=True)
    return down(hidden / hidden.std(-1, keepdim=True), v)


@refused("norm", "normalised")
def hidden_of_unit_length(q, k, u, v):
    return down(nnf.normalize(silu(scores(q, k)) * scores(q, u), dim=-1), v)


@refused("norm", "argument of silu is the result of a layer norm")
def gate_layer_normed(q, k, u, v):
    return down(silu(nnf.layer_norm(scores(q, k), [F])) * scores(q, u), v)


@refused("norm", "up projection is the result of .*rms_norm|normalised")
def up_rms_normed(q, k, u, v):
    return down(silu(scores(q, k)) * nnf.rms_norm(scores(q, u), [F]), v)


@refused("norm", r"normalised, by a vector norm")
def hidden_over_its_length(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden / torch.linalg.vector_norm(hidden, dim=-1, keepdim=True), v)


@refused("norm", r"normalised, by a layer norm")
def hidden_weighted_by_its_norm(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden * nnf.layer_norm(hidden, [F]).amax(-1, keepdim=True), v)


@right("norm")
def hidden_squared(q, k, u, v):
    return down((silu(scores(q, k)) * scores(q, u)).square(), v)


@refused("norm", "it is squared as well")
def hidden_centred_and_squared(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down((hidden - hidden.mean(-1, keepdim=True)).square(), v)


@right("norm")
def hidden_centred(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden - hidden.mean(-1, keepdim=True), v)


@right("norm")
def queries_normed(q, k, u, v):
    q = nnf.rms_norm(q, [D])
    return down(silu(scores(q, k)) * scores(q, u), v)


# -- rows picked by data ------------------------------------------------------------------------------------


@refused("routing", "picked by data .*gather")
def channels_gathered(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    order = q.sum(-1, keepdim=True).argsort(1).expand(B, T, H, F)
    return down(hidden.gather(1, order), v)


@refused("routing", "picked by data .*index_select")
def heads_selected(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.index_select(2, torch.tensor([1, 2, 0])), v)


@refused("routing", "picked by data .*index_add")
def tokens_added_into_rows(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    rows = torch.zeros_like(hidden).index_add(1, torch.tensor([1, 1, 0, 4, 3]), hidden)
    return down(rows, v)


@refused("routing", "scatter")
def tokens_scattered(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    rows = torch.zeros_like(hidden).scatter(1, torch.zeros(B, T, H, F, dtype=torch.long), hidden)
    return down(rows, v)


@refused("routing", r"is picked by index \(index\): 420 numbers of the 126 in ")
def experts_picked_for_each_token(x, values, ups, keys):
    pick = x.sum(-1).flatten().argsort() % H
    k, u, v = (w[:, 0][pick] for w in (keys, ups, values))
    q = x.flatten(0, 1)
    hidden = silu(torch.einsum("nd,nfd->nf", q, k)) * torch.einsum("nd,nfd->nf", q, u)
    return torch.einsum("nf,nfo->no", hidden, v)


@right("routing")
def experts_picked_once_at_most(x, values, ups, keys):
    pick = x.sum(-1).flatten().argsort()[:2] % H
    k, u, v = (w[:, 0][pick] for w in (keys, ups, values))
    q = x.flatten(0, 1)[:2]
    hidden = silu(torch.einsum("nd,nfd->nf", q, k)) * torch.einsum("nd,nfd->nf", q, u)
    return torch.einsum("nf,nfo->no", hidden, v)


@refused(
    "cost",
    r"a fused call would take about \d+ ms where the program takes 0\.\d+ ms",
    x=(1, MANY, 4), keys=(MANY, 3, 4), ups=(MANY, 3, 4), values=(MANY, 3, 4),
)  # fmt: skip
def an_expert_for_each_token(x, values, ups, keys):
    hidden = silu(torch.einsum("bed,efd->bef", x, keys)) * torch.einsum("bed,efd->bef", x, ups)
    return torch.einsum("bef,efo->beo", hidden, values)


@right("cost", x=(1, H, 4), keys=(H, 3, 4), ups=(H, 3, 4), values=(H, 3, 4))
def an_expert_for_each_of_few_tokens(x, values, ups, keys):
    hidden = silu(torch.einsum("bed,efd->bef", x, keys)) * torch.einsum("bed,efd->bef", x, ups)
    return torch.einsum("bef,efo->beo", hidden, values)


@refused("routing", "mask|bool")
def best_channels_kept(q, k, u, v):
    gate = scores(q, k)
    kept = gate >= gate.topk(3, -1).values[..., -1:]
    return down(silu(gate) * scores(q, u) * kept, v)


@refused("routing", "is combined .* with a tensor of bool")
def channels_kept_above_zero(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden * (q.sum(-1, keepdim=True) > 0), v)


@refused("routing", "(masked_fill|nan_to_num)")
def scores_masked(q, k, u, v):
    gate = scores(q, k)
    gate = gate.masked_fill(torch.arange(F) > 4, -math.inf)
    return down(silu(gate).nan_to_num() * scores(q, u), v)


@refused("routing", "masked_fill")
def hidden_masked(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden.masked_fill(torch.arange(F) > 4, 0), v)


@refused("routing", "pad")
def channels_cut_off_and_padded(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(nnf.pad(hidden[..., :4], (0, 3)), v)


# -- tokens mixed -------------------------------------------------------------------------------------------


@refused("tokens", "cumsum is applied to it")
def hidden_summed_over_the_past(q, k, u, v):
    return down((silu(scores(q, k)) * scores(q, u)).cumsum(1), v)


@right("tokens")
def result_summed_over_the_past(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v).cumsum(1)


@refused("tokens", "up projection is the result of cumsum")
def up_summed_over_the_past(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u).cumsum(1), v)


@refused("tokens", "convolution", w3=(F, 1, 3), other=True)
def hidden_convolved_over_three_tokens(x, w_gate, w_up, w_down, w3):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    return linear(nnf.conv1d(hidden.mT, w3, padding=1, groups=F).mT, w_down)


@refused("tokens", "argument of silu is the result of convolution", w3=(F, D, 3), other=True)
def gate_by_a_convolution_of_three_tokens(x, w3, w_up, w_down):
    gate = nnf.conv1d(x.mT, w3, padding=1).mT
    return linear(silu(gate) * linear(x, w_up), w_down)


@right("tokens", w1=(F, D, 1))
def gate_by_a_convolution_of_one_token(x, w1, w_up, w_down):
    return linear(silu(nnf.conv1d(x.mT, w1).mT) * linear(x, w_up), w_down)


@refused("tokens", "pad")
def hidden_of_the_token_before(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(nnf.pad(hidden, (0, 0, 0, 0, 1, -1)), v)


@refused("tokens", "not contracted with values", mixed=(T, T))
def hidden_of_mixed_tokens(q, k, u, mixed):
    hidden = silu(scores(q, k)) * scores(q, u)
    return torch.einsum("st,bthf->bshf", mixed, hidden)


@refused("tokens", "that the input of gate and up lacks", mixed=(T, T))
def tokens_mixed_by_a_matrix(q, k, u, v, mixed):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(torch.einsum("st,bthf->bshf", mixed, hidden), v)


@refused("tokens", "tril is applied to it")
def causal_attention_of_keys_made_of_tokens(x, y):
    gate, up = x @ y.mT, x @ x.mT
    return (silu(gate) * up).tril() @ y


# -- weights that are no weights ----------------------------------------------------------------------------


@refused("weights", "values .* for each token", v_each=(B, T, F, O))
def values_of_each_token(x, w_gate, w_up, v_each):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    return torch.einsum("btf,btfo->bto", hidden, v_each)


@right("weights", k_each=(B, F, D), u_each=(B, F, D), v_each=(B, F, O))
def weights_of_each_batch_entry(x, k_each, u_each, v_each):
    return (silu(x @ k_each.mT) * (x @ u_each.mT)) @ v_each


@refused("weights", "bias .* for each token", bias=(B, T, F))
def bias_of_each_token(x, w_gate, w_up, w_down, bias):
    return linear(silu(linear(x, w_gate) + bias) * linear(x, w_up), w_down)


@refused("weights", "bias .* for each token", bias=(B, T, F))
def up_bias_of_each_token(x, w_gate, w_up, w_down, bias):
    return linear(silu(linear(x, w_gate)) * (linear(x, w_up) + bias), w_down)


@right("weights", a=(F, 2), b=(2, D))
def low_rank_update_of_the_gate(x, w_gate, w_up, w_down, a, b):
    gate = linear(x, w_gate) + linear(linear(x, b), a)
    return linear(silu(gate) * linear(x, w_up), w_down)


@right("weights", scale=(H, 1))
def scale_of_each_head_inside(q, k, u, v, scale):
    return down(silu(scores(q, k) * scale) * scores(q, u), v)


@right("weights", scale=(H, 1))
def scale_of_each_head_outside(q, k, u, v, scale):
    return down(silu(scores(q, k)) * scores(q, u), v) * scale


@refused("weights", "something else is added to it", wide=(B, T, F), other=True)
def residual_before_the_values(x, w_gate, w_up, w_down, wide):
    return linear(silu(linear(x, w_gate)) * linear(x, w_up) + wide, w_down)


@refused("weights", "something else is added to it", bias=(F,))
def bias_before_the_values(x, w_gate, w_up, w_down, bias):
    return linear(silu(linear(x, w_gate)) * linear(x, w_up) + bias, w_down)


@right("weights")
def residual_behind_the_values(q, k, u, v_back):
    return q + down(silu(scores(q, k)) * scores(q, u), v_back)


@right("weights")
def values_are_the_keys(q, k, u):
    return down(silu(scores(q, k)) * scores(q, u), k)


@right("weights", w=(2 * F, D))
def overlapping_halves(x, w, w_down):
    return linear(silu(linear(x, w[:F])) * linear(x, w[F - 1 : 2 * F - 1]), w_down)


@right("weights")
def tiles_of_the_width_that_overlap(x, w_gate, w_up, w_down):
    out = 0
    for i in range(F - 1):
        tile = slice(i, i + 2)
        out = out + linear(silu(linear(x, w_gate[tile])) * linear(x, w_up[tile]), w_down[:, tile])
    return out


@right("weights", x=(B, T, D + H - 1))
def heads_that_overlap(x, k, u, v):
    parts = []
    for h in range(H):
        q = x[..., h : h + D]
        parts.append((silu(q @ k[h].mT) * (q @ u[h].mT)) @ v[h])
    return torch.stack(parts, 2)


@right("weights", w=(F + E - 1, D))
def sub_networks_that_overlap(x, w, w_up, w_down):
    out = 0
    for e in range(E):
        out = out + linear(silu(linear(x, w[e : e + F])) * linear(x, w_up), w_down)
    return out


@right("weights", w=(2 * F, D))
def halves_interleaved(x, w, w_down):
    wide = linear(x, w)
    return linear(silu(wide[..., ::2]) * wide[..., 1::2], w_down)


@right("weights", w=(2 * F, D), w2=(2 * F, O))
def halves_interleaved_then_split(x, w, w_down, w2):
    wide = linear(x, w)
    x = linear(silu(wide[..., ::2]) * wide[..., 1::2], w_down)
    gate, up = linear(x, w2).chunk(2, -1)
    return linear(silu(gate) * up, w_down)


@refused("weights", "up projection is the result of flip", w=(2 * F, D))
def up_half_read_backwards(x, w, w_down):
    wide = linear(x, w)
    return linear(silu(wide[..., :F]) * wide.flip(-1)[..., :F], w_down)


@refused("weights", "as_strided")
def hidden_read_with_other_strides(x, w_gate, w_up, w_down):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    return linear(hidden.as_strided((B, T, F), (1, F, T)), w_down)


@right("weights")
def weight_read_with_other_strides(x, w_gate, w_up, w_down):
    return linear(silu(linear(x, w_gate.as_strided((F, D), (1, F)))) * linear(x, w_up), w_down)


# -- scales, wide products, updates of low rank -------------------------------------------------------------


@refused("scale", "for each token and channel", s=(B, T, F))
def hidden_scaled_for_each_token_and_channel(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x, w_gate)) * linear(x, w_up) * s, w_down)


@refused("scale", "for each token and channel", s=(B, T, H, F))
def ungated_hidden_scaled_for_each_token_and_channel_twice(q, k, v, s):
    return down(gelu(scores(q, k)) * s * s.sin(), v)


@refused("scale", "for each token", s=(B, T, F))
def gate_scaled_for_each_token_and_channel(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x, w_gate) * s) * linear(x, w_up), w_down)


@refused("scale", "for each token", s=(B, T, H, F))
def gate_of_heads_scaled_for_each_token_and_channel(q, k, u, v, s):
    return down(silu(scores(q, k) * s) * scores(q, u), v)


@refused("scale", "for each token", s=(T, F))
def gate_scaled_for_each_place_and_channel(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x, w_gate) * s) * linear(x, w_up), w_down)


@refused("scale", "for each token", s=(B, T, 1))
def gate_scaled_for_each_token(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x, w_gate) * s) * linear(x, w_up), w_down)


@refused("scale", "for each token", r=(B, T, 1), s=(B, T, 1))
def gate_and_up_scaled_for_each_token_apart(x, w_gate, w_up, w_down, r, s):
    return linear(silu(linear(x, w_gate) * r) * (linear(x, w_up) * s), w_down)


@refused("scale", "for each token", s=(B, T, H, 1))
def gate_scaled_for_each_token_and_head(q, k, u, v, s):
    return down(silu(s * scores(q, k)) * scores(q, u), v)


@refused("scale", "for each token", s=(B, T, 1))
def gate_moved_for_each_token(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x, w_gate) + s) * linear(x, w_up), w_down)


@refused("scale", "for each token", s=(B, T, 1))
def up_moved_for_each_token(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x, w_gate)) * (linear(x, w_up) + s), w_down)


@right("scale", s=(B, T, 1))
def up_scaled_for_each_token(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x, w_gate)) * (linear(x, w_up) * s), w_down)


@right("scale", s=(B, T, 1))
def gate_and_up_of_the_scaled_input(x, w_gate, w_up, w_down, s):
    return linear(silu(linear(x * s, w_gate)) * linear(x * s, w_up), w_down)


@refused("scale", "something else is added to it", bias=(H, F))
def biases_of_heads_before_the_values(q, k, u, v, bias):
    return down(silu(scores(q, k)) * scores(q, u) + bias, v)


@refused("scale", "something else is added to it", bias=(H, F))
def biases_of_heads_before_the_values_without_a_gate(q, k, v, bias):
    return down(gelu(scores(q, k)) + bias, v)


@refused("routing", "picked by index")
def values_picked_for_each_token(x, w_gate, w_up, v):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    pick = x.sum(-1).flatten().argsort().view(B, T) % H
    return torch.einsum("btf,btfo->bto", hidden, v[pick])


@refused("routing", "picked by (index|index_select|embedding)")
def values_selected_for_each_token(x, w_gate, w_up, v):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    pick = x.sum(-1).flatten().argsort() % H
    own = v.index_select(0, pick).view(B, T, F, O)
    return (hidden.unsqueeze(-2) @ own).squeeze(-2)


@refused("wide", "is returned as well", w=(2 * F + O, D))
def wide_product_returned(x, w, w_down):
    wide = linear(x, w)
    gate, up, skip = wide.split([F, F, O], -1)
    return linear(silu(gate) * up, w_down) + skip, wide


@refused("wide", "used elsewhere as well, by .*norm", w=(2 * F + O, D))
def wide_product_normed(x, w, w_down):
    wide = linear(x, w)
    gate, up = wide[..., :F], wide[..., F : 2 * F]
    return linear(silu(gate) * up, w_down) + nnf.layer_norm(wide, wide.shape[-1:])[..., -O:]


@refused("wide", "norm", w=(2 * F + O, D))
def wide_product_normed_before_it_is_split(x, w, w_down):
    gate, up, skip = nnf.layer_norm(linear(x, w), (2 * F + O,)).split([F, F, O], -1)
    return linear(silu(gate) * up, w_down) + skip


@refused("wide", "used elsewhere as well, by (mean|sum)", w=(H, 2 * F + O, D))
def wide_product_of_heads_averaged(q, w, v):
    wide = scores(q, w)
    gate, up, skip = wide.split([F, F, O], -1)
    return down(silu(gate) * up, v) + skip * wide.mean(-1, keepdim=True)


@refused("wide", "used elsewhere as well|returned as well", w=(2 * F + O, D))
def parts_of_a_wide_product_that_overlap(x, w, w_down):
    wide = linear(x, w)
    gate, up, skip = wide[..., :F], wide[..., F : 2 * F], wide[..., 2 * F - 1 :]
    return linear(silu(gate) * up, w_down) + skip[..., :O]


@refused("low rank", "tanh", rewrites=1, a=(F, 2), b=(2, D))
def low_rank_update_with_a_tanh(x, w_gate, w_up, w_down, a, b):
    gate = linear(x, w_gate) + linear(torch.tanh(linear(x, b)), a)  # here
    return linear(silu(gate) * linear(x, w_up), w_down)  # here


@refused("low rank", "up projection .*tanh|is tanh", rewrites=1, a=(F, 2), b=(2, D))
def low_rank_update_of_up_with_a_tanh(x, w_gate, w_up, w_down, a, b):
    up = linear(x, w_up) + 0.5 * linear(linear(x, b).tanh(), a)  # here
    return linear(silu(linear(x, w_gate)) * up, w_down)  # here


@refused("low rank", "a sum of 2 products|relu", rewrites=1, a=(F, 2), b=(2, D))
def low_rank_update_with_a_relu(x, w_gate, w_up, w_down, a, b):
    """The update is a feed-forward itself."""
    gate = linear(x, w_gate) + linear(relu(linear(x, b)), a)
    return linear(silu(gate) * linear(x, w_up), w_down)


@refused("low rank", "dropout", a=(F, 2), b=(2, D))
def low_rank_update_dropped_out(x, w_gate, w_up, w_down, a, b):
    gate = linear(x, w_gate) + linear(linear(nnf.dropout(x, 0.5), b), a)
    return linear(silu(gate) * linear(x, w_up), w_down)


@refused("low rank", "dropout", a=(O, 2), b=(2, F))
def low_rank_update_of_the_values_dropped_out(x, w_gate, w_up, w_down, a, b):
    hidden = silu(linear(x, w_gate)) * linear(x, w_up)
    return linear(hidden, w_down) + 0.5 * linear(linear(nnf.dropout(hidden, 0.5), b), a)


@refused("low rank", "a sum of 2 products .*inputs|do not read the same input", a=(F, 2), b=(2, D))
def low_rank_update_of_another_input(x, y, w_gate, w_up, w_down, a, b):
    gate = linear(x, w_gate) + linear(linear(y, b), a)
    return linear(silu(gate) * linear(x, w_up), w_down)


@refused("low rank", "a sum of 2 products .*inputs|do not read the same input", a=(F, 2), b=(2, 2 * D))
def low_rank_update_of_two_inputs(x, y, w_gate, w_up, w_down, a, b):
    gate = linear(x, w_gate) + linear(linear(torch.cat([x, y], -1), b), a)
    return linear(silu(gate) * linear(x, w_up), w_down)


@refused("low rank", "a sum of 2 products .*inputs|do not read the same", a=(F, 2), b=(2, D))
def low_rank_update_of_the_token_before(x, w_gate, w_up, w_down, a, b):
    before = nnf.pad(x, (0, 0, 1, -1))
    gate = linear(x, w_gate) + linear(linear(before, b), a)
    return linear(silu(gate) * linear(x, w_up), w_down)


# -- modes, boundaries, randomness --------------------------------------------------------------------------


@refused("randomness", "dropout")
def hidden_dropped_out(q, k, u, v):
    return down(nnf.dropout(silu(scores(q, k)) * scores(q, u), 0.5), v)


@refused("randomness", "dropout")
def gate_dropped_out(q, k, u, v):
    return down(silu(nnf.dropout(scores(q, k), 0.5)) * scores(q, u), v)


@refused("randomness", "dropout")
def up_dropped_out(q, k, u, v):
    return down(silu(scores(q, k)) * nnf.dropout(scores(q, u), 0.5), v)


@refused("randomness", "randomness is inside")
def noise_on_the_gate(q, k, u, v):
    gate = scores(q, k)
    return down(silu(gate + torch.randn_like(gate)) * scores(q, u), v)


@refused("randomness", "randomness is inside")
def channels_kept_by_chance(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    return down(hidden * torch.bernoulli(torch.full_like(hidden, 0.5)), v)


@right("randomness")
def sub_networks_kept_by_chance(q, keys, ups, values, r):
    gate, up = networks(q, keys, ups)
    r = r * torch.bernoulli(torch.full_like(r, 0.5))
    return torch.einsum("bthe,bthef,hefo->btho", r, silu(gate) * up, values)


@refused("mode", "autocast is switched inside it")
def up_under_autocast(q, k, u, v):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        up = scores(q, u)
    return down(silu(scores(q, k)) * up.double(), v)


@refused("mode", "autocast is switched inside it")
def parts_added_up_under_autocast(q, keys, ups, values):
    gate, up = networks(q, keys, ups)
    hidden = silu(gate) * up  # of each part alone it would be said that hidden is used elsewhere
    parts = [torch.einsum("bthf,hfo->btho", hidden[:, :, :, e], values[:, e]) for e in range(E)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return parts[0] + parts[1] + parts[2] + parts[3]


@refused("mode", "autocast is switched inside it")
def gate_under_autocast(q, k, u, v):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gate = scores(q, k)
    return down(silu(gate.double()) * scores(q, u), v)


@refused("mode", "a checkpoint boundary crosses it")
def up_checkpointed(q, k, u, v):
    up = checkpoint(scores, q, u, use_reentrant=False)
    return down(silu(scores(q, k)) * up, v)


@refused("mode", "a checkpoint boundary crosses it")
def hidden_checkpointed(q, k, u, v):
    def hidden(q, k, u):
        return silu(scores(q, k)) * scores(q, u)

    return down(checkpoint(hidden, q, k, u, use_reentrant=False), v)


@refused("mode", "inside a body of cond")
def activation_in_a_branch(q, k, u, v):
    hidden = torch.cond(q.sum() > 0, lambda g: silu(g), lambda g: silu(g) * 2, (scores(q, k),))
    return down(hidden * scores(q, u), v)


@refused("mode", "inside a body of cond")
def hidden_checkpointed_in_a_branch(q, k, u, v):
    def branch(q):
        hidden = checkpoint(lambda q: silu(scores(q, k)) * scores(q, u), q, use_reentrant=False)
        return down(hidden, v)

    return torch.cond(q.sum() > 0, branch, lambda q: 2 * branch(q), (q,))


@refused("mode", "inside a body of cond")
def all_of_it_checkpointed_in_a_branch(q, k, u, v):
    def branch(q):
        return checkpoint(lambda q: down(silu(scores(q, k)) * scores(q, u), v), q, use_reentrant=False)

    return torch.cond(q.sum() > 0, branch, lambda q: 2 * branch(q), (q,))


@refused("mode", "the op does not take torch.float64 on cpu", without=torch.float64)
def a_dtype_that_the_op_lacks(q, k, u, v):
    return down(silu(scores(q, k)) * scores(q, u), v)


@refused("mode", "the op does not take torch.float64 on cpu", without=torch.float64)
def a_dtype_that_the_op_lacks_for_the_values(x, w_gate, w_up, w_down):
    gate, up = (linear(x.float(), weight.float()) for weight in (w_gate, w_up))
    return linear((silu(gate) * up).double(), w_down)


@refused("mode", "a dense feed-forward is left", options={"flashmhf.dense": "never"})
def dense(x, w_gate, w_up, w_down):
    return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)


@refused("mode", "a dense feed-forward is left", options={"flashmhf.dense": "never"})
def dense_without_a_gate(x, w_up, w_down):
    return linear(relu(linear(x, w_up)), w_down)


@refused("mode", "the graph ends before a product with values: Call to `torch._dynamo.graph_break")
def graph_break_before_the_values(q, k, u, v):
    hidden = silu(scores(q, k)) * scores(q, u)
    torch._dynamo.graph_break()
    return down(hidden, v)


@refused("mode", "complex is applied to it", phase=(B, T, H, F), other=True)
def complex_inside(q, k, u, v, phase):
    hidden = torch.complex(silu(scores(q, k)) * scores(q, u), phase)
    return down(hidden.abs(), v)


@refused("mode", "amax is applied to it")
def maximum_over_the_sub_networks(q, keys, ups, values):
    gate, up = networks(q, keys, ups)
    return down((silu(gate) * up).amax(3), values[:, 0])


@right("mode")
def sub_networks_multiplied(q, keys, ups, values):
    gate, up = networks(q, keys, ups)
    return torch.einsum("bthef,hefo->btheo", silu(gate) * up, values).prod(3)


@refused("mode", "computed on a NestedTensor, a tensor subclass")
def jagged_rows(x, w_gate, w_up, w_down):
    ends = torch.tensor([0, 3, B * T])
    rows = torch.nested.nested_tensor_from_jagged(x.flatten(0, 1), ends)
    return linear(silu(linear(rows, w_gate)) * linear(rows, w_up), w_down).values()


@refused("mode", "it is combined .* with a NestedTensor, a tensor subclass", other=True)
def rows_jagged_before_the_values(x, w_gate, w_up, w_down):
    hidden = (silu(linear(x, w_gate)) * linear(x, w_up)).flatten(0, 1)
    rows = torch.nested.nested_tensor_from_jagged(hidden, torch.tensor([0, 3, B * T]))
    return linear(rows, w_down).values()
