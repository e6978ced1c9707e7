"""What the Triton implementation allocates around its kernels is what the formulas say."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mhf_compile.kernels.flash_mhf import backward, config, forward, memory
from mhf_compile.kernels.flash_mhf.config import Target
from mhf_compile.kernels.flash_mhf.launch import Call, Launch

from .battery import Case


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.storages = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_iter(result):
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is None or storage._cdata in given | self.storages:
                continue
            self.storages.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return result

    def free(self, storage, size):
        self.storages.discard(storage)
        self.now -= size


# Sizes, and the workspace.
CASES = {
    "on the chip": (Case(length=70), None),
    "in parts": (Case(batch=1, length=9, heads=1, kv_heads=1, width=200, subnetworks=9), None),
    "tails in parts": (Case(batch=1, length=4000, heads=2, kv_heads=1, biases=True), None),
    "a tail of dK and dU, and of dV": (
        Case(batch=1, length=6000, heads=1, kv_heads=1, head_dim=96, width=90, biases=True),
        None,
    ),
    "one chunk": (Case(length=70, head_dim=140), 10**9),
    "several chunks": (Case(batch=1, length=600, subnetworks=2, out_dim=200), 0),
    "several chunks, wide heads": (Case(batch=1, length=300, head_dim=300, subnetworks=1, router=False), 0),
    "heads that share": (Case(length=70, heads=4, kv_heads=2, head_dim=300), 0),
    "ungated": (Case(batch=1, length=300, head_dim=300, gated=False), 0),
}


@pytest.mark.parametrize(("case", "workspace"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("needs", ["all", "q", "v"])
def test_the_formula_is_the_peak(case, workspace, needs, monkeypatch):
    monkeypatch.setattr(Launch, "run", lambda self: None)
    target = Target("sm_90", 8)
    operands = case.operands(torch.float32)
    grad = torch.ones(*operands[0].shape[:3], case.out_dim)
    wanted = [x is not None and needs in ("all", name) for name, x in zip("qkuvrgb", operands, strict=True)]
    call = Call(*operands, *case.constants, target)
    for run, expected in (
        (
            lambda: forward.forward(*operands, *case.constants, workspace, target=target),
            memory.forward_bytes(call, workspace),
        ),
        (
            lambda: backward.backward(grad, *operands, *case.constants, wanted, workspace, target=target),
            memory.backward_bytes(call, wanted, workspace),
        ),
    ):
        with Peak() as peak:
            result = run()
        del result
        assert peak.most == expected


def test_cases_have_what_they_are_named_for():
    def tails(name):
        case, _ = CASES[name]
        call = Call(*case.operands(torch.float32), *case.constants, Target("sm_90", 8))
        names = config.weight_kernels(call.sizes, "sm_90")
        return {kernel: call.tail(kernel) is not None for kernel in names}

    assert tails("tails in parts") == {"weights": True}
    assert tails("a tail of dK and dU, and of dV") == {"dk_du": True, "dv": True}
    assert tails("on the chip") == {"weights": False}


def test_the_peak_counts_what_lives_at_once():
    with Peak() as peak:
        a = torch.zeros(100)
        b = a[:50].view(5, 10)
        del a
        c = torch.zeros(200)
        assert peak.now == 1200  # the view keeps all that it is of
        del b, c
        d = torch.zeros(100)
    assert (peak.most, peak.now, d.numel()) == (1200, 400, 100)
