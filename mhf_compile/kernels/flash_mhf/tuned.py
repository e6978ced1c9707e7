"""The tiles that were the fastest on this user's devices: a readable file for each, in the user's cache.

`python -m mhf_compile tune` writes it. It counts for one GPU, version of Triton and source of the kernels;
one that is corrupt, or of something else, is ignored with a warning.
"""

import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import triton

from mhf_compile.kernels.flash_mhf.config import FAMILIES, Key, Target, Tiles, fitting, table
from mhf_compile.kernels.source import source_hash

log = logging.getLogger(__name__)


def path_of(device: str) -> Path:
    """The file of a device, in $MHF_COMPILE_CACHE, $XDG_CACHE_HOME/mhf_compile or ~/.cache/mhf_compile.

    Raises:
        FileNotFoundError: none of them is known.
    """
    return _folder() / f"tiles-{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-')}.json"


def _folder() -> Path:
    ours, home = os.environ.get("MHF_COMPILE_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if ours:
        return Path(ours)
    if os.path.isabs(home):  # its specification has relative ones ignored
        return Path(home, "mhf_compile")
    try:
        return Path.home() / ".cache" / "mhf_compile"
    except RuntimeError as error:
        raise FileNotFoundError("no home directory; MHF_COMPILE_CACHE can name another") from error


def made_for(device: str) -> dict[str, str]:
    """What a file counts for."""
    return {"gpu": device, "triton": triton.__version__, "kernels": source_hash(Path(__file__).parent)}


@cache
def winners(device: str) -> Mapping[Key, Tiles]:
    """The tiles found the fastest on a device; none where it has no name, or there is no file for it."""
    if not device:
        return {}
    try:
        return read(device)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        again = "`python -m mhf_compile tune` makes a new one"
        log.warning("%s is ignored: %s; %s", path_of(device), error, again)
        return {}


def chosen(key: Key, tokens: int, target: Target) -> Tiles:
    """The tiles of a row of the tables for so many tokens: the winner there is, or the first candidate."""
    candidates = table(target.arch)[key]
    winner = winners(target.name).get(key)
    return fitting(key[0], tokens, candidates if winner is None else (winner, *candidates))[0]


def read(device: str) -> dict[Key, Tiles]:
    """Read what `store` wrote.

    Raises:
        OSError: there is no file, or it cannot be read.
        ValueError: it is something else, or made for something else.
    """
    try:
        content = json.loads(path_of(device).read_text("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict) or not isinstance(content.get("tiles"), dict):
        raise ValueError("it is not an object with tiles")
    for what, want in made_for(device).items():
        if content.get(what) != want:
            raise ValueError(f"it is for {what} {content.get(what)!r}, and this is {want!r}")
    return dict(_candidate(name, row) for name, row in content["tiles"].items())


def _candidate(name: str, row: object) -> tuple[Key, Tiles]:
    """The row of the tables, and the candidate there, that stand in a file. No other tiles are let in."""
    for rows in FAMILIES.values():
        for key, candidates in rows.items():
            for tiles in candidates if _name(key) == name else ():
                if tiles._asdict() == row:
                    return key, tiles
    raise ValueError(f"no table has {name!r}: {row}")


def _name(key: Key) -> str:
    return " ".join(map(str, key))


def store(device: str, tiles: Mapping[Key, Tiles]) -> Path:
    """Write the file of a device, beside what it has for other kernels, in one step.

    Processes of one machine that do so at once take turns. Of those of several machines, with a folder in
    common, one may lose what another stored at that moment; the file is whole all the same.

    Raises:
        OSError: it cannot be written; then it is as it was.
    """
    path = path_of(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with _locked(path.parent):
        try:
            before = read(device)
        except (OSError, ValueError):
            before = {}
        rows = {_name(key): value._asdict() for key, value in {**before, **tiles}.items()}
        try:
            new.write_text(json.dumps({**made_for(device), "tiles": rows}, indent=2), "utf-8")
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    winners.cache_clear()
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from storing in a folder; one that is killed keeps no lock."""
    import fcntl  # only Unix has it

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def spelled(tiles: Tiles) -> str:
    """Tiles for people: tokens x rows (x columns), warps, stages, and what else is chosen.

    >>> spelled(Tiles(128, 64, 8, 3, described=1, resident=True))
    '128x64 w8 s3 tma res'
    """
    blocks = [tiles.tokens, tiles.rows, *([tiles.columns] if tiles.columns else [])]
    tma = "tma" if tiles.described == 1 else f"tma x{tiles.described}"
    chosen = {
        tma: tiles.described,
        "res": tiles.resident,
        "col": tiles.collected,
        "joined": tiles.joined,
        "specialised": tiles.specialised,
    }
    with_ = (name for name, is_set in chosen.items() if is_set)
    return " ".join(["x".join(map(str, blocks)), f"w{tiles.warps}", f"s{tiles.stages}", *with_])
