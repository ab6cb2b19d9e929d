"""Files for the user: refused before any work if they cannot be written, and never half there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from likely.errors import DataError


def check_target(path: Path, suffixes: Sequence[str] = ()) -> None:
    """DataError, or ValueError for a wrong ending, if `path` cannot be written."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"the file must end in {', '.join(suffixes)}, got {str(path)!r}")
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise DataError(f"cannot write {path}: it is {'a folder' if target.is_dir() else 'not a regular file'}")
    if not target.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise DataError(f"cannot write {path}: the folder {target.parent} is read-only")


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name beside the target, then rename."""
    target = path.resolve()
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
