"""The variants that are planned, and their schedule: with fakes, in place of a GPU."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import variant_contests, variants
from benchmarks.gpu.timing import Failure, Limits, WallClock
from benchmarks.gpu.variant_contests import Contest, Variant, plan
from mhf_compile.kernels.flash_mhf import config
from mhf_compile.kernels.flash_mhf.config import Sizes, Target, Tiles
from mhf_compile.kernels.flash_mhf.tuned import spelled

H100 = Target("sm_90", 132)
RESULTS = Path(variants.__file__).parents[1] / "results"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GOOD = {"over_allowed": 0.5, "bit_equal": True}


def contest(name="0", count=3, tokens=33):
    sizes = Sizes(tokens, 2, 2, 2, 20, 16, 16, True, torch.float32)
    tiles = [Tiles(16, 16, warps, 1) for warps in (1, 2, 4)][:count]
    return Contest(name, "weights", sizes, tuple(Variant(x, True) for x in tiles))


def raced(numbers):
    spread = {"median": 1e-3, "p20": 1e-3, "p80": 1e-3}
    return {
        "timings": {str(i): {"seconds": spread, "repeats": 3, "first": 0.1, "grew": 0} for i in numbers},
        "over": {str(i): spread for i in numbers},
        "failures": {},
    }


class Fake:
    """Work that answers from a table, (action, contest, first variant), and counts what it was asked."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __call__(self, action, contest, numbers, limit):
        self.asked.append((action, contest.size, tuple(numbers)))
        default = GOOD if action == "check" else raced(numbers)
        return self.answers.get(f"{action}_{contest.size}_{numbers[0]}", default)


def outcomes(planned, work, over=lambda: False, at_once=3):
    found = []
    left = variants.work_off(planned, [work] * at_once, over, found.append)
    return found, left


def test_each_variant_is_checked_alone_and_the_right_ones_are_timed_together():
    work = Fake()
    (outcome,), left = outcomes([contest()], work)
    assert set(work.asked[:3]) == {("check", "0", (i,)) for i in range(3)}
    assert work.asked[3:] == [("time", "0", (0, 1, 2))]
    assert outcome.failures == {} and left == []
    assert "1000.000" in str(outcome) and "16x16 w4 s1" in str(outcome)


def test_what_is_wrong_or_fails_is_not_timed_and_takes_nothing_along():
    work = Fake(
        check_0_0=Failure("no result in 60 s"),
        check_0_1={"over_allowed": float("nan"), "bit_equal": True},
        check_1_1={"over_allowed": 0.1, "bit_equal": False},
        time_1_0=Failure("the process was ended by SIGSEGV"),
    )
    (first, second, third), left = outcomes(list(map(contest, "012")), work)
    assert [x for x in work.asked if x[0] == "time"] == [
        ("time", "0", (2,)), ("time", "1", (0, 2)), ("time", "2", (0, 1, 2))
    ]  # fmt: skip
    assert first.failures == {"0": "no result in 60 s", "1": "errs nan times what is allowed"}
    assert second.failures == {"1": "two runs differ", "race": "the process was ended by SIGSEGV"}
    assert third.failures == {} and left == []
    assert "race: the process was ended" in str(second) and "16x16 w1 s1: no result in 60 s" in str(first)


@pytest.mark.parametrize(("most", "held"), [(8, 0), (10, 1)])
def test_when_the_time_is_up_nothing_new_is_started(most, held):
    work = Fake()
    found, left = outcomes([contest()] * 3, work, lambda: len(work.asked) >= most, at_once=1)
    assert len(work.asked) == most
    assert [len(outcome.failures) for outcome in found] == [0] * held
    assert left == [str(contest())] * (3 - held)


def real(action, contest, numbers):
    """In a process: the second variant hangs, the third crashes, the fourth raises."""
    match numbers[0]:
        case 1:
            time.sleep(600)
        case 2:
            os.abort()
        case 3:
            raise MemoryError("no memory\nof 80 GB")
    return {**GOOD, "of": os.getpid()}


def test_a_process_that_hangs_or_crashes_is_replaced():
    worker = variants.Worker(real)
    try:
        found = [worker("check", contest(), [i], limit) for i, limit in enumerate((60, 1, 60, 60))]
        found += [worker("check", contest(), [i], 60) for i in (0, 0)]
    finally:
        worker.end()
    processes = [found[i].pop("of") for i in (0, 4, 5)]
    assert os.getpid() != processes[0] != processes[1] == processes[2]
    assert found[1:4] == [
        Failure("no result in 1 s"),
        Failure("the process was ended by SIGABRT"),
        Failure("MemoryError: no memory"),
    ]
    assert found[0] == found[4] == found[5] == GOOD


