import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_backend_is_registered_by_name():
    (entry_point,) = entry_points(group="torch_dynamo_backends", name="flashmhf")
    assert entry_point.value == "mhf_compile.backend:flashmhf"


def test_importing_the_package_is_light():
    # torch imports the package while it looks up a backend: nothing comes along but what declares operators.
    program = """
import sys, torch
before = set(sys.modules)
import mhf_compile
print(*set(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rooms = {".".join(name.split(".")[:2]) for name in done.stdout.split()}
    assert rooms - sys.stdlib_module_names == {"mhf_compile", "mhf_compile.kernels"}


def test_importing_the_package_registers_the_operators():
    program = "import torch, mhf_compile; print(torch.ops.mhf.flash_mhf.default)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "mhf.flash_mhf.default\n"


@pytest.mark.parametrize("room", ["kernels", "patterns"])
def test_rooms_are_linked_at_the_top(room):
    link = ROOT / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / "mhf_compile" / room
    assert link.is_dir()


def test_the_package_says_it_is_typed():
    assert (ROOT / "mhf_compile" / "py.typed").is_file()
