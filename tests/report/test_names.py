"""Names for people: module paths as one, and the values of a graph as the user knows them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import mhf_compile
from mhf_compile.report.names import compact, readable, readable_equation


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        ([""], ""),
        (["ffn"], "ffn"),
        (["ffn", "ffn"], "ffn"),
        ([f"layers.{n}.mlp" for n in range(32)], "layers.0-31.mlp"),
        ([f"layers.{n}.mlp" for n in range(32) if n != 7], "layers.0-6,8-31.mlp"),
        ([f"{n}" for n in (10, 9, 2, 0)], "0,2,9-10"),
        ([f"a.{n}.b.{m}" for n in range(2) for m in range(3)], "a.0-1.b.0-2"),
        (["a.0.b.0", "a.1.b.1"], "a.0.b.0, a.1.b.1"),  # not a.0-1.b.0-1, which are four
        ([f"a.{n}.b.{n}" for n in range(9)], "a.0.b.0, ..., a.8.b.8"),
        (["encoder.0.mlp", "encoder.1.mlp", "decoder.0.mlp", "head"], "encoder.0-1.mlp, decoder.0.mlp, head"),
        (["layers.0", "layers.0.mlp"], "layers.0, layers.0.mlp"),
    ],
)
def test_paths(paths: list[str], shown: str) -> None:
    assert compact(paths) == shown


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("the activation hidden_3 is returned", "the activation hidden is returned"),
        ("l_self_modules_layers_modules_3_parameters_w_1_ is written to", "layers.3.w_1 is written to"),
        ("l_x_ is a tensor subclass", "x is a tensor subclass"),
        ("l_self_w_ is read", "w is read"),
        ("used by mean (src/model_2.py:33), float32", "used by mean (src/model_2.py:33), float32"),
        ("used by mean (/a_1/b.py:33)", "used by mean (/a_1/b.py:33)"),
    ],
)
def test_reasons(reason: str, shown: str) -> None:
    assert readable(reason) == shown


@pytest.mark.parametrize(
    ("equation", "shown"),
    [
        ("to_4[b, h] = l_self_parameters_k_[h] * q_7[b, 4*h+d]", "to[b,h] = k[h] * q[b,4*h+d]"),
        (
            "y[b] = l_self_modules_gate_parameters_weight_[b] * l_self_modules_up_parameters_weight_[b]",
            "y[b] = gate.weight[b] * up.weight[b]",
        ),
        ("y_2[b] = add_3[b] * add_9[b]", "y[b] = add_1[b] * add_2[b]"),
        (
            "y[b] = stack(l_s_modules_k_modules_0_parameters_w_, l_s_modules_k_modules_1_parameters_w_)[b]",
            "y[b] = w[b]",
        ),
        (
            "y[b] = stack(l_s_parameters_k_parameters_0_, l_s_parameters_k_parameters_1_)[b]",
            "y[b] = k.0-1[b]",
        ),
        ("y[b] = stack(stack(l_a_, l_b_), stack(l_c_, l_d_))[b]", "y[b] = stack(a,b,c,d)[b]"),
        ("y[b] = silu(l_x_[b] + 1/2 * l_x_[0])", "y[b] = silu(x[b] + 1/2 * x[0])"),
    ],
)
def test_equations(equation: str, shown: str) -> None:
    assert readable_equation(equation) == shown


class Lists(nn.Module):
    """Each head has modules of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in range(3))
            for sizes in ((4, 6), (4, 6), (6, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = zip(x.chunk(3, -1), self.gate, self.up, self.down, strict=True)
        return torch.cat([down(silu(gate(q)) * up(q)) for q, gate, up, down in heads], -1)


def test_the_equation_of_a_model_has_the_names_of_its_modules() -> None:
    torch._dynamo.reset()
    (rewrite,) = mhf_compile.explain(Lists(), torch.randn(2, 5, 12)).rewrites
    assert readable_equation(rewrite.equation) == (
        "cat[b,t,4*h+o] = sum_{f} silu(sum_{d} x[b,t,4*h+d] * gate.0-2.weight[h,f,d])"
        " * (sum_{d} x[b,t,4*h+d] * up.0-2.weight[h,f,d]) * down.0-2.weight[h,o,f]"
    )
