"""The process that measures: it takes one unit after the other, and says all it does.

It has the GPU to itself. What hangs or dies in it, the supervisor ends with it, and starts another.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from benchmarks.gpu.machine import describe, state
from benchmarks.gpu.peers import Named, load
from benchmarks.gpu.plan import Unit, plan
from benchmarks.gpu.protocol import Lab, Peer, Protocol
from benchmarks.gpu.timing import CudaClock, DeviceLost, Failure, WallClock, attempt


@dataclass(frozen=True)
class Turn:
    """`who` is at work from now on ("": nobody in particular), and may be so for so many seconds."""

    who: str
    seconds: float


@dataclass(frozen=True)
class Ready:
    """It takes units. The machine is described if that was asked for; `failed` are peers with the reason."""

    machine: dict[str, object]
    failed: dict[str, str]


@dataclass(frozen=True)
class Order:
    """A unit to run, without those that were `lost` in it or too often."""

    unit: str
    lost: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """The unit is done, or it failed for some reason."""

    why: str | None = None


@dataclass(frozen=True)
class Gone:
    """The device answers no more: another process is needed."""

    why: str


@dataclass(frozen=True)
class State:
    """The state of the GPU in the end."""

    found: dict[str, str] | None


def work(connection: Connection, protocol: Protocol, peers: Sequence[Named], describing: bool) -> None:
    """Load the peers, then follow orders; None is the last one."""
    clock = CudaClock() if protocol.device == "cuda" else WallClock()
    clock.alarm = lambda who, seconds: connection.send(Turn(who, seconds))
    loaded: dict[str, Peer] = {}
    failed: dict[str, str] = {}
    for peer in peers:
        with clock.turn(str(peer), protocol.limits.turn):
            found = attempt(clock, load, peer)
        if isinstance(found, Failure):
            failed[str(peer)] = found.why
        else:
            loaded[str(peer)] = found
    lab = Lab(protocol, clock, loaded)
    units = {str(unit): unit for unit in plan(lab)}
    connection.send(Ready(describe(lab) if describing else {}, failed))
    gc.collect()
    gc.freeze()  # what lives now stays: each of many collections need not look at it
    while (order := connection.recv()) is not None:
        lab.lost.clear()
        lab.lost.update(order.lost)
        try:
            outcome = attempt(clock, _run, units[order.unit], connection)
        except DeviceLost as error:
            connection.send(Gone(str(error)))
            return
        connection.send(Done(outcome.why if isinstance(outcome, Failure) else None))
    connection.send(State(state()))


def _run(unit: Unit, connection: Connection) -> None:
    for result in unit.run():
        connection.send(result)
