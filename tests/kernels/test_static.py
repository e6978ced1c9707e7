"""The static gate: what the shipped kernels take, compiled ahead of time with no GPU in the machine.

Here are the rows in use on Hopper and some on the other architectures; all of them are in
`python -m benchmarks.gpu.static`.
"""

from itertools import product

import pytest
import torch

from benchmarks.gpu import static
from benchmarks.gpu.static import ARCHES, SHARED, Resources
from mhf_compile.kernels.flash_mhf import ahead, backward, config, forward
from mhf_compile.kernels.flash_mhf.config import Target, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call

from .battery import ACTIVATIONS, UNGATED

ELSEWHERE = [("forward", 2, 128), ("dq", 2, 96), ("dk_du", 2, 128), ("chunk_backward", 2, 0), ("dq", 4, 128)]
ROWS = [("sm_90", key) for key in config.HOPPER] + list(product(("sm_80", "sm_100", "gfx942"), ELSEWHERE))


@pytest.mark.parametrize(
    ("arch", "key"), ROWS, ids=lambda x: x if isinstance(x, str) else " ".join(map(str, x))
)
def test_no_limit_is_broken(arch, key):
    tiles = config.table(arch)[key][0]
    found = static.resources(key, tiles, static.launch_of(key, tiles, arch), arch)
    assert found.broken() == [], found


@pytest.mark.parametrize("kernel", ["forward", "dq", "dk_du", "dv"])
def test_no_limit_is_broken_with_a_router_in_bfloat16(kernel):
    key = kernel, 2, 128
    tiles = config.HOPPER[key][0]
    found = static.resources(key, tiles, static.launch_of(key, tiles, "sm_90", torch.bfloat16), "sm_90")
    assert found.broken() == [], found


