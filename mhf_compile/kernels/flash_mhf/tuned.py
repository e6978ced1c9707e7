"""The tiles that were the fastest on this user's devices, a readable file for each in the user's cache.

`python -m mhf_compile tune` writes it. It counts for one GPU, version of Triton and source of the kernels;
one that is corrupt, or of something else, is ignored with a warning.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import triton

from mhf_compile.kernels.flash_mhf.config import CLASSES, KERNELS, Key, Tiles
from mhf_compile.kernels.source import source_hash

log = logging.getLogger(__name__)


def path_of(device: str) -> Path:
    """The file of a device, below $MHF_COMPILE_CACHE or the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("MHF_COMPILE_CACHE") or Path(home, "mhf_compile"))
    return folder / f"tiles-{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-')}.json"


def made_for(device: str) -> dict[str, str]:
    """What a file counts for."""
    return {"gpu": device, "triton": triton.__version__, "kernels": source_hash(Path(__file__).parent)}


@cache
def winners(device: str) -> Mapping[Key, Tiles]:
    """The tiles found the fastest on a device; none where there is no file for it."""
    path = path_of(device)
    if not device or not path.exists():
        return {}
    try:
        return parse(json.loads(path.read_text()), device)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is ignored: %s; `python -m mhf_compile tune` makes a new one", path, error)
        return {}


def parse(content: Any, device: str) -> dict[Key, Tiles]:
    """Read what `store` wrote.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is something else, or made for something else.
    """
    for what, want in made_for(device).items():
        if content.get(what) != want:
            raise ValueError(f"it is for {what} {content.get(what)!r}, and this is {want!r}")
    found = {}
    for name, row in content["tiles"].items():
        kernel, size, columns = name.split()
        key = kernel, int(size), int(columns)
        tiles = Tiles(**row)
        if kernel not in KERNELS or key[2] not in (0, *CLASSES) or not _sensible(tiles):
            raise ValueError(f"no kernel has {name!r}: {row}")
        found[key] = tiles
    return found


def _sensible(tiles: Tiles) -> bool:
    powers = (tiles.tokens, tiles.rows, tiles.warps, tiles.columns or 16)
    return (
        all(type(n) is int and n > 0 and n & (n - 1) == 0 for n in powers)
        and min(tiles.tokens, tiles.rows) >= 16
        and type(tiles.stages) is int
        and tiles.stages > 0
        and type(tiles.described) is bool
    )


def store(device: str, tiles: Mapping[Key, Tiles]) -> Path:
    """Write the file of a device, beside what it has for other kernels, in one step.

    Raises:
        OSError: the directory cannot be written.
    """
    path = path_of(device)
    winners.cache_clear()
    rows = {" ".join(map(str, key)): value._asdict() for key, value in {**winners(device), **tiles}.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump({**made_for(device), "tiles": rows}, file, indent=2)
    os.replace(file.name, path)
    winners.cache_clear()
    return path