def test_without_a_gpu_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert variants.main([]) == 2
    assert capsys.readouterr().err.splitlines() == ["there is no CUDA device to measure on"]


def test_the_plan_for_an_h100():
    planned = plan(H100, (16384, 1))
    by_name = {(x.size, x.kernel): [str(variant) for variant in x.variants] for x in planned}
    assert {"64x64 w4 s2 tma", "64x64 w4 s2 tma, whole"} <= set(by_name["370M", "dk_du"])
    assert {"128x64 w4 s3 tma", "128x64 w4 s3 tma, whole"} <= set(by_name["370M", "dv"])
    assert {"128x64 w8 s3 tma x2", "128x64 w8 s3"} <= set(by_name["128M", "forward"])
    assert {"128x64 w8 s3 tma x2 col", "128x64 w8 s3 col"} <= set(by_name["128M", "dq"])
    assert {"32x64 w4 s3 tma x2", "32x64 w4 s3"} <= set(by_name["128M", "weights"])
    assert {"16x64 w4 s3", "16x64 w4 s3 joined", "16x32 w4 s4"} <= set(by_name["1.3B", "decode"])
    assert {x.kernel for x in planned if x.sizes.head_dim != 96} == {
        "weights", "dk_du", "dv", "decode"
    }  # fmt: skip
    assert all(len(set(names)) == len(names) > 1 for names in by_name.values())
    assert [any(", whole" in name for name in by_name[x.size, x.kernel]) for x in planned[:2]] == [True] * 2
    for x in planned:
        assert x.variants[0] == Variant(config.table("sm_90")[config.key(x.kernel, x.sizes)][0], split=True)


SIZES = {"370M": 128, "1.3B": 128, "128M": 96, "d64": 64, "d256": 256}
NEAR = 1.03  # what the first may lose: a row has one for all sizes and numbers of tokens


@pytest.mark.parametrize("file", ["variants", "few-tokens", "1024-tokens"])
def test_the_first_of_a_row_is_the_fastest_that_an_h200_ran(file):
    contests = json.loads((RESULTS / f"h200/{file}.json").read_text())["contests"]
    compared = set()
    for contest in contests:
        kernel, size, *_ = contest["what"].replace(",", "").split()
        first, *others = map(spelled, config.HOPPER.get((kernel, 2, SIZES[size]), [Tiles(0, 0, 0, 0)]))
        times = {
            contest["variants"][int(number)]: timing["seconds"]["median"]
            for number, timing in contest["race"]["timings"].items()
        }
        if first in times:
            compared.add(kernel)
            assert times[first] <= NEAR * min(times[name] for name in (first, *others) if name in times)
        else:  # the specialised ones came later
            assert "specialised" in first or kernel == "chunk_backward"
    assert compared >= {"variants": {"weights", "forward", "dq"}}.get(file, set()) and compared


@pytest.mark.parametrize("arch", ["sm_80", "sm_100", "gfx942"])
def test_there_is_a_plan_for_others(arch):
    planned = plan(Target(arch, 100), (16384, 4096, 1))
    assert planned and all(
        x.splits or x.sizes.tokens == (1 if x.kernel == "decode" else 16384) for x in planned
    )


@pytest.mark.skipif(INTERPRETED, reason="is the interpreter")
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "checked_and_timed",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("kernel", ["forward", "dq", "weights", "decode"])
def test_a_variant_is_checked_and_timed(kernel):
    target, tiny = Target("sm_90", 8), replace(contest(count=2), kernel=kernel)
    if kernel == "decode":
        joined = Variant(Tiles(16, 16, 4, 1, joined=True), True)
        tiny = replace(tiny, variants=(tiny.variants[0], joined))
    found = variant_contests.check(tiny, 1, "cpu", target)
    assert 0 <= found["over_allowed"] <= 1 and found["bit_equal"]
    found = variant_contests.check(tiny, len(tiny.variants) - 1, "cpu", target)
    assert 0 <= found["over_allowed"] <= 1 and found["bit_equal"]
    timed = variant_contests.time(tiny, [0, 1], "cpu", target, WallClock(), Limits(repeats=2, least=1))
    assert set(timed["timings"]) == set(timed["over"]) == {"0", "1"} and json.dumps(timed)
