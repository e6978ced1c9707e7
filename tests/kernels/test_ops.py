"""The operators as torch sees them: autograd, fakes, compilers, transforms, checks."""

import subprocess
import sys

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from mhf_compile.kernels.ops import flash_mhf

from .battery import ACTIVATIONS, CASES, EMPTY, UNGATED, Case, formula

TINY = Case(
    batch=1, length=2, heads=2, kv_heads=1, head_dim=2, subnetworks=2, width=3, out_dim=2,
    biases=True, gate_scale=0.7, scale=1.3,
)  # fmt: skip


def leaves(case, dtype=torch.float64):
    return [None if x is None else x.to(dtype).requires_grad_() for x in case.operands(dtype)]


def given(xs):
    return [x for x in xs if x is not None]


def call(case):
    def f(q, k, u, v, r=None, gate_bias=None, up_bias=None):
        return flash_mhf(
            q, k, u, v, r, gate_bias=gate_bias, up_bias=up_bias,
            activation=case.activation, gate_scale=case.gate_scale, scale=case.scale,
        )  # fmt: skip

    return f


@pytest.mark.parametrize(
    ("activation", "gated"), [*((name, True) for name in ACTIVATIONS), *((name, False) for name in UNGATED)]
)
def test_first_and_second_derivatives(activation, gated):
    case = Case(**{**vars(TINY), "activation": activation, "gated": gated})
    assert torch.autograd.gradcheck(call(case), leaves(case), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call(case), leaves(case))


def test_second_derivatives_of_some_operands():
    q, k, u, v, *_ = leaves(TINY)
    assert torch.autograd.gradgradcheck(lambda q, v: call(TINY)(q, k.detach(), u.detach(), v), (q, v))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("plain", torch.float32),
        ("biases", torch.bfloat16),
        ("reversed axes", torch.float32),
        ("ungated relu", torch.bfloat16),
        ("ungated gelu", torch.float64),
    ],
    ids=str,
)
def test_opcheck(case, dtype):
    case = CASES[case]
    xs = leaves(case, dtype)
    torch.library.opcheck(torch.ops.mhf.flash_mhf.default, (*xs, *case.constants))
    grad = torch.ones(*xs[0].shape[:3], case.out_dim, dtype=dtype)
    needs = [x is not None and i != 2 for i, x in enumerate(xs)]
    torch.library.opcheck(torch.ops.mhf.flash_mhf_backward.default, (grad, *xs, *case.constants, needs))


def test_a_workspace_reaches_forward_and_backward():
    seen = []

    def compiler(graph, inputs):
        seen.extend(node.args[-1] for node in graph.graph.nodes if "mhf" in str(node.target))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    xs = leaves(CASES["plain"])
    compiled = torch.compile(lambda *xs: flash_mhf(*xs[:5], workspace=12345), backend=backend, fullgraph=True)
    compiled(*xs).sum().backward()
    assert seen == [12345, 12345]
    flash_mhf(*leaves(CASES["plain"])[:5], workspace=0).sum().backward()


