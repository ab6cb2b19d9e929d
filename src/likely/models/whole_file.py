"""Files of our own that are there whole or not at all: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write; when the block ends without an error it takes the place of `path`, else nothing changes.

    The folder is made if need be. Permissions are an existing file's, or those that any new file gets (0666 less the
    umask).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
        os.chmod(name, _permissions(path))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_whole_file(path: Path, data: bytes) -> None:
    """Write `data`; an error or an interruption leaves the old file as it was."""
    with replacing(path) as out:
        out.write(data)


def _permissions(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        umask = os.umask(0o022)  # it can only be read by setting it
        os.umask(umask)
        return 0o666 & ~umask
