"""A command is run as on the command line."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mhf_compile.__main__ import main


class Done(NamedTuple):
    """What a command wrote, and its exit status."""

    stdout: str
    stderr: str
    status: int


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    status: object = 0
    try:
        main([*arguments])
    except SystemExit as error:
        status = error.code
    written = capsys.readouterr()
    assert isinstance(status, int)
    return Done(written.out, written.err, status)
