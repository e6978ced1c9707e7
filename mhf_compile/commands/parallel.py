"""Call a function for each of many arguments in several processes, each call with a limit."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from mhf_compile.commands.child import Child, Died, Silent


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def outcomes(
    function: Callable[[Any], str], arguments: Sequence[object], jobs: int, seconds: float
) -> Iterator[str]:
    """What `function` says of each argument, in their order; of one that hangs or dies, that it does.

    `function` and arguments can be pickled. A process is started once, and anew only after such a one.
    """
    idle: SimpleQueue[Child | None] = SimpleQueue()
    jobs = max(1, min(jobs, len(arguments)))
    for _ in range(jobs):
        idle.put(None)

    def outcome(argument: object) -> str:
        child = idle.get() or Child(_serve, function)
        try:
            child.send(argument)
            said: str = child.receive(seconds)
        except (Silent, Died) as error:
            child.kill()
            idle.put(None)
            return f"took longer than {seconds:.0f} s" if isinstance(error, Silent) else str(error)
        idle.put(child)
        return said

    try:
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(outcome, arguments)
    finally:
        while not idle.empty():
            if child := idle.get():
                child.kill()


def _serve(connection: Connection, function: Callable[[Any], str]) -> None:
    while True:
        try:
            argument = connection.recv()
        except EOFError:
            return
        connection.send(function(argument))
