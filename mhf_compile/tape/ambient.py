"""What looks on while PyTorch runs, put aside: hooks on saved tensors, modes, transforms of torch.func.

An analysis runs a program's operations on tensors of its own. What a user put around the program is to see
those of the program only.

What gives a graph its meaning stays as it is: grad and inference mode, autocast, the default dtype and
device, deterministic algorithms. Dynamo has a graph compiled in the state that it will run in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes, _pop_mode


@contextmanager
def put_aside() -> Iterator[None]:
    """Run a block unseen; afterwards all is as it was."""
    with ExitStack() as stack:
        autograd = torch._C._autograd
        stack.callback(
            autograd._saved_tensors_hooks_set_tracing, autograd._saved_tensors_hooks_set_tracing(True)
        )
        stack.enter_context(_without_function_modes())
        stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(_disable_current_modes())
        stack.callback(_leave_modes)
        yield


def _leave_modes() -> None:
    """Leave what the block is still in, where an error came in the middle of leaving it."""
    while torch._C._len_torch_dispatch_stack():
        _pop_mode()
    while torch._C._functorch.get_dynamic_layer_stack_depth():
        torch._C._functorch.pop_dynamic_layer_stack()


@contextmanager
def _without_function_modes() -> Iterator[None]:
    """Without the function modes but those that are the default device."""
    modes = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    devices = [mode for mode in reversed(modes) if isinstance(mode, DeviceContext)]
    try:
        for device in devices:
            torch._C._push_on_torch_function_stack(device)
        yield
    finally:
        while torch._C._len_torch_function_stack():
            torch._C._pop_torch_function_stack()
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)
