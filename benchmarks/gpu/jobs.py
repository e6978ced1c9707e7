"""Work in processes of their own, each with a time limit: one that hangs or crashes takes no other along."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from benchmarks.gpu.timing import Failure

LEAVING = 10.0  # seconds that a process which was killed may take to go; a device can hold it


def run(command: Sequence[str], limit: float) -> dict[str, Any] | Failure:
    """Run a command and read the JSON object in the last line that it prints.

    Args:
        command: the program and its arguments.
        limit: seconds, after which it is killed with all processes that it started.

    Returns:
        The object, or why there is none.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return Failure(f"no result in {limit:.0f} s")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=LEAVING)
    if process.returncode != 0:
        return Failure(f"ended with status {process.returncode}: {last_line(errors)}")
    try:
        found = json.loads(last_line(printed))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else Failure(f"no result, but {last_line(printed)!r}")


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
