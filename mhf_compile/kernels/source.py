"""A hash of source files: what was made by older ones is told apart."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def source_hash(folder: Path) -> str:
    """16 hexadecimal digits of the names and contents of all Python files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
