"""The command `precompile`: what it compiles, that it stays compiled, and what it says."""

import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from triton import knobs

from mhf_compile.commands import precompile as precompile_command
from mhf_compile.commands.calls import FusedCall, Layout
from mhf_compile.commands.precompile import Tally, compile_all, counts
from mhf_compile.kernels.flash_mhf import ahead, config
from tests.commands.running import run_command

SOURCE = """
import torch
from torch import nn
from torch.nn.functional import silu


class Heads(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.k, self.u, self.v = (nn.Parameter(torch.randn(3, 24, 16, dtype=dtype)) for _ in range(3))

    def forward(self, q):
        gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (self.k, self.u))
        return torch.einsum("bthf,hfo->btho", silu(gate) * up, self.v)


def half():
    return Heads(torch.bfloat16), (torch.randn(1, 160, 3, 16, dtype=torch.bfloat16),)


def double():
    return Heads(torch.float64), (torch.randn(1, 160, 3, 16, dtype=torch.float64),)


def dense():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(512, 24), nn.Linear(512, 24), nn.Linear(24, 512)

        def forward(self, x):
            return self.down(silu(self.gate(x)) * self.up(x))

    return Dense(), (torch.randn(300, 512),)


def alone():
    return nn.Linear(3, 3)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "small_program.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "small_program", raising=False)
    torch._dynamo.reset()
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs the command: what it printed, what it complained of, its status."""

    return partial(run_command, capsys, "precompile")


@pytest.fixture
def launched(monkeypatch):
    """What would be compiled, in the place of the compiler, which has all in its cache."""

    def compile_or_find(launch, arch):
        seen.append((arch, launch))
        return ahead.Compiled(type("Kernel", (), {"metadata": type("M", (), {"shared": 1024})}), True, 0.0)

    seen = []
    monkeypatch.setattr(ahead, "compile_or_find", compile_or_find)
    return seen


def argument(launch, name):
    """An argument of a kernel."""
    return dict(zip(launch.kernel.arg_names, launch.args, strict=False))[name]


def in_a_process(folder, *arguments):
    """The command, in a process of its own, with a cache of its own."""
    command = [sys.executable, "-m", "mhf_compile", "precompile", *arguments]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_process_finds_all_in_the_cache(folder):
    arguments = "small_program.py:half", "--arch", "sm_80", "--arch", "gfx942"
    first, again = (in_a_process(folder, *arguments) for _ in range(2))
    assert first[0].startswith("small_program.py:half: 1 of 1 feed-forwards rewritten")
    kernels = [line.split()[:3] for line in first[2:-1]]
    assert kernels == [
        ["forward", "sm_80", "160"],
        ["decode", "sm_80", "1"],
        ["weights", "sm_80", "160"],
        ["forward", "gfx942", "160"],
        ["decode", "gfx942", "1"],
        ["weights", "gfx942", "160"],
    ]
    assert all(re.search(r" \d+x\d+ w\d s\d +\d+\.\dK  \d+\.\d s$", line) for line in first[2:-1])
    assert first[-1] == f"6 kernels compiled, 0 were in the cache; it is {folder / 'cache'}"
    assert [line.split()[:3] for line in again[2:-1]] == kernels
    assert all(line.endswith("K  already in the cache") for line in again[2:-1])
    assert again[-1] == f"0 kernels compiled, 6 were in the cache; it is {folder / 'cache'}"


def test_all_of_a_configuration(run, launched):
    out, err, status = run("--arch", "sm_90", "--config", "370M")
    assert (err, status) == ("", 0)
    names = {launch.name for _, launch in launched}
    assert names == {"forward", "decode", "sum", "dq", "dk_du", "dv"}
    assert {launch.args[0].dtype for _, launch in launched if launch.name == "forward"} == {torch.bfloat16}
    even = {
        (launch.name, launch.options.get("EVEN_N", True)) for _, launch in launched if launch.name != "sum"
    }
    assert even == {(name, is_even) for name in names - {"sum", "decode"} for is_even in (True, False)} | {
        ("decode", False)
    }
    assert (
        out.splitlines()[-1]
        == f"0 kernels compiled, {len(launched)} were in the cache; it is {knobs.cache.dir}"
    )


