"""The file of tuned tiles: what is read, what is ignored, and how it is written."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mhf_compile.kernels.flash_mhf import config, forward, tuned
from mhf_compile.kernels.flash_mhf.config import Target, Tiles
from mhf_compile.kernels.flash_mhf.launch import Call

GPU = "NVIDIA H100 80GB HBM3"
KEY = ("forward", 2, 128)
FIRST, SECOND = Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2, described=True, resident=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MHF_COMPILE_CACHE", str(tmp_path / "made" / "below"))
    monkeypatch.setitem(config.HOPPER, KEY, (FIRST, SECOND))
    tuned.winners.cache_clear()
    yield tmp_path / "made" / "below"
    tuned.winners.cache_clear()


def call(head_dim=128, name=GPU, *, tokens=4096, **forced):
    q, k = (torch.empty(1, tokens, 2, head_dim, device="meta", dtype=torch.bfloat16) for _ in range(2))
    return Call(q, k, k, k, None, None, None, "silu", 1.0, 1.0, Target("sm_90", 1, name), forced=forced)


def test_what_is_stored_is_what_is_launched(folder, caplog):
    assert tuned.winners(GPU) == {}
    path = tuned.store(GPU, {KEY: SECOND})
    assert path == folder / "tiles-NVIDIA-H100-80GB-HBM3.json"
    assert call().tiles("forward") == SECOND
    assert call(name="another GPU").tiles("forward") == FIRST
    assert call(name="").tiles("forward") == FIRST
    assert call(forward=FIRST).tiles("forward") == FIRST
    assert call().tiles("decode") == config.HOPPER["decode", 2, 128][0]
    assert json.loads(path.read_text())["tiles"]["forward 2 128"]["stages"] == SECOND.stages
    assert caplog.records == []


def test_other_rows_are_kept():
    other = ("chunk", 2, 0)
    tuned.store(GPU, {KEY: FIRST, other: config.HOPPER[other][-1]})
    tuned.store(GPU, {KEY: SECOND})
    assert tuned.winners(GPU) == {KEY: SECOND, other: config.HOPPER[other][-1]}


def test_a_winner_for_few_tokens_is_used_where_its_block_holds_them(monkeypatch):
    key, low, high = ("decode", 2, 128), Tiles(16, 32, 4, 3), Tiles(64, 64, 4, 3)
    monkeypatch.setitem(config.HOPPER, key, (Tiles(16, 64, 4, 3), low, high))
    tuned.store(GPU, {key: low})
    assert [call(tokens=n).tiles("decode") for n in (1, 16, 17, 64)] == [low, low, high, high]


def test_descriptors_are_left_out_where_a_head_takes_several_tiles():
    tuned.store(GPU, {KEY: SECOND})
    for head_dim, described in ((128, True), (100, False)):
        narrow = call(head_dim)
        (launch,) = forward.launches(narrow, narrow.q)
        assert (launch.options["num_stages"], launch.options["DESCRIBED"]) == (SECOND.stages, described)


def content(**changes):
    rows = {"forward 2 128": SECOND._asdict()}
    return json.dumps({**tuned.made_for(GPU), "tiles": rows, **changes})


def row(name="forward 2 128", **changes):
    return content(tiles={name: {**SECOND._asdict(), **changes}})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        (content().rpartition('"')[0], "Unterminated string"),
        (b"\xff\xfe", "can't decode"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "it is not an object with tiles"),
        ("{}", "it is not an object with tiles"),
        (content(tiles=[]), "it is not an object with tiles"),
        (content(gpu="NVIDIA A100"), f"it is for gpu 'NVIDIA A100', and this is '{GPU}'"),
        (content(triton="2.0"), "it is for triton '2.0', and this is '"),
        (content(kernels="0123"), "it is for kernels '0123', and this is '"),
        (content(kernels=None), "it is for kernels None, and this is '"),
        (row("backward 2 128"), "no table has 'backward 2 128': "),
        (row("forward 2"), "no table has 'forward 2': "),
        (row(tokens=100), "no table has 'forward 2 128': "),
        (row(tokens=2**40), "no table has 'forward 2 128': "),
        (row(stages="3"), "no table has 'forward 2 128': "),
        (row(more=1), "no table has 'forward 2 128': "),
        (content(tiles={"forward 2 128": None}), "no table has 'forward 2 128': None"),
    ],
)
def test_anything_else_is_ignored_with_one_warning(folder, caplog, text, why):
    folder.mkdir(parents=True)
    path = tuned.path_of(GPU)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for _ in range(2):
        assert tuned.winners(GPU) == {}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage() and "python -m mhf_compile tune" in record.getMessage()
    assert why in record.getMessage()
    tuned.store(GPU, {KEY: SECOND})
    assert tuned.winners(GPU) == {KEY: SECOND}


def test_a_directory_in_its_place_is_ignored(folder, caplog):
    tuned.path_of(GPU).mkdir(parents=True)
    assert tuned.winners(GPU) == {}
    assert "Is a directory" in caplog.text
    with pytest.raises(IsADirectoryError):
        tuned.store(GPU, {KEY: SECOND})
    assert list(folder.iterdir()) == [tuned.path_of(GPU)]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_directory_that_cannot_be_made(folder, monkeypatch, caplog, code):
    def fails(self, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        tuned.store(GPU, {KEY: FIRST})
    assert tuned.winners(GPU) == {}
    assert not folder.exists()
    assert caplog.records == []


@pytest.mark.parametrize("fails", ["write_text", "replace"])
def test_a_failed_write_leaves_what_was_there(folder, monkeypatch, fails):
    path = tuned.store(GPU, {KEY: FIRST})

    def full(self, *_):
        if fails == "write_text":
            Path(self).touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(*((Path, "write_text") if fails == "write_text" else (os, "replace")), full)
    with pytest.raises(OSError, match="No space left on device"):
        tuned.store(GPU, {KEY: SECOND})
    assert list(folder.iterdir()) == [path]
    assert tuned.winners(GPU) == {KEY: FIRST}


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MHF_COMPILE_CACHE", str(tmp_path / "file" / "below"))
    assert tuned.winners(GPU) == {}
    assert caplog.records == []
    with pytest.raises(NotADirectoryError):
        tuned.store(GPU, {KEY: FIRST})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    with pytest.raises(PermissionError):
        tuned.store(GPU, {KEY: FIRST})
    assert list(folder.iterdir()) == []


def test_others_may_read_it_as_the_umask_says():
    before = os.umask(0o027)
    try:
        assert tuned.store(GPU, {KEY: FIRST}).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_where_it_is(monkeypatch, caplog):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    monkeypatch.delenv("MHF_COMPILE_CACHE")
    assert tuned.path_of("A").parent == Path("/var/cache/someone/mhf_compile")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert tuned.path_of("A").parent == Path("/home/someone/.cache/mhf_compile")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert tuned.winners(GPU) == {}
    assert caplog.records == []
    with pytest.raises(FileNotFoundError, match="MHF_COMPILE_CACHE"):
        tuned.store(GPU, {KEY: FIRST})


STORE = """
import sys
from mhf_compile.kernels.flash_mhf import config, tuned
key = tuple(int(x) if x.isdigit() else x for x in sys.argv[2:])
print("ready", flush=True)
sys.stdin.readline()
for i in range(300):
    tuned.store(sys.argv[1], {key: config.HOPPER[key][0]})
