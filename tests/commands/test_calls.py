"""The fused calls of a model: read without running it on a GPU, they are those that run."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.functional import silu

from mhf_compile.commands.calls import OPERANDS, FusedCall, Layout, UnknownSize, fused_calls
from mhf_compile.kernels.flash_mhf import blocked
from mhf_compile.kernels.flash_mhf.config import Target
from mhf_compile.models import FlashMHF, LanguageModel, ModelConfig

CONFIG = ModelConfig(hidden=64, layers=2, attention_heads=2, ffn_heads=2, subnetworks=11, subnetwork_width=24)


class Heads(nn.Module):
    """Feed-forwards of 3 heads, laid out [B, H, T, D]; `bias` has one more operand."""

    def __init__(self, bias=False, dim=16):
        super().__init__()
        self.k, self.u, self.v = (nn.Parameter(torch.randn(3, 24, dim)) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(3, 24)) if bias else None

    def forward(self, q):
        gate, up = (torch.einsum("bhtd,hfd->bhtf", q, w) for w in (self.k, self.u))
        gate = gate if self.bias is None else gate + self.bias[:, None]
        return torch.einsum("bhtf,hfo->bhto", silu(gate) * up, self.v)


def significant(call):
    """A call without what no kernel is compiled for: how much more memory there is around an operand."""

    def bare(x):
        return None if x is None else replace(x, storage=0)

    return replace(call, operands=tuple(map(bare, call.operands)), grad=bare(call.grad))


@pytest.fixture
def seen(monkeypatch):
    """The calls that run, on the CPU."""
    calls = []

    def watch(name, first):
        implementation = getattr(blocked, name)

        def watched(*args):
            operands = tuple(None if x is None else Layout.of(x) for x in args[first : first + 7])
            others = (Layout.of(args[0]), tuple(args[-1])) if first else ()
            calls.append(FusedCall(operands, *args[first + 7 : first + 10], None, *others))
            return implementation(*args)

        monkeypatch.setattr(blocked, name, watched)

    watch("forward", 0)
    watch("backward", 1)
    return calls


@pytest.mark.parametrize("shape", [(2, 24), (1, 1)], ids=str)
def test_the_calls_that_are_read_are_those_that_run(seen, shape):
    torch._dynamo.reset()
    model, ids = LanguageModel(CONFIG, FlashMHF), torch.zeros(shape, dtype=torch.int64)
    calls, report = fused_calls(model, (ids,), {})
    assert len(report.rewrites) == 2
    seen.clear()  # the forward calls of the run that reads them
    options = {"flashmhf.inner": "aot_eager"}
    torch.compile(model, backend="flashmhf", dynamic=False, options=options)(ids).sum().backward()
    assert [call.grad is None for call in seen] == [True, True, False, False]  # two layers
    assert list(map(significant, calls)) == list(map(significant, dict.fromkeys(seen)))
    assert calls[1].needs == (True, True, True, True, True, False, False)


@cache
def flash_mhf(batch, length):
    with torch.device("meta"):
        model = FlashMHF(CONFIG)
        return fused_calls(model, (torch.empty(batch, length, 64),), {})[0]


@pytest.mark.parametrize("tokens", [1, 48, 1000])
def test_the_same_layer_on_other_tokens(tokens):
    calls = flash_mhf(1, 64)
    assert [call.of_tokens(tokens) for call in calls] == flash_mhf(1, tokens)
    assert [call.of_tokens(64) for call in calls] == calls


@pytest.mark.parametrize(("tokens", "batch"), [(8, 2), (7, 1), (1, 1), (2, 2)])
def test_sequences_are_kept_if_tokens_allow(tokens, batch):
    forward, _ = flash_mhf(2, 32)
    changed = forward.of_tokens(tokens)
    assert changed.q.shape == (batch, tokens // batch, 2, 32)
    assert changed.tokens == tokens
    assert [x for i, x in enumerate(changed.operands) if i not in (0, 4)] == [
        x for i, x in enumerate(forward.operands) if i not in (0, 4)
    ]


LAYOUTS = {
    "contiguous": lambda b, t: torch.empty(b, t, 3, 8),
    "heads first": lambda b, t: torch.empty(b, 3, t, 8).transpose(1, 2),
    "time first": lambda b, t: torch.empty(t, b, 3, 8).transpose(0, 1),
    "heads outside": lambda b, t: torch.empty(3, b, t, 8).permute(1, 2, 0, 3),
    "columns outside": lambda b, t: torch.empty(8, b, t, 3).permute(1, 2, 3, 0),
    "a part of a row": lambda b, t: torch.empty(b, t, 72)[..., 24:48].unflatten(2, (3, 8)),
    "all alike": lambda b, t: torch.empty(()).expand(b, t, 3, 8),
    "one head for all": lambda b, t: torch.empty(b, t, 1, 8).expand(b, t, 3, 8),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("after", [(2, 12), (6, 5), (2, 1), (1, 1)], ids=str)
def test_layouts_of_other_tokens(name, after):
    make = LAYOUTS[name]
    got, want = Layout.of(make(4, 6)).of_tokens(*after), Layout.of(make(*after))
    assert got.shape == want.shape
    counting = [i for i, size in enumerate(want.shape) if size > 1]  # other strides say nothing
    assert [got.strides[i] for i in counting] == [want.strides[i] for i in counting]
    assert got.storage == want.storage
    assert Layout.of(got.empty()) == got


def test_a_tensor_that_lies_so():
    x = torch.empty(100, 64, dtype=torch.bfloat16)[3:90, 5:].t()
    layout = Layout.of(x)
    assert layout == Layout((59, 87), (1, 64), torch.bfloat16, (3 * 64 + 5) % 16, 6400)
    assert layout.empty().data_ptr() % 32 == 2 * 5
    assert Layout.of(torch.empty(0, 4)).empty().shape == (0, 4)


def test_layers_that_differ_are_different_calls():
    model = nn.Sequential(Heads(), Heads(bias=True))
    calls, report = fused_calls(model, (torch.randn(2, 3, 5, 16),), {})
    assert len(report.rewrites) == 2
    assert [(call.grad is None, call.operands[5] is None) for call in calls] == [
        (True, True),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert [call.needs for call in calls[2:]] == [
        (True, True, True, True, False, True, False),
        (False, True, True, True, False, False, False),  # the input needs no gradient
    ]


def test_without_gradients_there_is_no_backward():
    model = Heads().requires_grad_(False)
    (call,), _ = fused_calls(model, (torch.randn(2, 3, 5, 16),), {})
    assert call.grad is None
    with torch.no_grad():
        assert fused_calls(Heads(), (torch.randn(2, 3, 5, 16),), {})[0] == [call]


def test_sizes_marked_dynamic_are_those_of_the_example():
    q = torch.randn(2, 3, 5, 16)
    torch._dynamo.mark_dynamic(q, 2)
    calls, _ = fused_calls(Heads(), (q,), {})
    assert {call.q.shape for call in calls} == {(2, 5, 3, 16)}


def test_a_size_that_nobody_knows():
    x = torch.empty(1, 2, device="meta").as_strided((ShapeEnv().create_unbacked_symint(), 2), (2, 1))
    with pytest.raises(UnknownSize, match="known only when it runs, u0"):
        Layout.of(x)


def test_a_cast_leaves_the_router():
    forward, backward = (call.cast(torch.bfloat16) for call in flash_mhf(1, 8))
    dtypes = {name: x.dtype for name, x in zip(OPERANDS, backward.operands, strict=True) if x}
    assert dtypes == {**dict.fromkeys("qkuv", torch.bfloat16), "r": torch.float32}
    assert backward.grad.dtype == torch.bfloat16
    assert forward.grad is None


def test_options_are_those_of_the_backend():
    (call, *_), _ = fused_calls(Heads(), (torch.randn(2, 3, 5, 16),), {}, {"flashmhf.workspace": 10})
    assert call.workspace == 10
    calls, report = fused_calls(nn.Linear(3, 3), (torch.randn(2, 3),), {})
    assert (calls, report.rewrites) == ([], ())


def test_what_is_launched():
    forward, backward = (call.cast(torch.bfloat16) for call in flash_mhf(1, 4096))
    target = Target("sm_90", 8)
    assert [launch.name for launch in forward.launches(target)] == ["forward"]
    assert [launch.name for launch in forward.of_tokens(1).launches(target)] == ["decode", "sum"]
    names = [launch.name for launch in backward.launches(target)]
    assert names[:2] == ["dq", "weights"] and set(names[2:]) <= {"sum"}  # of the last wave, in parts
    wide, _ = fused_calls(Heads(dim=300), (torch.randn(1, 3, 40, 300),), {})
    assert [{launch.name for launch in call.launches(target)} for call in wide] == [
        {"chunk_decode"}, {"gradients"}
    ]  # fmt: skip
