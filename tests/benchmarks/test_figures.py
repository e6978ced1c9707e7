"""Figures in the README and the documents are those of the files that they name."""

import json
import re
from pathlib import Path

import pytest

import benchmarks
from mhf_compile.kernels.flash_mhf import swept

ROOT = Path(benchmarks.__file__).parents[1]
H100 = ROOT / "benchmarks/results/h100"
README, KERNELS = (ROOT / "README.md").read_text(), (ROOT / "docs/kernels.md").read_text()
PEERS = ("flashmhf", "official_peer:official", "Inductor")


def found(kind):
    runs = (json.loads((H100 / f"{name}.json").read_text()) for name in ("370M", "others", "decode-dense"))
    return [one for run in runs for one in run[kind]]


def tflops(size, part, peer):
    """The rate of a peer at 16384 tokens; None where it failed."""
    shape = ("op", size, part, 16384)
    (one,) = (s for s in found("speeds") if (s["level"], s["size"], s["part"], s["tokens"]) == shape)
    timing = one["race"]["timings"].get(peer)
    return round(one["flop"] / timing["seconds"]["median"] / 1e12) if timing else None


@pytest.mark.parametrize(("size", "row"), [("370M", "370M"), ("128M", "128M"), ("d256", "4 heads of 256")])
def test_rates_of_the_readme(size, row):
    (line,) = re.findall(rf"^\| {row}.*\|$", README, re.MULTILINE)
    cells = [cell.strip().replace("*", "") for cell in line.strip("|").split("|")][1:]
    for peer, cell in zip(PEERS, cells, strict=True):
        rates = [tflops(size, part, peer) for part in ("forward", "backward")]
        want = "do not compile" if None in rates else f"{rates[0]} / {rates[1]}"
        assert cell == want


KERNELS_OF = {
    "forward": "forward",
    "dQ": "dq",
    "dK, dU and dV": "weights",
    "dK and dU": "dk_du",
    "dV": "dv",
    "chunk": "chunk_backward",
    "decode": "decode",
}


def same(text, seconds):
    """Whether milliseconds are as written, to their last digit."""
    return abs(float(text) - 1e3 * seconds) < 0.00051


def test_predictions_are_those_of_the_sweep():
    problems = {problem.key: problem for problem in swept.read(H100 / "sweep.json").problems}
    table = KERNELS.partition("### What the sweep predicts")[2]
    row = rf"^\| ({'|'.join(KERNELS_OF)})(?:, (\d+)| of)[^|]*\| ([^|]*) \| ([^|]*) \|"
    seen = set()
    for kind, columns, before, now in re.findall(row, table, re.MULTILINE):
        problem = problems[KERNELS_OF[kind], 2, int(columns or 0)]
        seen.add(problem.key)
        shipped = problem.row_of(problem.shipped)
        assert same(now, problem.measured()[0].seconds)
        assert same(before, shipped.seconds) if shipped else before == "not in the sweep"
    assert seen == problems.keys() - {("weights", 2, 128)}
    assert f"{sum(len(problem.rows) for problem in problems.values())} tilings" in KERNELS
