"""The command `tune`: what it prints, stores and says, with a GPU that is made up; and on one that is not."""

import errno
import os
import re
from functools import partial

import pytest
import torch

from mhf_compile.commands import tune as tune_command
from mhf_compile.kernels.flash_mhf import config, launch, swept, tune, tuned
from mhf_compile.kernels.flash_mhf.config import Target, Tiles
from mhf_compile.kernels.flash_mhf.tune import Trial
from tests.commands.running import run_command

GPU = Target("sm_90", 132, "GPU of a test")
KEY = ("forward", 2, 128)
CANDIDATES = (
    Tiles(128, 64, 8, 3, True, resident=True),
    Tiles(128, 64, 8, 2, True, resident=True),
    Tiles(128, 64, 8, 3, True),
    Tiles(64, 64, 4, 3),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MHF_COMPILE_CACHE", str(tmp_path))
    tuned.winners.cache_clear()
    yield tmp_path
    tuned.winners.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which the last candidate is the fastest, and the second fails."""

    def trials(key, sizes, target, device, measure, failed):
        assert failed == ({CANDIDATES[2]: "took longer than 180 s"} if key == KEY else {})
        assert (target, device, measure) == (GPU, torch.device("cuda", 0), tune_command.medians)
        seen.append((key, sizes))
        found = [Trial(t, 1e-3 / i) for i, t in enumerate(config.HOPPER[key], start=1)]
        return [
            t._replace(seconds=None, why="OutOfResources: why") if i == 1 else t for i, t in enumerate(found)
        ]

    def outcomes(function, candidates, jobs, seconds):
        assert (function, seconds) == (tune.compiled, tune_command.COMPILING)
        assert len(set(candidates)) == len(candidates)
        late = "took longer than 180 s"
        return [late if (c.key, c.tiles) == (KEY, CANDIDATES[2]) else "" for c in candidates]

    seen = []
    monkeypatch.setattr(tune_command.parallel, "outcomes", outcomes)
    monkeypatch.setitem(config.HOPPER, KEY, CANDIDATES)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launch, "target_of", lambda device: GPU)
    monkeypatch.setattr(tune, "trials", trials)
    return seen


@pytest.fixture
def run(capsys):
    """Runs the command: what it printed, what it complained of, its status."""

    return partial(run_command, capsys, "tune")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu(run, cache):
    out, err, status = run()
    assert (out, status) == ("", 2)
    assert err == (
        "python -m mhf_compile tune: error: there is no GPU to measure on "
        "(torch.cuda.is_available() is False)\n"
    )
    assert list(cache.iterdir()) == []


def test_winners_are_printed_stored_and_used(run, gpu, cache):
    out, err, status = run("--config", "370M", "--jobs", "3")
    assert (err, status) == ("", 0)
    lines = out.splitlines()
    assert re.fullmatch(r"\d+ candidates compiled in 0 s by 3 processes", lines[0])
    assert lines[1].startswith("GPU of a test, sm_90; ")
    forward = next(i for i, line in enumerate(lines) if line.startswith("forward "))
    rows = [line.split() for line in lines[forward : forward + 4]]
    assert rows[0] == ["forward", "16", "128", "16384", "128x64", "w8", "s3", "tma", "res", "1.0000"]
    assert rows[1] == ["128x64", "w8", "s2", "tma", "res", "left", "out:", "OutOfResources:", "why"]
    assert rows[3][-2:] == ["0.2500", "<"]
    assert lines[-1] == f"7 of 7 stored in {cache / 'tiles-GPU-of-a-test.json'}"
    assert tuned.winners(GPU.name)[KEY] == CANDIDATES[-1]
    assert len(tuned.winners(GPU.name)) == 7
    assert out.count("<") == 8  # and in the heading


def test_all_times_are_written_as_a_sweep(run, gpu, tmp_path):
    tuned.store(GPU.name, {KEY: CANDIDATES[1]})
    _, err, status = run("--config", "370M", "--sweep", str(tmp_path / "sweep.json"))
    sweep = swept.read(tmp_path / "sweep.json")
    assert (err, status) == ("", 0)
    assert sweep.machine["gpu"] == GPU.name and sweep.machine["arch"] == "sm_90"
    assert [(problem.key, problem.sizes) for problem in sweep.problems] == gpu
    problem = next(problem for problem in sweep.problems if problem.key == KEY)
    assert problem.shipped == CANDIDATES[1]
    assert [row.seconds for row in problem.rows] == [pytest.approx(x, rel=1e-3) if x else x
                                                     for x in (1e-3, None, 1e-3 / 3, 1e-3 / 4)]  # fmt: skip
    assert problem.rows[1].why == "OutOfResources: why"
    assert problem.measured()[0].may_be(CANDIDATES[3])


def test_a_sweep_that_cannot_be_written_is_known_before_anything_is_measured(run, gpu, tmp_path):
    out, err, status = run("--sweep", str(tmp_path / "missing" / "sweep.json"))
    assert (out, status, gpu) == ("", 2, [])
    assert err.endswith(f"cannot write {tmp_path}/missing/sweep.json: No such file or directory\n")


def test_the_layers_of_all_configurations_and_no_row_twice(run, gpu):
    _, _, status = run("--dtype", "float32")
    keys = [key for key, _ in gpu]
    assert status == 0
    assert len(keys) == len(set(keys)) == 12
    assert {key[1] for key in keys} == {4}
    assert {sizes.dtype for _, sizes in gpu} == {torch.float32}


@pytest.mark.parametrize(
    ("numbers", "tokens"), [((), (16384, 16)), ((1,), (16384, 1)), ((2000, 4), (2000, 4)), ((65,), (65, 16))]
)
def test_one_number_of_tokens_a_kernel(run, gpu, numbers, tokens):
    _, _, status = run("--config", "128M", *(["--tokens", *map(str, numbers)] if numbers else []))
    found = {key[0]: sizes.tokens for key, sizes in gpu}
    assert status == 0
    assert (found["forward"], found["decode"]) == tokens
    assert found["dq"] == tokens[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "100", "200"], "--tokens takes one number up to 64 and one above, not [100, 200]"),
        (["--tokens", "1", "2"], "--tokens takes one number up to 64 and one above, not [1, 2]"),
        (["--tokens", "none"], "must be a whole number of at least 1, not 'none'"),
        (["--config", "7B"], "invalid choice: '7B'"),
    ],
)
def test_wrong_arguments(run, gpu, arguments, said):
    out, err, status = run(*arguments)
    assert (out, status) == ("", 2)
    assert said in err


def test_an_architecture_without_kernels(run, gpu, monkeypatch):
    monkeypatch.setattr(launch, "target_of", lambda device: Target("sm_75", 40, "old"))
    out, err, status = run()
    assert (out, status) == ("", 2)
    assert err == "python -m mhf_compile tune: error: arch: found 'sm_75', want sm_80 or later, or a gfx9\n"


def test_a_cache_that_cannot_be_written(run, gpu, cache, monkeypatch):
    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(tuned.Path, "mkdir", read_only)
    out, err, status = run("--config", "128M")
    assert status == 2
    assert "forward" in out  # what took time to find out is shown
    assert err == f"python -m mhf_compile tune: error: cannot write {cache}: Read-only file system\n"

    def homeless(device):
        raise FileNotFoundError("no home directory; MHF_COMPILE_CACHE can name another")

    monkeypatch.setattr(tuned, "path_of", homeless)
    assert run("--config", "128M")[1].endswith(
        "cannot write: no home directory; MHF_COMPILE_CACHE can name another\n"
    )


def test_a_row_of_which_nothing_works(run, gpu, monkeypatch):
    trials = tune.trials

    def none(key, *rest):
        return (
            [t._replace(seconds=None, why="why") for t in trials(key, *rest)]
            if key[0] == "dq"
            else trials(key, *rest)
        )

    monkeypatch.setattr(tune, "trials", none)
    out, err, status = run("--config", "128M")
    assert status == 1
    assert re.search(r"^5 of 6 stored in ", out, re.MULTILINE)
    assert err == "python -m mhf_compile tune: no candidate works for 1\n"


def test_medians_take_turns_on_an_overwritten_cache(monkeypatch):
    now, order = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class Buffer:
        def zero_(self):
            order.append("write")
            now[0] += 0.1

    def candidate(name, times):
        times = iter(times)

        def run():
            order.append(name)
            now[0] += next(times)

        return run

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Buffer())
    rounds = tune_command.ROUNDS
    warm = [1000.0, 1000.0]
    taken = tune_command.medians(
        [
            candidate("a", [*warm, *[2.0] * (rounds - 3), *[50.0] * 3]),  # ms
            candidate("b", [*warm, *[3.0] * rounds]),
        ]
    )
    assert taken == pytest.approx([0.002, 0.003])
    timed = [name for name in order if name != "write"][4:]
    assert timed == ["a", "b", "b", "a"] * (rounds // 2) + ["a", "b"] * (rounds % 2)
    assert all(
        order[i - 1] == "write"
        for i, name in enumerate(order)
        if name != "write" and i > order.index("b") + 2
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(run, cache):
    out, err, status = run("--config", "128M", "--tokens", "1024")
    assert (err, status) == ("", 0), out
    assert "left out" not in out
    name = torch.cuda.get_device_name()
    assert {key[0] for key in tuned.winners(name)} >= {"forward", "decode", "dq", "chunk"}
