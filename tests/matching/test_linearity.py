"""What carries an activation: sums and products of several, operands that have one, where linearity ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, relu, silu

from mhf_compile.matching.linearity import Linearity
from mhf_compile.matching.reasons import NoMatch, Progress, Stage
from mhf_compile.reading.activations import Activations
from mhf_compile.tape.recorder import record_function
from tests.comparison import compare
from tests.matching.programs import (
    D,
    F,
    H,
    Program,
    check,
    check_all,
    gated,
    one_head,
    scores_of,
    tensors,
)


def test_products_of_two_feed_forwards() -> None:
    """Of each, the other is no operand: it has an axis of its own."""

    def program(q, k1, u1, v1):
        return gated(q, k1, u1, v1) * gated(q, u1, k1, v1)

    check_all(program, tensors("q k1 u1 v1"), 2)


def test_halves_of_a_result_that_are_multiplied_are_of_one() -> None:
    """Heads that are put side by side stay together."""

    def program(q, k1, u1, v1):
        heads = [one_head(q[:, :, h], k1[h], u1[h], v1[h]) for h in range(H)]
        first, *others = torch.stack(heads, 2).unbind(2)
        return first * others[0] + others[1]

    check(program, tensors("q k1 u1 v1"))


@pytest.mark.parametrize("function", [silu, relu])
def test_weights_that_are_activations_too(function: Callable) -> None:
    """The router's relu is no feed-forward of its own; the report has it with what it is."""

    def program(q, k, u, v, r):
        gate, up = scores_of(q, k, u)
        return torch.einsum("bthe,bthef,hefo->btho", relu(r), function(gate) * up, v)

    found = compare(program, tensors("q k u v r"), options={"flashmhf.inner": "eager"})
    (report,) = found.reports
    assert (len(report.rewrites), found.calls) == (1, 1), str(report)
    (other,) = report.others
    assert not report.misses and "an operand of another feed-forward" in other.reason
    found.check_error()


# -- convolutions --------------------------------------------------------------------------------------------


def convolved(width: int) -> Program:
    """Heads as groups of convolutions over the tokens."""

    def program(x: Tensor, k1: Tensor, u1: Tensor, v1: Tensor) -> Tensor:
        rows, columns = x.mT, v1.permute(0, 2, 1).reshape(H * D, F, 1)
        gate, up = (
            conv1d(rows, w.reshape(H * F, D, 1).expand(-1, -1, width), groups=H, padding="same")
            for w in (k1, u1)
        )
        return conv1d(silu(gate) * up, columns, groups=H).mT

    return program


def test_a_convolution_of_one_position_is_a_product() -> None:
    rewrite = check(convolved(1), tensors("x k1 u1 v1"))
    assert (rewrite.heads, rewrite.width) == (H, F)


def test_a_convolution_of_several_positions_is_no_feed_forward() -> None:
    found = compare(convolved(3), tensors("x k1 u1 v1"), options={"flashmhf.inner": "eager"})
    assert (found.rewrites, found.calls) == (0, 0)
    ((other,),) = (report.others for report in found.reports)
    assert "convolution" in other.reason
    assert other.source.startswith("tests/matching/test_linearity.py:")


def test_the_reason_that_is_nearest_to_a_match_is_kept() -> None:
    tape, (x, _), _ = record_function(lambda x, y: silu(x) * y, (3,), (3,))
    linearity = Linearity(tape, Activations(tape).anchors)
    (anchor,) = linearity.anchors
    near, far = (NoMatch(str(stage), x, Progress(stage)) for stage in (Stage.MATCH, Stage.ROLES))
    for reasons in ([far, near], [near, far]):
        linearity.stopped.clear()
        for reason in reasons:
            linearity._stop([anchor], reason)
        assert linearity.stopped[anchor] is near
