"""The command that reads a sweep."""

import pytest

from benchmarks.gpu import sweep
from mhf_compile.kernels.flash_mhf import config, swept
from mhf_compile.kernels.flash_mhf.config import Tiles
from mhf_compile.kernels.flash_mhf.swept import Row
from tests.kernels.test_swept import FAILED, H100, HALF_KNOWN, QUICK, SLOW, VARIANT, made


def run(capsys, tmp_path, found, *arguments):
    swept.write(tmp_path / "sweep.json", found)
    sweep.main([str(tmp_path / "sweep.json"), *arguments])
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("dq", " " * 47))]


@pytest.mark.parametrize(
    ("now", "lead"),
    [
        (QUICK, ["64x64", "w4", "s2", "tma", "res", "1.0000", "1.00"]),
        (SLOW, ["128x64", "w8", "s3", "col", "2.0000", "2.00"]),
        (Tiles(16, 64, 4, 1), ["16x64", "w4", "s1", "-", "-"]),
    ],
)
def test_the_fastest_leads_over_what_ships_and_what_shipped(capsys, tmp_path, monkeypatch, now, lead):
    monkeypatch.setitem(config.HOPPER, ("dq", 2, 128), (now,))
    (line,) = run(capsys, tmp_path, made())
    head = ["dq", "bfloat16", "128", "16384", "3", "64x64", "w4", "s2", "tma", "res", "1.0000"]
    assert line.split() == [*head, *lead, "128x64", "w8", "s3", "col", "2.0000", "2.00"]


def test_a_kernel_that_the_table_does_without(capsys, tmp_path, monkeypatch):
    monkeypatch.delitem(config.HOPPER, ("dq", 2, 128))
    (line,) = run(capsys, tmp_path, made(shipped=None))
    assert line.split()[-6:] == ["-"] * 6


def test_further_rows_and_none_that_works(capsys, tmp_path):
    rows = VARIANT, HALF_KNOWN, Row.of(QUICK, 1e-3), FAILED
    lines = run(capsys, tmp_path, made(*rows), "--top", "9")
    assert [line.split()[-1] for line in lines[1:]] == ["2.0000"]
    (line,) = run(capsys, tmp_path, made(FAILED))
    assert line.endswith("nothing works")


def test_the_sweep_of_an_h100_in_which_nothing_leads_any_more(capsys):
    """Over what ships: that is the fastest, or came later."""
    sweep.main([str(H100)])
    out = capsys.readouterr().out
    assert "NVIDIA H100" in out and (out.count(" 1.00  "), out.count("       -     -  ")) == (9, 6)


@pytest.mark.parametrize("text", ["", "{}", None])
def test_what_is_no_sweep(capsys, tmp_path, text):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(SystemExit) as error:
        sweep.main([str(tmp_path / "sweep.json")])
    assert error.value.code == 2
    assert str(tmp_path / "sweep.json") in capsys.readouterr().err
