"""Another process of this program, to do what may hang or die: it can be killed with all that it started."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


class Silent(Exception):
    """A child did not say anything for as long as it was given."""


class Died(Exception):
    """A child ended without being asked to."""


class Child:
    """A process that calls `function` with a connection to this one, and `args`; both can be pickled.

    It ends with its `with` block at the latest, as do all processes that it started.
    """

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share a CUDA context, which fails
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_lead, args=(function, theirs, *args))
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Give it a message.

        Raises:
            Died: there is no such process any more.
        """
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._died() from error

    def receive(self, seconds: float | None = None) -> Any:
        """Wait for its next message, so long at most.

        Raises:
            Silent: there was none in that time.
            Died: there will be none.
        """
        try:
            if not self._connection.poll(seconds):
                raise Silent(f"nothing for {seconds:.0f} s")
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error

    def kill(self) -> None:
        """End it and what it started, at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()  # where it does not lead a group yet
        self._process.join()
        self._connection.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _died(self) -> Died:
        self._process.join(10)
        code = self._process.exitcode
        if code is not None and code < 0:
            return Died(f"the process was ended by {signal.Signals(-code).name}")
        return Died(f"the process ended with status {code}")


def _lead(function: Callable[..., object], connection: Connection, *args: object) -> None:
    os.setsid()  # whatever it starts is of its group
    function(connection, *args)
