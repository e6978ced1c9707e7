"""Processes that may hang or die, and calls in several of them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mhf_compile.commands import parallel
from mhf_compile.commands.child import Child, Died, Silent
from mhf_compile.commands.parallel import outcomes


def does(what):
    """Called in another process."""
    match what:
        case "hangs":
            time.sleep(600)
        case "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leaves":
            os._exit(3)
    return f"{what}, {os.getpid()}"


def test_each_has_its_outcome_and_none_takes_another_with_it():
    found = list(outcomes(does, ["a", "hangs", "dies", "b", "leaves", "c"], 1, 20.0))
    words, processes = zip(
        *(text.rpartition(", ")[::2] for text in (found[0], found[3], found[5])), strict=True
    )
    assert words == ("a", "b", "c")
    assert len(set(processes)) == 3  # a new one after each that was lost
    assert found[1] == "took longer than 20 s"
    assert found[2] == "the process was ended by SIGSEGV"
    assert found[4] == "the process ended with status 3"


def test_no_more_processes_than_there_is_to_do_and_none_is_left():
    found = list(outcomes(does, ["a", "b", "c"], 2, 60.0))
    processes = {int(text.rpartition(" ")[2]) for text in found}
    assert [text[0] for text in found] == ["a", "b", "c"] and len(processes) <= 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert list(outcomes(does, [], 2, 60.0)) == []
    assert parallel.processors() >= 1


def starts_another(connection):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    connection.send(other.pid)
    time.sleep(600)


def echoes(connection):
    connection.send(connection.recv())


def test_what_a_child_started_ends_with_it():
    with Child(starts_another) as child:
        other = child.receive(60)
        with pytest.raises(Silent):
            child.receive(0.01)
        os.kill(other, 0)
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(other)], capture_output=True, text=True).stdout
        if not state.strip() or state.startswith("Z"):
            break
        time.sleep(0.05)
    else:
        pytest.fail("it still runs")


def test_messages_and_an_end():
    with Child(echoes) as child:
        child.send({"a": [1]})
        assert child.receive(60) == {"a": [1]}
        with pytest.raises(Died, match="status 0"):
            child.receive(60)
