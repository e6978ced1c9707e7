"""Files of sweeps: what is written is read, and what is not one says so; the one of an H100."""

import json
from pathlib import Path

import pytest
import torch

import benchmarks
from mhf_compile.kernels.flash_mhf import config, swept
from mhf_compile.kernels.flash_mhf.config import Sizes, Tiles
from mhf_compile.kernels.flash_mhf.swept import Problem, Row, Sweep

H100 = Path(benchmarks.__file__).parent / "results/h100/sweep.json"
SIZES = Sizes(16384, 8, 8, 11, 256, 128, 128, gated=True, dtype=torch.bfloat16)
QUICK, SLOW = Tiles(64, 64, 4, 2, 1, resident=True), Tiles(128, 64, 8, 3, collected=True)
VARIANT = Row({**QUICK._asdict(), "resident": 2}, 1e-4)
HALF_KNOWN = Row({**SLOW._asdict(), "collected": None}, 2e-3)
FAILED = Row.of(Tiles(128, 128, 8, 4), why="OutOfResources: shared memory")


def made(*rows, shipped=SLOW):
    problem = Problem(("dq", 2, 128), SIZES, shipped, rows or (Row.of(QUICK, 1e-3), HALF_KNOWN, FAILED))
    return Sweep({"gpu": "a GPU", "arch": "sm_90"}, "by hand", (problem,))


@pytest.mark.parametrize("sweep", [made(), made(VARIANT, shipped=None), Sweep({"arch": "sm_80"}, "", ())])
def test_what_is_written_is_read(tmp_path, sweep):
    swept.write(tmp_path / "sweep.json", sweep)
    assert swept.read(tmp_path / "sweep.json") == sweep


def test_descriptors_are_counted_where_a_file_only_says_whether_there_are_any(tmp_path):
    two, none = QUICK._replace(described=2), SLOW._replace(described=0)
    swept.write(tmp_path / "new", made(*(Row.of(tiles, 1e-3) for tiles in (QUICK, two, none)), shipped=QUICK))
    text = (tmp_path / "new").read_text()
    assert text.count('"described": 1') == 2 and text.count('"described": 2') == 1
    (tmp_path / "old").write_text(text.replace('"described": 1', '"described": true'))
    assert swept.read(tmp_path / "old") == swept.read(tmp_path / "new")
    (problem,) = swept.read(tmp_path / "old").problems
    found = [problem.shipped.described, *(row.fields["described"] for row in problem.rows)]
    assert found == [1, 1, 2, 0] and {type(x) for x in found} == {int}


def test_the_fastest_is_first_and_neither_a_failure_nor_a_variant():
    (problem,) = made(HALF_KNOWN, VARIANT, FAILED, Row.of(QUICK, 1e-3)).problems
    assert [row.seconds for row in problem.measured()] == [1e-3, 2e-3]


def test_a_row_is_found_by_what_was_recorded():
    (problem,) = made().problems
    assert problem.row_of(QUICK).seconds == 1e-3
    assert problem.row_of(SLOW) == problem.row_of(SLOW._replace(collected=False)) == HALF_KNOWN
    assert problem.row_of(QUICK._replace(resident=False)) is None
    assert problem.row_of(Tiles(128, 128, 8, 4)) is None  # it failed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"problems": [{}]}, "KeyError: 'kernel'"),
        ({"problems": [{"kernel": "backward", "shipped": None}]}, "kernel: found 'backward', want one of"),
        ({"problems": None}, "TypeError"),
        ({"machine": ...}, "KeyError: 'machine'"),
    ],
)
def test_anything_else_is_no_sweep(tmp_path, change, why):
    swept.write(tmp_path / "sweep.json", made())
    content = {**json.loads((tmp_path / "sweep.json").read_text()), **change}
    text = json.dumps({name: value for name, value in content.items() if value is not ...})
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=why):
        swept.read(tmp_path / "sweep.json")


def test_the_table_of_hopper_is_in_the_order_of_the_clock():
    """Of each row, what was swept is in the order of the sweep; what was not may stand before it."""
    for problem in swept.read(H100).problems:
        candidates = config.HOPPER.get(problem.key)
        if candidates is None:
            assert problem.key == ("weights", 2, 128)  # dk_du and dv together are faster
            continue
        known = [tiles for tiles in candidates if problem.row_of(tiles)]
        best = problem.measured()[0]
        assert best.may_be(known[0]), problem.key
        if problem.key[0] == "decode":  # there, the first that hold more tokens are as they were
            continue
        times = [row.seconds for tiles in known if (row := problem.row_of(tiles))]
        assert times == sorted(times), problem.key
