"""Where prepared data is kept between runs, and how a name is made from what it was made of."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def default_cache_dir() -> Path:
    """$LM_EXPERIMENTS_CACHE, else `lm_experiments_tools` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LM_EXPERIMENTS_CACHE") or Path(base) / "lm_experiments_tools")


def digest(parts: Iterable[str | bytes]) -> str:
    """16 hexadecimal digits that name a sequence of texts."""
    value = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        value.update(len(data).to_bytes(8, "little") + data)
    return value.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """16 hexadecimal digits that name the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16] if hasattr(hashlib, "file_digest") else digest(file)


def sha256(path: Path) -> str:
    """The whole SHA-256 of a file, in hexadecimal digits."""
    value = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value.update(block)
    return value.hexdigest()
