import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.compiling import no_compiling
from benchmarks.cpu import contest
from benchmarks.cpu.analysis import line_through
from benchmarks.results import Spread, at_least, at_most, ratio
from benchmarks.settings import Settings
from mhf_compile.models import ModelConfig

ROOT = Path(__file__).parent.parent.parent

TINY = ModelConfig(
    hidden=16, layers=2, attention_heads=2, ffn_heads=2, subnetworks=2, subnetwork_width=8, vocabulary=8
)

# Made quick: every size is a tiny one, AOTAutograd alone stands in for Inductor and its C++ compiler, and
# nothing starts a process, which would import torch again; what goes to one and comes back is
# pickled all the same.
SCRIPT = f"""
import pickle, sys
import torch
from mhf_compile.models import CONFIGS, ModelConfig
CONFIGS.update(dict.fromkeys(CONFIGS, {TINY!r}))
from benchmarks.cpu import analysis, compilation, contest
from benchmarks.__main__ import main

def call(function, *arguments):
    function, arguments = pickle.loads(pickle.dumps((function, arguments)))
    return pickle.loads(pickle.dumps(function(*arguments)))

def compile(model, options=None, compile=torch.compile, **given):
    if options:
        options = {{**options, "flashmhf.inner": "aot_eager"}}
    return compile(model, **{{"backend": "aot_eager", **given}}, options=options)

torch.compile = compile
analysis.in_fresh_process = compilation.in_fresh_process = contest.in_fresh_process = call
main(sys.argv[1:])
"""

