"""What is measured is compiled before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_compiling() -> Iterator[None]:
    """Make it an error to compile."""
    with torch.compiler.set_stance("fail_on_recompile"):
        yield