def test_chunks_of_heads_that_are_too_wide(run, launched):
    arguments = "small_program.py:dense", "--arch", "sm_90", "--dense", "always", "--dtype", "float16"
    _, err, status = run(*arguments, "--workspace", "1", "--tokens", "3000")
    assert (err, status) == ("", 0)
    assert {launch.name for _, launch in launched} == {"chunk", "chunk_decode", "gradients"}
    tokens = {argument(launch, "chunk") for _, launch in launched if launch.name == "gradients"}
    assert {300, 256, 3000 % 256} <= tokens  # all at once, and where that takes more than sums over chunks
    assert {launch.args[1].dtype for _, launch in launched} == {torch.float16}


def test_nothing_rewritten_is_status_1_with_the_reasons(run, launched):
    out, err, status = run("small_program.py:dense", "--arch", "sm_90", "--config", "128M")
    assert status == 1
    assert "not rewritten: " in out
    assert 'set "flashmhf.dense" to "always"' in " ".join(out.split())
    assert err == "python -m mhf_compile precompile: small_program.py:dense has no fused call\n"
    assert launched == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "sm_75", "--config", "128M"], "arch: found 'sm_75', want sm_80 or later, or a gfx9"),
        (["--arch", "sm_90", "--arch", "x", "--config", "128M"], "arch: found 'x', want sm_80 or later"),
        (["--config", "128M"], "the following arguments are required: --arch"),
        (["--arch", "sm_90"], "a factory or --config is needed"),
        (["--arch", "sm_90", "--config", "7B"], "invalid choice: '7B'"),
        (["--arch", "sm_90", "small_program.py:none"], "small_program.py has no none"),
        (["--arch", "sm_90", "small_program.py:alone"], "it is to return (model, inputs)"),
        (["--arch", "sm_90", "small_program.py:double"], "small_program.py:double computes in float64"),
        (["--arch", "sm_90", "--config", "128M", "--tokens", "0"], "must be a whole number of at least 1"),
    ],
)
def test_wrong_arguments(run, launched, arguments, said):
    _, err, status = run(*arguments)
    assert status == 2
    assert said in err
    assert launched == []


def test_a_cast_makes_another_dtype_fit(run, launched):
    _, err, status = run("--arch", "sm_90", "small_program.py:double", "--dtype", "float32")
    assert (err, status) == ("", 0)
    assert launched


def test_errors_of_the_program_are_let_through(run, folder):
    source = "def fails():\n    raise ValueError('its own fault')\n"
    (folder / "small_program.py").write_text(SOURCE + source)
    with pytest.raises(ValueError, match="its own fault"):
        run("--arch", "sm_90", "small_program.py:fails")