@pytest.mark.parametrize("case", ["biases", "ungated gelu"])
def test_saves_its_operands_and_nothing_else(case):
    saved = []
    xs = leaves(CASES[case])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()), lambda x: x):
        call(CASES[case])(*xs)
    assert sorted(saved) == sorted(x.data_ptr() for x in given(xs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *xs: call(TINY)(*xs).sin(), fullgraph=True, dynamic=dynamic)
    for length in (5, 9):
        case = Case(**{**vars(CASES["biases"]), "length": length, "gate_scale": 0.7, "scale": 1.3})
        xs, ys = leaves(case), leaves(case)
        out, want = compiled(*xs), formula(*ys, *case.constants).sin()
        # Both in float64; sums of fewer than 200 terms of order one.
        torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
        for a, b in zip(torch.autograd.grad(out.sum(), xs), torch.autograd.grad(want.sum(), ys), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)


def test_a_dynamic_length_never_recompiles():
    torch._dynamo.reset()
    compiled = torch.compile(call(CASES["plain"]), backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (5, 9, 12):
            compiled(*leaves(Case(length=length))).sum().backward()


@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY)
def test_empty(case):
    xs = leaves(case)
    call(case)(*xs).sum().backward()
    assert not any(x.grad.any() for x in xs if x is not None)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd(mode):
    xs = leaves(CASES["plain"])
    with mode():
        assert torch.equal(
            call(CASES["plain"])(*xs), call(CASES["plain"])(*(leaves(CASES["plain"]))).detach()
        )


def test_autocast_changes_no_dtype():
    xs = leaves(CASES["plain"], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(CASES["plain"])(*xs).dtype == torch.float32


def test_forward_mode_over_reverse():
    q, k, u, v, *_ = leaves(TINY)
    direction = torch.linspace(-1, 1, q.numel(), dtype=q.dtype).view_as(q)

    def gradients(q):
        loss = call(TINY)(q, k, u, v.detach()).square().sum()
        return torch.autograd.grad(loss, (q, k, u), create_graph=True)

    with forward_ad.dual_level():
        dual = gradients(forward_ad.make_dual(q, direction))
        found = [forward_ad.unpack_dual(x).tangent for x in dual]
    ahead, behind = (gradients((q + step * direction).detach().requires_grad_()) for step in (1e-5, -1e-5))
    for x, a, b in zip(found, ahead, behind, strict=True):
        torch.testing.assert_close(x, (a - b) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd, torch.func.jacrev])
def test_derivatives_of_torch_func_raise(transform):
    q, *rest = (x.detach() for x in leaves(TINY))
    with pytest.raises(NotImplementedError, match=r"torch\.autograd"):
        transform(lambda q: call(TINY)(q, *rest).sum())(q)


@pytest.mark.parametrize("gated", [True, False])
def test_vmap_is_a_loop(gated):
    f = call(TINY)
    q, *rest = leaves(Case(**{**vars(TINY), "gated": gated}))
    stacked = torch.stack((q, 2 * q), 1)
    out = torch.func.vmap(lambda q: f(q, *rest), in_dims=1)(stacked)
    want = torch.stack([f(x, *rest) for x in (q, 2 * q)])
    assert torch.equal(out, want)
    xs = given((q, *rest))
    for a, b in zip(torch.autograd.grad(out.sum(), xs), torch.autograd.grad(want.sum(), xs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("gated", [True, False])
def test_gradients_in_batches(gated, size):
    """Autograd's own vmap."""
    case = Case(**{**vars(TINY), "gated": gated})
    xs = leaves(case)
    results = []
    for function in (call(case), lambda *xs: formula(*xs, *case.constants)):
        out = function(*xs)
        grads = torch.randn(size, *out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
        results.append(torch.autograd.grad(out, given(xs), grads, is_grads_batched=True))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_vectorized_jacobian():
    q, *rest = leaves(TINY)
    found, wanted = (
        torch.autograd.functional.jacobian(lambda q, f=f: f(q, *rest).sum((1, 2)), q, vectorize=True)
        for f in (call(TINY), lambda *xs: formula(*xs, *TINY.constants))
    )
    torch.testing.assert_close(found, wanted)


def test_vmap_of_no_samples():
    q, *rest = leaves(TINY)
    out = torch.func.vmap(lambda q: call(TINY)(q, *rest))(q.detach().new_empty(0, *q.shape))
    assert out.shape == (0, *q.shape[:3], TINY.out_dim)


def test_vmap_of_gradients():
    xs = leaves(TINY)
    out = call(TINY)(*xs)
    grads = torch.randn(3, *out.shape, dtype=out.dtype)
    batched = torch.func.vmap(lambda grad: torch.autograd.grad(out, xs, grad, retain_graph=True))(grads)
    for i in range(3):
        for a, b in zip(batched, torch.autograd.grad(out, xs, grads[i], retain_graph=True), strict=True):
            assert torch.equal(a[i], b)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.randn(2, 3, 4)}, ValueError, r"q: found shape \[2, 3, 4\], want \[B, T, H, D\]"),
        (
            {"k": torch.randn(3, 3, 20, 16)},
            ValueError,
            "k: found 3 heads, want a divisor of the 2 heads of q",
        ),
        (
            {"k": torch.randn(2, 3, 20, 8)},
            ValueError,
            r"k: found shape \[2, 3, 20, 8\], want \[2, 3, 20, 16\]",
        ),
        (
            {"u": torch.randn(2, 3, 21, 16)},
            ValueError,
            r"u: found shape \[2, 3, 21, 16\], want \[2, 3, 20, 16\]",
        ),
        (
            {"v": torch.randn(2, 2, 20, 16)},
            ValueError,
            r"v: found shape \[2, 2, 20, 16\], want \[2, 3, 20, 16\]",
        ),
        ({"r": torch.randn(2, 19, 2)}, ValueError, r"r: found shape \[2, 19, 2\], want \[2, 19, 2, 3\]"),
        ({"gate_bias": torch.randn(20)}, ValueError, r"gate_bias: found shape \[20\], want \[2, 3, 20\]"),
        ({"k": torch.randn(2, 3, 0, 16)}, ValueError, "want only B and T"),
        ({"u": torch.randn(2, 3, 20, 16, device="meta")}, ValueError, "u: found device meta, want cpu"),
        ({"u": torch.randn(2, 3, 20, 16).half()}, TypeError, r"u: found torch\.float16, want torch\.float32"),
        (
            {"r": torch.ones(2, 19, 2, 3, dtype=torch.int64)},
            TypeError,
            r"r: found torch\.int64, want a floating",
        ),
        (
            {"q": torch.ones(2, 19, 2, 16, dtype=torch.int32)},
            TypeError,
            r"q: found torch\.int32 on cpu, want one of",
        ),
        (
            {"u": None, "up_bias": torch.randn(2, 3, 20)},
            ValueError,
            "up_bias: found a tensor, want None where u is None",
        ),
        ({"activation": "swish"}, ValueError, "activation: found 'swish', want one of silu, gelu"),
    ],
)
def test_checks(change, error, message):
    q, k, u, v, r, *_ = CASES["plain"].operands(torch.float32)
    with pytest.raises(error, match=message):
        flash_mhf(**{"q": q, "k": k, "u": u, "v": v, "r": r, **change})


def test_the_operator_itself_checks():
    q, k, u, v, r, *_ = CASES["plain"].operands(torch.float32)
    with pytest.raises(ValueError, match="r: found shape"):
        torch.ops.mhf.flash_mhf(q, k, u, v, r[:1], None, None, "silu", 1.0, 1.0)


def test_import_leaves_triton_alone():
    code = "import sys, mhf_compile.kernels.ops; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
