"""Examples for which a property failed, kept as files of source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.fuzz import ambient, near, programs
from tests.fuzz.counted import Kept
from tests.fuzz.property import Example, Property
from tests.kernels import properties as kernels

PROPERTIES: tuple[Property, ...] = (
    *programs.PROPERTIES,
    *near.PROPERTIES,
    *kernels.PROPERTIES,
    *ambient.PROPERTIES,
)
"""All properties that are fuzzed."""

FOLDER = Path(__file__).parent.parent / "regressions"


@dataclass(frozen=True)
class Regression:
    """A kept example and the property that it once failed; ``gap`` says why it still does, where it does."""

    property: Property
    example: Any
    gap: str


def keep(name: str, example: Example, why: str, folder: Path = FOLDER) -> Path:
    """Write an example for which a property failed, with the first lines of what it said."""
    source = example.source
    path = folder / f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:8]}.py"
    said = "\n".join(line.rstrip() for line in why.strip().splitlines()[:8])[:600]
    said = said.replace("\\", "\\\\").replace('"""', "'''")
    folder.mkdir(exist_ok=True)
    path.write_text(f'"""{name}: it did not hold.\n\n{said}\n"""\n\n{header(name, source)}')
    return path


def header(name: str, source: str) -> str:
    """A module's source, with the name of a property behind its imports."""
    imports, _, rest = source.partition("\n\n")
    return f'{imports}\n\nPROPERTY = "{name}"\n{rest}'


def load(path: Path) -> Regression:
    """What is kept in a file."""
    module = ModuleType(path.stem)
    text = path.read_text()
    exec(compile(text, str(path), "exec"), module.__dict__)
    property_ = next(p for p in PROPERTIES if p.name == module.PROPERTY)
    example = module.EXAMPLE if hasattr(module, "EXAMPLE") else Kept(text, module.CLAIMS)
    return Regression(property_, example, getattr(module, "GAP", ""))