def test_the_interpreter_compiles_nothing(run, monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    _, err, status = run("--arch", "sm_90", "--config", "128M")
    assert status == 2
    assert "TRITON_INTERPRET is set" in err


def test_a_cache_that_cannot_be_written(run, monkeypatch, folder):
    (folder / "file").touch()
    monkeypatch.setattr(knobs.cache, "dir", str(folder / "file" / "below"))
    _, err, status = run("--arch", "sm_87", "--config", "128M")
    assert status == 2
    assert re.search(r"error: \S+/file/below\S*: Not a directory\n$", err)


def test_what_does_not_compile_is_said_and_the_rest_goes_on(run, launched, monkeypatch):
    find = ahead.compile_or_find

    def some(launch, arch):
        if launch.name == "decode":
            raise RuntimeError("PassManager::run failed\nmore of it")
        return find(launch, arch)

    monkeypatch.setattr(ahead, "compile_or_find", some)
    out, err, status = run("small_program.py:half", "--arch", "sm_90")
    assert status == 1
    assert re.search(r"^decode .* fails: RuntimeError: PassManager::run failed$", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith("0 kernels compiled, 2 were in the cache")
    assert err == "python -m mhf_compile precompile: 1 kernels failed\n"


def call(tokens, grad=False):
    q = Layout.of(torch.empty(1, tokens, 2, 64, device="meta"))
    weight = Layout.of(torch.empty(2, 3, 64, 64, device="meta"))
    operands = (q, weight, weight, weight, None, None, None)
    return FusedCall(operands, "silu", 1.0, 1.0, None, q if grad else None, (True,) * 4 + (False,) * 3)


@pytest.mark.parametrize(
    ("number", "found"),
    [
        (4096, [4096, 4080, 4095]),
        (4000, [4000, 4096, 4080, 4095]),
        (100, [100, 128, 112, 127]),
        (16, [16, 15, 64, 48, 63]),
        (40, [40, 64, 48, 63]),
        (1, [1, 16, 15, 64, 48, 63]),
    ],
)
def test_a_number_of_tokens_stands_for_its_kind(number, found):
    assert counts(call(5, grad=True), [number], 128, config.FEW) == found
    assert counts(call(5), [number], 128, config.FEW) == list(dict.fromkeys([1, *found]))
    assert all((n <= config.FEW) == (number <= config.FEW) for n in found)


def test_without_numbers_one_token_is_decoded():
    assert counts(call(5), [], 128, config.FEW) == [1]
    assert counts(call(5, grad=True), [], 128, config.FEW) == []


@pytest.mark.parametrize("number", [16, 1000, 4096])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_these_reach_every_way_to_fill_a_block(arch, number):
    target = ahead.Target(arch, 8)
    found = {
        (launch.name, launch.options["EVEN_N"], argument(launch, "tokens") % 16 == 0)
        for _, launch in precompile_command.launches_of([call(7)], [number], target)
        if launch.name in ("forward", "decode")
    }
    name = "decode" if number <= config.FEW else "forward"
    assert {x[1:] for x in found if x[0] == name} >= {(True, True), (False, False)}
    even = {launch_even for kernel, launch_even, by_16 in found if kernel == name and by_16}
    block = config.table(arch)[name, 4, 64][0].tokens
    assert even == ({True} if block == 16 else {True, False})


def test_one_line_a_kernel(capsys, monkeypatch):
    found = iter([False, None, True])
    kernel = type("Kernel", (), {"metadata": type("M", (), {"shared": 2048})})
    monkeypatch.setattr(ahead, "compile_or_find", lambda *_: ahead.Compiled(kernel, next(found), 1.25))
    target, tally = ahead.Target("sm_90", 8), Tally()
    (launch,) = call(4096).launches(target)
    compile_all(iter([(10, launch)] * 3), target, tally)
    assert tally == Tally(compiled=1, cached=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines] == [["1.2", "s"], ["the", "cache"]]
    assert all("    2.0K  " in line for line in lines)


LOOKS_UP = """
import torch
from triton import knobs
import small_program
heard = []
knobs.compilation.listener = lambda *, src, cache_hit, **_: heard.append((src.name, cache_hit))
model, (q,) = small_program.half()
model, q = model.cuda(), q.cuda()
compiled = torch.compile(model, backend="flashmhf", options={"flashmhf.inner": "eager"})
compiled(q).sum().backward()
with torch.no_grad():
    compiled(q[:, :1])
torch.cuda.synchronize()
assert heard and all(hit for _, hit in heard), heard
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_has_nothing_to_compile(folder):
    from mhf_compile.kernels.flash_mhf.launch import target_of

    in_a_process(folder, "small_program.py:half", "--arch", target_of(torch.device("cuda", 0)).arch)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", LOOKS_UP]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