ONES = {  # Triton makes a constant of an argument that is 1
    "one number": (1, 1, 1, 8, 256, 128, 1),
    "one row": (2, 1, 1, 1, 1, 300, 16),
    "one token": (1, 1, 2, 2, 16, 128, 128),
    "one batch": (1, 17, 2, 1, 1, 16, 16),
    "all": (1, 1, 1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("shape", ONES.values(), ids=ONES)
def test_sizes_of_one_compile(arch, shape):
    batch, length, heads, subnetworks, width, head_dim, out_dim = shape

    def meta(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    operands = (
        meta(batch, length, heads, head_dim),
        *[meta(heads, subnetworks, width, head_dim)] * 2,
        meta(heads, subnetworks, width, out_dim),
        meta(batch, length, heads, subnetworks, dtype=torch.float32),
    )
    target = Target(arch, 132)
    for workspace in (None, 10**9):
        with ahead.recorded() as launches:
            out = forward.forward(*operands, None, None, "silu", 1.0, 1.0, workspace, target=target)
            needs = [True] * 5 + [False] * 2
            backward.backward(out, *operands, None, None, "silu", 1.0, 1.0, needs, workspace, target=target)
        assert launches
        for launch in launches:
            ahead.compile_ahead(launch, arch)


def call(arch, activation="silu", *, gated=True, head_dim=80, dtype=torch.bfloat16):
    """Nothing is even: 1001 tokens of 2 sequences, rows of 341, biases."""

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k, bias = meta(7, 143, 4, head_dim), meta(2, 3, 341, head_dim), meta(2, 3, 341)
    u, up_bias = (k, bias) if gated else (None, None)
    r = meta(7, 143, 4, 3, dtype=torch.float32)
    return Call(q, k, u, k, r, bias, up_bias, activation, 0.7, 1.3, Target(arch, 132))


def compiled(call):
    """Every launch of forward and backward, by name."""
    grads = (call.q, call.k, call.u, call.v, call.r, call.gate_bias, call.up_bias)
    launches = [*forward.launches(call, call.q), *backward.launches(call, call.q, grads)]
    return [(launch.name, ahead.compile_ahead(launch, call.target.arch)) for launch in launches]


# Every activation with and without a gate, on one architecture or another.
VARIANTS = [(name, True) for name in ACTIVATIONS] + [(name, False) for name in UNGATED]


@pytest.mark.parametrize(
    ("arch", "activation", "gated"), [(ARCHES[i % 4], *v) for i, v in enumerate(VARIANTS)], ids=str
)
def test_all_that_is_optional_compiles_and_fits(arch, activation, gated):
    for name, kernel in compiled(call(arch, activation, gated=gated)):
        assert kernel.metadata.shared <= SHARED[arch], name
        if not gated and name == "forward":
            products = kernel.asm["ttir"].count("tt.dot ")
            assert products == 2 * len(config.columns(80))  # gate, and with v


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_dtypes_fit(dtype):
    for name, kernel in compiled(call("sm_80", dtype=dtype)):
        assert kernel.metadata.shared <= SHARED["sm_80"], name


def test_a_compilation_is_for_its_target_only():
    seen = [
        kernel.hash for arch in ("sm_80", "sm_90") for name, kernel in compiled(call(arch)) if name == "dq"
    ]
    assert len(set(seen)) == 2


def resources(**changes):
    good = {
        "arch": "sm_90",
        "key": ("forward", 2, 64),
        "tiles": Tiles(128, 64, 8, 3),
        "registers": 200,
        "spilled": 0,
        "shared": 1024,
        "matrix": {"HGMMA.64x64x16.F32.BF16": 4},
        "useful": 1.0,
        "special": 1.0,
        "warnings": (),
    }
    return Resources(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, None),
        ({"spilled": 8}, "spills 8 bytes"),
        ({"shared": 227 * 1024 + 1}, "shared memory"),
        ({"matrix": {}}, "no matrix instruction"),
        ({"matrix": {"HMMA.16816.F32.BF16": 2}}, "fallback"),
        ({"arch": "sm_80", "matrix": {"HMMA.16816.F32.BF16": 2}}, None),
        ({"useful": 0.75}, "0.750 of its multiplications"),
        ({"special": 2.0}, "2.00 special functions"),
        ({"arch": "sm_100", "matrix": {"UTCHMMA": 2}, "special": 2.0}, None),
        ({"key": ("forward", 4, 64), "matrix": {}, "special": 2.0}, None),
        ({"warnings": ("(C7510) ...",)}, "C7510"),
    ],
)
def test_each_limit_is_held(changes, what):
    broken = resources(**changes).broken()
    assert [what in line for line in broken] == ([] if what is None else [True])


def test_multiplications_are_counted_in_loops_only():
    text = """
      %0 = tt.dot %a, %b, %c : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32>
      %1 = scf.for %i = %x to %y step %z iter_args(%t = %c) -> (tensor<64x32xf32>) : i32 {
        %2 = tt.dot %a, %b, %t : tensor<64x16xbf16> * tensor<16x32xbf16> -> tensor<64x32xf32>
        scf.yield %2 : tensor<64x32xf32>
      }
      %3 = tt.dot %a, %b, %c : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32>
    """
    assert static.issued(text) == 64 * 16 * 32


def test_the_command_prints_rows_and_says_what_fails(monkeypatch, capsys):
    row = next(static.launches("sm_90", first=True))
    monkeypatch.setattr(static, "launches", lambda arch, first: iter([row]))
    for spilled, status, last in ((0, 0, "every limit holds"), (16, 1, "1 kernels break a limit")):
        monkeypatch.setattr(static, "resources", lambda *_, spilled=spilled: resources(spilled=spilled))
        with pytest.raises(SystemExit) as exit_:
            static.main(["--arch", "sm_90", "--fast"])
        out = capsys.readouterr().out
        assert exit_.value.code == status
        assert "128x64x64 w8 s3" in out and out.strip().endswith(last)
        assert ("FAILS: spills 16 bytes" in out) == (spilled > 0)
