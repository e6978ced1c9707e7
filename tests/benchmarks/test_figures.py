"""Figures in the README and the documents are those of the files that they name."""

import json
import re
from pathlib import Path

import pytest

import benchmarks
from mhf_compile.kernels.flash_mhf import swept

ROOT = Path(benchmarks.__file__).parents[1]
H100, H200 = (ROOT / "benchmarks/results" / name for name in ("h100", "h200"))
README, KERNELS = (ROOT / "README.md").read_text(), (ROOT / "docs/kernels.md").read_text()
PEERS = ("flashmhf", "Inductor", "eager")
ROWS = {"370M": "370M", "1.3B": "1.3B", "128M": "128M", "d64": "16 heads of 64", "d256": "4 heads of 256"}


def seconds(level, size, part, peer, tokens=16384):
    """The last median of a peer, and how many operations it took."""
    runs = [json.loads((H200 / f"{name}.json").read_text()) for name in ("run", "dense")]
    shape = (level, size, part, tokens)
    speeds = [one for run in runs for one in run["speeds"]]
    one = [s for s in speeds if (s["level"], s["size"], s["part"], s["tokens"]) == shape][-1]
    return one["race"]["timings"][peer]["seconds"]["median"], one["flop"]


@pytest.mark.parametrize(("size", "row"), ROWS.items())
def test_rates_of_the_readme(size, row):
    (line,) = re.findall(rf"^\| {row}.*\|$", README, re.MULTILINE)
    cells = [cell.strip().replace("*", "") for cell in line.strip("|").split("|")][1:]
    for peer, cell in zip(PEERS, cells, strict=True):
        times = [seconds("op", size, part, peer) for part in ("forward", "backward")]
        assert cell == " / ".join(str(round(flop / time / 1e12)) for time, flop in times)


PARTS = {"forward": "forward", "backward": "backward", "training step": "step"}


def test_times_of_the_table_of_an_h200():
    """Of each line in ms: that of ours, and of each peer that is named."""
    table = KERNELS.partition("## On an H200\n")[2].partition("\n## ")[0]
    row = r"^\| (op|layer|dense)(?:, ([^:|]*))?: ([\w ]*) \| \**([\d.]+) ms\** \| ([^|]*) \|$"
    rows = re.findall(row, table, re.MULTILINE)
    assert len(rows) >= 12
    names = {row: size for size, row in ROWS.items()}
    for level, of, part, ours, peers in rows:
        size, _, few = (of or "").partition(", ")
        tokens = int(few.split()[0]) if few and level == "op" else 4096 if level == "dense" else 16384
        size = "dense" if level == "dense" else names[size]
        prefix = "SwiGLU " if level != "op" else ""
        found = [("flashmhf", ours)]
        found += re.findall(r"(Inductor|eager)(?= \**[\d.]) \**([\d.]+)", peers)
        for peer, text in found:
            name = peer if peer == "flashmhf" else prefix + peer
            time, _ = seconds(level, size, PARTS[part], name, tokens)
            assert same(text, time), (level, of, part, peer)


KERNELS_OF = {
    "forward": "forward",
    "dQ": "dq",
    "dK, dU and dV": "weights",
    "dK and dU": "dk_du",
    "dV": "dv",
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
