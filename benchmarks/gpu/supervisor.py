"""Units of a run in another process, so that an implementation that hangs or dies takes no other with it.

Who is at work there has a limit. Past it, or where the process dies, the process is ended, the implementation
is recorded as lost at that shape, and the shape is measured again without it, in a new process. What was lost
`STRIKES` times is left out from then on.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu.peers import Named
from benchmarks.gpu.results import Result, Results
from benchmarks.gpu.timing import Budget, DeviceLost
from benchmarks.gpu.worker import Done, Gone, Order, Ready, State, Turn
from mhf_compile.commands.child import Died, Silent

STRIKES = 2
STARTS = 2  # processes in a row that may fail before they are ready, by nobody's fault


class Process(Protocol):
    """What is asked of a `Child`."""

    def send(self, message: object) -> None:
        """Give it a message."""

    def receive(self, seconds: float | None = None) -> Any:
        """Wait for its next message."""

    def kill(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Loss:
    """A process was lost while it was `who`'s turn, and why."""

    who: str
    why: str


@dataclass
class Supervisor:
    """Runs units in a process.

    Attributes:
        start: makes one of peers; whether it is to describe the machine.
        peers: those that have not failed so far.
        own: seconds that it may take while it is nobody's turn.
        results: what comes of it.
        lost: implementations that are left out from now on, and why.
    """

    start: Callable[[Sequence[Named], bool], Process]
    peers: list[Named]
    own: float
    results: Results
    lost: dict[str, str] = field(default_factory=dict)
    strikes: Counter[str] = field(default_factory=Counter)
    process: Process | None = None

    def work_off(self, units: Sequence[str], budget: Budget, file: Path) -> None:
        """Run units until the time is up, print what comes of them, and write all results after each.

        Raises:
            DeviceLost: nothing more can be measured.
        """
        for number, unit in enumerate(units):
            if budget.over():
                self.results.left_out.append(unit)
                continue
            print(f"\n[{budget.spent():.0f} s] {unit}", flush=True)
            try:
                self.run(unit)
            except DeviceLost as error:
                self.results.failed[unit] = self.results.failed["device"] = str(error)
                self.results.left_out += units[number + 1 :]
                raise
            self.results.seconds = budget.spent()
            self.results.write(file)

    def run(self, unit: str) -> None:
        """Run a unit, again without an implementation that was lost in it."""
        here: dict[str, str] = {}
        while True:
            found, ended = self._try(Order(unit, {**here, **self.lost}))
            if isinstance(ended, Done) or not ended.who or ended.who in here:
                break
            here[ended.who] = ended.why
            self._strike(ended)
        for result in found:
            self.results.add(result)
        if ended.why:
            self.results.failed[unit] = ended.why
            print(f"not measured: {ended.why}", flush=True)

    def end(self) -> None:
        """Ask for the state of the machine, and end the process."""
        if self.process is None:
            return
        with suppress(Silent, Died):  # all that it was to measure is measured
            self.process.send(None)
            match self.process.receive(self.own):
                case State(found):
                    self.results.machine["state_at_end"] = found
        self.kill()

    def _try(self, order: Order) -> tuple[list[Result], Done | Loss]:
        """What a unit yields, and how it ended."""
        process, who, seconds = self.ready(), "", self.own
        found: list[Result] = []
        try:
            process.send(order)
            while True:
                match process.receive(seconds):
                    case Turn(who, limit):
                        seconds = limit if who else self.own
                    case Done() as done:
                        return found, done
                    case Gone(why):
                        self.kill()
                        return found, Loss(who, why)
                    case result:
                        found.append(result)
                        print(result, flush=True)
        except (Silent, Died) as error:
            self.kill()
            return found, Loss(who, _why(error, seconds))

    def ready(self) -> Process:
        """The process, a new one if need be.

        Raises:
            DeviceLost: none gets ready.
        """
        failures = 0
        while self.process is None:
            loss = self._start()
            if loss is None:
                break
            if loss.who in map(str, self.peers):
                self._without(loss.who, loss.why)
                continue
            failures += 1
            if failures == STARTS:
                raise DeviceLost(loss.why)
        assert self.process is not None
        return self.process

    def _start(self) -> Loss | None:
        """Start a process, and wait until it takes orders."""
        process = self.process = self.start(self.peers, not self.results.machine)
        who, seconds = "", self.own
        try:
            while True:
                match process.receive(seconds):
                    case Turn(who, limit):
                        seconds = limit if who else self.own
                    case Ready(machine, failed):
                        self._describe(machine)
                        for name, why in failed.items():
                            self._without(name, why)
                        return None
        except (Silent, Died) as error:
            self.kill()
            return Loss(who, _why(error, seconds))

    def _describe(self, machine: dict[str, object]) -> None:
        if machine:
            self.results.machine.update(machine)
            print("\n".join(f"{what}: {value}" for what, value in machine.items()), flush=True)

    def _without(self, peer: str, why: str) -> None:
        """Go on without a peer that cannot be loaded."""
        self.peers = [one for one in self.peers if str(one) != peer]
        self.results.failed[f"peer {peer}"] = why
        print(f"peer {peer} is left out: {why}", flush=True)

    def _strike(self, loss: Loss) -> None:
        print(f"lost: {loss.who}: {loss.why}; once more without it", flush=True)
        self.strikes[loss.who] += 1
        if self.strikes[loss.who] == STRIKES:
            self.lost[loss.who] = f"left out: lost at {STRIKES} shapes before, the last time: {loss.why}"

    def kill(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process = None


def _why(error: Exception, seconds: float) -> str:
    return f"took longer than {seconds:.0f} s" if isinstance(error, Silent) else str(error)
