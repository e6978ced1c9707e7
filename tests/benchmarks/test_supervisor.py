"""The supervisor, of processes that are made up, and of a peer that really hangs and one that really dies."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import supervisor
from benchmarks.gpu.peers import Named
from benchmarks.gpu.results import Results
from benchmarks.gpu.supervisor import Supervisor
from benchmarks.gpu.timing import Budget
from benchmarks.gpu.worker import Done, Gone, Order, Ready, State, Turn
from mhf_compile.commands.child import Died, Silent
from tests.benchmarks.made import memory

PEER = Named(Path("peers.py"), "slow", ("forward",))
READY = Ready({"gpu": "a GPU"}, {})


class Made:
    """A process that says what it is told to; an error is raised."""

    def __init__(self, *messages):
        self.messages, self.orders, self.waits, self.killed = list(messages), [], [], False

    def send(self, message):
        self.orders.append(message)

    def receive(self, seconds=None):
        self.waits.append(seconds)
        message = self.messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    def kill(self):
        self.killed = True


@pytest.fixture
def made(tmp_path):
    """Runs units a, b, ... in some processes: the supervisor, and the peers that each process began with."""

    def run(units, *processes, budget=None):
        started = []

        def start(peers, describing):
            assert describing == (not results.machine)
            started.append([str(peer) for peer in peers])
            return processes[len(started) - 1]

        results = Results({}, {})
        found = Supervisor(start, [PEER], 100.0, results)
        try:
            found.work_off(list(units), budget or Budget(60), tmp_path / "gpu.json")
        finally:
            assert len(started) == len(processes)
        return found, started

    return run


def test_each_turn_has_its_limit(made):
    process = Made(READY, Turn("ours", 60.0), Turn("", 60.0), memory(1), Done(), memory(2), Done("why"))
    found, _ = made("ab", process)
    assert process.waits == [100, 100, 60, 100, 100, 100, 100]
    assert process.orders == [Order("a"), Order("b")] and not process.killed
    assert [one.tokens for one in found.results.memories] == [1, 2]  # what was found before it failed stays
    assert found.results.failed == {"b": "why"} and found.results.machine == {"gpu": "a GPU"}


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (Silent(), "took longer than 60 s"),
        (Died("the process was ended by SIGSEGV"), "the process was ended by SIGSEGV"),
        (Gone("illegal memory access"), "illegal memory access"),
    ],
)
def test_who_is_lost_is_left_out_and_the_unit_runs_again(made, end, why):
    first = Made(READY, memory(1), Turn("slow", 60.0), end)
    second = Made(READY, memory(1), Done(), Done())
    found, started = made("ab", first, second)
    assert first.killed and not second.killed
    assert second.orders == [Order("a", {"slow": why}), Order("b")]
    assert [one.tokens for one in found.results.memories] == [1] and found.results.failed == {}
    assert started == [["peers:slow"]] * 2


def test_who_is_lost_twice_is_left_out_from_then_on(made):
    lost = [Made(READY, Turn("slow", 60.0), Silent()), Made(READY, Done(), Turn("slow", 60.0), Silent())]
    last = Made(READY, Done(), Done())
    _, _ = made("abc", *lost, last)
    why = "left out: lost at 2 shapes before, the last time: took longer than 60 s"
    assert last.orders == [Order("b", {"slow": why}), Order("c", {"slow": why})]


def test_what_is_nobodys_fault_is_the_units(made):
    found, _ = made("ab", Made(READY, memory(1), Silent()), Made(READY, Done()))
    assert found.results.failed == {"a": "took longer than 100 s"}
    again = [Made(READY, Turn("ours", 9.0), Silent()) for _ in range(2)]  # although it was to be left out
    found, _ = made("a", *again)
    assert found.results.failed == {"a": "took longer than 9 s"}


def test_a_peer_that_cannot_be_loaded_is_left_out(made):
    hangs = Made(Turn("peers:slow", 60.0), Silent())
    found, started = made("a", hangs, Made(READY, Done()))
    assert started == [["peers:slow"], []] and hangs.killed
    assert found.results.failed == {"peer peers:slow": "took longer than 60 s"}
    found, _ = made("a", Made(Ready({}, {"peers:slow": "ImportError: why"}), Done()))
    assert found.results.failed == {"peer peers:slow": "ImportError: why"} and found.peers == []


def test_a_lost_device_ends_the_run_in_an_orderly_way(tmp_path, monkeypatch, capsys):
    processes = [Made(READY, Gone("illegal access")), *(Made(Turn("copy", 60.0), Died("why")) for _ in "12")]
    monkeypatch.setattr(gpu, "Child", lambda *_: processes.pop(0))
    file = tmp_path / "gpu.json"
    assert gpu.main(["--dry-run", "--config", "128M", "--only", "forward", "--json", str(file)]) == 1
    data = json.loads(file.read_text())
    assert data["failed"]["device"] == "why" and len(data["left_out"]) == 0 and len(data["failed"]) == 3
    assert "failed  device: why" in capsys.readouterr().out


def test_units_start_until_the_time_is_up_and_each_is_written(tmp_path, made):
    now = [0.0]

    class Slow(Made):
        def receive(self, seconds=None):
            message = super().receive(seconds)
            now[0] += 50 if isinstance(message, Done) else 0
            written.append((tmp_path / "gpu.json").exists())
            return message

    written = []
    found, _ = made("abc", Slow(READY, Done(), Done()), budget=Budget(100, clock=lambda: now[0]))
    assert found.results.left_out == ["c"] and found.results.seconds == 100
    assert written == [False, False, True]


def test_the_state_in_the_end(made):
    for last, state in ((State({"temperature.gpu": "50"}), {"temperature.gpu": "50"}), (Silent(), None)):
        process = Made(READY, Done(), last)
        found, _ = made("a", process)
        found.end()
        assert process.killed and process.orders[-1] is None
        assert found.results.machine.get("state_at_end") == state
        found.end()  # there is none


PEERS = """
import os
import time

def hangs(q, k, u, v, r):
    time.sleep(600)

def dies(q, k, u, v, r):
    os._exit(3)
"""


def test_a_peer_that_hangs_and_one_that_dies_do_not_take_the_run_with_them(tmp_path, capsys):
    (tmp_path / "peers.py").write_text(PEERS)
    (tmp_path / "load.py").write_text("import os\nos._exit(4)\ndef f(q, k, u, v, r): ...\n")
    file = tmp_path / "gpu.json"
    named = [f"{tmp_path}/peers.py:hangs@forward", f"{tmp_path}/peers.py:dies", f"{tmp_path}/load.py:f"]
    peers = [argument for name in named for argument in ("--peer", name)]
    arguments = ["--dry-run", "--config", "128M", "--only", "forward", "--limit", "8", "--json", str(file)]
    assert gpu.main([*arguments, *peers]) == 0
    data = json.loads(file.read_text())
    assert data["failed"] == {"peer load:f": "the process ended with status 4"}
    first, second = (one["race"] for one in data["speeds"])
    for race in (first, second):
        assert set(race["timings"]) >= {"eager", "flashmhf"}  # on a busy machine Inductor may take longer
    assert (
        first["failures"].items()
        >= {
            "peers:hangs": "took longer than 8 s",
            "peers:dies": "the process ended with status 3",
        }.items()
    )
    assert set(second["failures"]) >= {"peers:hangs", "peers:dies"}
    assert supervisor.STRIKES == 2 and "once more without it" in capsys.readouterr().out