NUMBER = r"\s+\d+\.\d+"
LINES = {
    "layer": [
        r"FlashMHF layer: d 16, H 2, d_h 8, E 2, d_e 8; 32 tokens, float32, 1 threads, 2 repeats",
        r"  inference, round 2/2: eager .* s, inductor .* s, flashmhf .* s",
        rf"inductor / flashmhf{NUMBER}",
        rf"flashmhf / inductor{NUMBER}{NUMBER}{NUMBER}",
        r"(holds|FAILS)  peak memory, eager's over ours: .*, required >= 5",
        r"(holds|FAILS)  peak memory, Inductor's over ours: .*, required >= 4",
        r"(holds|FAILS)  training time, ours over Inductor's .*, required <= 1.1",
        r"(holds|FAILS)  inference time, ours over Inductor's .*, required <= 1.0",
    ],
    "memory": [
        r"What a layer keeps: d 16, .*",
        rf"SwiGLU, eager{NUMBER * 3}",
        rf"SwiGLU, Inductor{NUMBER * 3}",
        rf"FlashMHF, flashmhf{NUMBER * 3}",
        r"  .* MiB  float32 \[32, 16\]",
    ],
    "analysis": [
        r"Analysis of a FlashMHF language model, layers: 2; .*",
        rf"1 \(2\){NUMBER * 5}",
        rf"2 \(4\){NUMBER * 5}",
        r"(holds|FAILS)  record, find and prove, s: .*, required <= 5",
    ],
    "compilation": [
        r"Compiling a FlashMHF language model, 2 layers: .*",
        rf"mhf_compile: analysis{NUMBER}",
        rf"in all{NUMBER}",
    ],
    "op": [
        r"flash_mhf: d 16, .*",
        rf"flash_mhf / eager{NUMBER}{NUMBER}{NUMBER}",
        r"flash_mhf differs from eager by .* of the norm, at most\.",
    ],
    "programs": [
        r"Programs of 32 tokens, d 16, 8 experts; float32",
        rf"a bank of one input, training{NUMBER * 4}",
        rf"Llama4's experts, 3-D, inference{NUMBER * 4}",
        r"(holds|FAILS)  slowest, over eager: .*, required <= 1.1",
    ],
    "functions": [
        r"Functions of the scores: d 16, .*",
        rf"gpt-oss, training{NUMBER * 2}",
        rf"swish, inference{NUMBER * 2}",
        r"(holds|FAILS)  swish and gpt-oss, over silu: .*, required <= 1.05",
    ],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What a run of all benchmarks prints and writes: parts of the output by name, and the JSON."""
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    options = ["--tokens", "32", "--repeats", "2", "--threads", "1", "--json", str(file)]
    command = [sys.executable, "-c", SCRIPT, *options]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    _, *parts = re.split(r"-- (\w+) --\n", process.stdout)
    return dict(zip(parts[::2], parts[1::2], strict=True)), json.loads(file.read_text())


@pytest.mark.parametrize("name", LINES)
def test_benchmark_prints_its_lines(done, name):
    lines = done[0][name].splitlines()
    for expected in LINES[name]:
        assert any(re.fullmatch(expected, line) for line in lines), (expected, done[0][name])


def test_results_are_written_as_json(done):
    results = done[1]
    assert list(results) == ["machine", *LINES]
    assert results["machine"]["torch"] == torch.__version__
    assert results["layer"]["settings"]["model"]["hidden"] == 16
    for name in ("layer", "op"):
        assert [len(seconds) for seconds in results[name]["times"]["training"].values()] == [2, 2, 2]
        # Eager, Inductor and ours sum in different orders, each within a few ulps of fp32 (1.2e-7).
        assert max(results[name]["times"]["differences"].values()) < 20 * 1.2e-7
    assert [len(spent) for spent in results["analysis"]["seconds"].values()] == [2, 2]
    assert set(results["analysis"]["seconds"]["2"][0]) == {"record", "find", "prove", "rewrite"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel"], "'layer', 'memory', 'analysis', 'compilation', 'op', 'programs', 'functions', 'all'"),
        (["layer", "--config", "7B"], "128M"),
        (["--repeats", "0"], "argument --repeats: must be a whole number of at least 1, not '0'"),
        (["op", "--dtype", "int8"], "float32"),
    ],
)
def test_bad_values_exit_with_2_and_say_what_is_allowed(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message.replace("'", "") in capsys.readouterr().err.replace("'", "")  # quoted in some versions


def allocate(settings):
    """A workload whose forward holds as many MiB as there are tokens, for a moment."""

    def wide(x):
        torch.ones(settings.tokens * 2**18)
        return x * 2

    x = torch.ones(1, requires_grad=True)
    return contest.Workload({"wide": wide}, [x], [x], torch.ones(1))


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux shows it")
def test_peak_is_what_a_step_holds():
    settings = Settings(TINY, tokens=64, repeats=1, threads=torch.get_num_threads())
    peak, results = contest.measure_peak(allocate, settings, "wide")
    assert peak == pytest.approx(64 * 2**20, rel=0.1)
    assert results == 8


def test_every_implementation_runs_once_a_round_and_each_comes_first():
    ran = []
    workload = contest.Workload({"a": torch.sin, "b": torch.cos}, [], [], torch.ones(1))
    seconds = contest.rounds("testing", workload, ran.append, repeats=2)
    assert "".join(ran) == "ab" + "ba" + "ab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_compiling_while_measuring_is_an_error():
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    compiled(torch.ones(2))
    with no_compiling():
        compiled(torch.ones(2))
        with pytest.raises(RuntimeError, match="recompile"):
            compiled(torch.ones(3))


def test_spread_interpolates_and_ratios_are_taken_pair_by_pair():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    assert ratio([2.0, 20.0], [1.0, 10.0]) == Spread(2.0, 2.0, 2.0)


def test_requirements_say_what_was_measured_and_whether_they_hold():
    assert str(at_least("memory", 6.25, 5)) == "holds  memory: 6.25, required >= 5"
    assert str(at_most("time", 1.25, 1.1)) == "FAILS  time: 1.25, required <= 1.1"
    assert str(at_least("memory", None, 5)) == "not measured  memory: required >= 5"


def test_line_goes_through_points_on_a_line():
    line = line_through([1, 2, 5], [1.5, 2.0, 3.5])
    assert (line.start, line.per_layer) == pytest.approx((1.0, 0.5))
    assert line.farthest == pytest.approx(0, abs=1e-12)