"""


def test_two_processes_that_store_at_once(folder):
    keys = [("forward", 2, 64), ("dq", 2, 64)]
    tuned.store(GPU, {})
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", STORE, GPU, *map(str, key)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for key in keys
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = 0
    while any(writer.poll() is None for writer in writers):
        assert set(tuned.read(GPU)) <= set(keys)  # whole, at any time
        seen += 1
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen > 1
    assert tuned.read(GPU) == {key: config.HOPPER[key][0] for key in keys}
    assert list(folder.iterdir()) == [tuned.path_of(GPU)]


def test_one_stores_after_the_other(monkeypatch):
    """The second would read what the first is about to replace, if it did not wait."""
    keys = [("forward", 2, 64), ("dq", 2, 64)]
    stores = [threading.Thread(target=tuned.store, args=(GPU, {key: config.HOPPER[key][0]})) for key in keys]
    replacing, go_on, replace = threading.Event(), threading.Event(), os.replace

    def paused(*args):
        replacing.set()
        assert go_on.wait(60)
        replace(*args)

    monkeypatch.setattr(os, "replace", paused)
    stores[0].start()
    assert replacing.wait(60)
    replacing.clear()
    stores[1].start()
    waited = not replacing.wait(0.3)
    go_on.set()
    assert waited
    for store in stores:
        store.join(60)
    assert set(tuned.read(GPU)) == set(keys)


KILLED = """
import sys, time
from pathlib import Path
from mhf_compile.kernels.flash_mhf import config, tuned

def half(path, text, encoding):
    with open(path, "w") as file:
        file.write(text[:len(text) // 2])
    print("in the middle", flush=True)
    time.sleep(600)

Path.write_text = half
tuned.store(sys.argv[1], {("dq", 2, 64): config.HOPPER["dq", 2, 64][0]})
"""


def test_a_process_that_is_killed_while_it_writes(folder, caplog):
    path = tuned.store(GPU, {KEY: FIRST})
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, GPU], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "in the middle\n"
        writer.kill()
    assert path.read_bytes() == before
    assert len(list(folder.iterdir())) == 2  # what it had written has a name of its own
    assert tuned.winners(GPU) == {KEY: FIRST}
    tuned.store(GPU, {KEY: SECOND})  # the lock went with it
    assert tuned.winners(GPU) == {KEY: SECOND}
    assert caplog.records == []


@pytest.mark.parametrize(
    ("tiles", "text"),
    [
        (Tiles(128, 64, 8, 3), "128x64 w8 s3"),
        (Tiles(128, 64, 4, 2, described=True, resident=True), "128x64 w4 s2 tma res"),
        (Tiles(128, 64, 4, 2, described=2), "128x64 w4 s2 tma x2"),
        (Tiles(16, 32, 8, 1, columns=64, collected=True), "16x32x64 w8 s1 col"),
    ],
)
def test_tiles_for_people(tiles, text):
    assert tuned.spelled(tiles) == text
