"""The static gate: what the shipped kernels take, compiled ahead of time with no GPU in the machine.

Here are the rows in use on Hopper and some on the other architectures; all of them are in
`python -m benchmarks.gpu.static`. What they take is compared with the record where it is of this Triton.
"""

from itertools import product

import pytest
import torch
import triton

from benchmarks.gpu import record, static
from benchmarks.gpu.record import Record
from benchmarks.gpu.static import ARCHES, SHARED, Resources
from mhf_compile.kernels.flash_mhf import ahead, backward, config, forward
from mhf_compile.kernels.flash_mhf.config import Target, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call

from .battery import ACTIVATIONS, EXPRESSIONS, UNGATED

ELSEWHERE = [("forward", 2, 128), ("dq", 2, 96), ("dk_du", 2, 128), ("chunk", 2, 0), ("dq", 4, 128)]
ROWS = [("sm_90", key) for key in config.HOPPER] + list(product(("sm_80", "sm_100", "gfx942"), ELSEWHERE))


@pytest.mark.parametrize(
    ("arch", "key"), ROWS, ids=lambda x: x if isinstance(x, str) else " ".join(map(str, x))
)
def test_no_limit_is_broken_and_all_is_as_recorded(arch, key):
    tiles = config.table(arch)[key][0]
    found = static.resources(key, tiles, static.launch_of(key, tiles, arch), arch)
    assert found.broken() == [], found
    kept = record.read()
    if kept.triton == triton.__version__:
        assert kept.changes(str(found)) == [], found


def test_each_row_of_the_tables_is_recorded_and_no_other():
    names = [static.name(arch, *row) for arch in ARCHES for row in static.rows(arch)]
    assert list(record.read().lines) == names


def test_two_descriptors_have_a_name_of_their_own():
    tiles = Tiles(128, 64, 8, 3, collected=True)
    names = [static.name("sm_90", ("dq", 2, 96), tiles._replace(described=count)) for count in range(3)]
    assert [name.split("s3")[1].split() for name in names] == [["col"], ["tma", "col"], ["tma", "x2", "col"]]


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
VARIANTS += [(text, True) for text in [*EXPRESSIONS][-2:]] + [("mish(gate)", False)]


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
        ({"spilled": 8}, None),
        ({"shared": 227 * 1024 + 1}, "shared memory"),
        ({"matrix": {}}, "no matrix instruction"),
        ({"matrix": {"HMMA.16816.F32.BF16": 2}}, "fallback"),
        ({"tiles": Tiles(16, 64, 4, 3), "matrix": {"HMMA.16816.F32.BF16": 2}}, None),
        (
            {
                "key": ("dv", 2, 128),
                "tiles": Tiles(32, 64, 4, 2),
                "matrix": {"HMMA.16816.F32.BF16": 2},
            },
            "fallback",
        ),
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


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command on two rows that take so many bytes of spill: its output and status."""
    every = list(static.launches("sm_90", first=True))[:2]
    path = tmp_path / "static.txt"

    def run(*arguments, spilled=0, version="1.2"):
        monkeypatch.setattr(static.triton, "__version__", version)
        found = iter(
            resources(key=key, tiles=tiles, spilled=spilled if i else 0)
            for i, (key, tiles, _) in enumerate(every)
        )
        monkeypatch.setattr(static, "resources", lambda *_: next(found))
        with pytest.raises(SystemExit) as exit_:
            static.main(["--arch", "sm_90", "--fast", *arguments] if "all" not in arguments else ["--accept"])
        return capsys.readouterr(), exit_.value.code

    monkeypatch.setattr(static, "ARCHES", ("sm_90",))
    monkeypatch.setattr(static, "rows", lambda arch, first=False: [row[:2] for row in every])
    monkeypatch.setattr(static, "launches", lambda arch, first: iter(every))
    monkeypatch.setattr(record, "RECORD", path)
    for function in (record.read, record.write):
        defaults = (*function.__defaults__[:-1], path)
        monkeypatch.setattr(function, "__defaults__", defaults)
    return run


def test_what_changes_is_said_until_it_is_accepted(command):
    assert command("all")[1] == 0
    (out, _), status = command()
    assert status == 0 and "CHANGED" not in out and "0 of 2 rows are not as recorded\n" in out
    (out, _), status = command(spilled=16)
    assert status == 1 and out.count("CHANGED") == 1
    assert "CHANGED: 0 bytes spilled are recorded, now 16\n" in out
    assert (
        "1 of 2 rows are not as recorded; if that is meant: python -m benchmarks.gpu.static --accept" in out
    )
    (out, _), status = command("--accept", spilled=16)
    assert status == 0 and "2 rows are recorded" in out
    assert command(spilled=16)[1] == 0 and command(spilled=0)[1] == 1


def test_with_another_triton_only_the_limits_hold(command):
    command("all")
    (out, _), status = command(spilled=16, version="1.3")
    assert status == 0 and "not compared: the record is of triton 1.2" in out
    (_, err), status = command("--accept", version="1.3")
    assert status == 2 and "all of it is rewritten, or none" in err
    assert command("all", spilled=16, version="1.3")[1] == 0
    assert command(spilled=16, version="1.3")[1] == 0 and command(version="1.3")[1] == 1


def test_a_limit_is_no_matter_of_the_record(command, monkeypatch):
    monkeypatch.setitem(SHARED, "sm_90", 1000)
    assert command("all")[1] == 1
    (out, _), status = command()
    assert status == 1 and out.count("FAILS: takes 1024 bytes of shared memory") == 2
    assert "2 kernels break a limit" in out


def test_a_row_that_is_not_recorded(tmp_path):
    line = str(resources())
    assert Record("1.2", {}).changes(line) == ["is not in the record"]
    record.write(
        Record("1.2", {record.name_of(line): line, "gone": line}), [record.name_of(line)], tmp_path / "x"
    )
    assert record.read(tmp_path / "x") == Record("1.2", {record.name_of(line): line})
    assert record.taken(line) == (200, 0, 1024)


@pytest.mark.parametrize("text", ["", "triton 3\n", f"triton 3\n{record.HEADING}\nsm_90 forward 16\n"])
def test_what_is_no_record(tmp_path, text):
    (tmp_path / "x").write_text(text or "\n")
    with pytest.raises(record.Unreadable):
        record.read(tmp_path / "x")


def test_the_longest_names_are_short_enough():
    names = [static.name(arch, *row) for arch in ARCHES for row in static.rows(arch)]
    assert max(map(len, names)) < record.WIDTH and len(set(names)) == len(names)
